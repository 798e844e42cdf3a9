"""``model.generate(**inputs, custom_generate=fastpower.custom_generate)``: power sampling behind transformers' call.

What comes in is what transformers prepared (padded ids, mask, generation configuration), what goes out has the shape
that its users expect. In between it is ``fastpower.generate``: the same samplers, seeds and answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastpower.chains.chain import Sampler
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.generation import generate
from fastpower.interfaces import interface, require
from fastpower.language_model import LanguageModel
from fastpower.results import Results
from fastpower.samplers.methods import parse_methods, sampler_named
from fastpower.samplers.retarget import retargeted
from fastpower.target import stop_strings

with interface("transformers"):
    from transformers import Cache, __version__
    from transformers.utils import ModelOutput

#: what transformers hands to every decoding loop and a paged one does not need, beside a cache under any name
#: (``cache`` from 5.24 on, ``past_key_values`` before)
_PREPARED = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache_position"}
_STOPS = {"MaxLengthCriteria", "EosTokenCriteria", "StopStringCriteria"}
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass
class PowerGenerateOutput(ModelOutput):  # type: ignore[misc]
    """What ``custom_generate`` returns with ``return_dict_in_generate=True``. R rows."""

    sequences: Tensor | None = None  #: (R, prompt + longest answer) int64, padded
    logp: Tensor | None = None  #: (R,) float64, log p of the answer under the model itself, in nats
    acceptance: Tensor | None = None  #: (R,) float64, accepted / moves; NaN for a sampler without moves
    results: Results | None = None  #: everything else that is known of the answers


def custom_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    generation_config: Any = None,
    sampler: str | Sampler = "mh",
    alpha: float | None = None,
    block: int | None = None,
    moves: int | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    max_rows: int = 64,
    language_model: LanguageModel | None = None,
    progress: bool = False,
    **model_kwargs: Any,
) -> Tensor | PowerGenerateOutput:
    """Answers from p^alpha for transformers' ``generate``; give it as that call's ``custom_generate``.

    The target is the model's own distribution: temperature, top_k, top_p and their like are ignored with a warning.
    Stop tokens are the generation configuration's. ``max_new_tokens`` is the horizon, part of the target.

    Args:
        model: The model whose ``generate`` was called.
        input_ids: (R, longest prompt), padded in front.
        logits_processor: Those that transformers makes for options that are ignored.
        stopping_criteria: Those of length and stop tokens.
        generation_config: The call's.
        sampler: A method's name, "mh" or "mh(moves=4)", with alpha, block and moves; or a sampler, whose horizon is
            replaced by the call's.
        alpha: Exponent; default 4.
        block: As of the method.
        moves: As of the method.
        stop: Strings that end an answer, part of the target; those of ``generation_config.stop_strings`` and of
            ``StopStringCriteria`` count as well. They need the tokenizer: ``language_model=fastpower.load(model,
            tokenizer)``, since transformers keeps its ``tokenizer`` argument to itself.
        seed: Decides every draw together with the prompt; torch's generator is not used. Rows with equal prompts are
            further chains (num_return_sequences, which transformers allows with do_sample=True).
        max_rows: Rows of one decode batch.
        language_model: ``fastpower.load(model)``, to keep its cache and packed weights between calls; made for this
            call otherwise.
        progress: A progress bar on stderr.
        **model_kwargs: What transformers adds (attention_mask, …).

    Returns:
        (R, prompt + longest answer) ids, prompts included, answers padded behind; with return_dict_in_generate a
        ``PowerGenerateOutput``.

    Raises:
        ValueError: What would change the target or cannot be had: other logits processors and stopping criteria, beams,
            scores or attentions, a cache that holds tokens, inputs other than token ids, odd positions; and whatever
            ``fastpower.generate`` raises.

    Examples:
        One call, as any other of ``generate``:

            model.generate(**inputs, max_new_tokens=256, custom_generate=fastpower.custom_generate, alpha=4.0, seed=1)
    """
    _refuse(logits_processor, stopping_criteria, generation_config, model_kwargs)
    prompts = _prompts(input_ids, model_kwargs)
    horizon = int(generation_config.max_length) - input_ids.shape[1]
    chosen = _sampler(sampler, alpha, horizon, block=block, moves=moves)
    strings = _strings(stop, stopping_criteria, generation_config)
    if strings:
        chosen = retargeted(chosen, stop=strings)
    with _language_model(model, language_model, generation_config) as ready:
        options: dict[str, Any] = {"seed": seed, "max_rows": max_rows, "progress": progress}
        results = generate(ready, prompts, chosen, fixed_length=True, **options)
    stops, pad = _stops(generation_config), generation_config.pad_token_id
    longest = max(len(result.token_ids) for result in results)
    padding = int(pad) if pad is not None else stops[0] if stops else 0  # what transformers pads with
    answers = input_ids.new_full((len(results), longest), padding)
    for row, result in enumerate(results):
        answers[row, : len(result.token_ids)] = torch.tensor(
            result.token_ids, device=input_ids.device, dtype=torch.int64
        )
    sequences = torch.cat([input_ids, answers], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    acceptance = [float("nan") if result.acceptance is None else result.acceptance for result in results]
    return PowerGenerateOutput(
        sequences=sequences,
        logp=torch.tensor([result.logp for result in results], dtype=torch.float64, device="cpu"),
        acceptance=torch.tensor(acceptance, dtype=torch.float64, device="cpu"),
        results=results,
    )


def _sampler(sampler: str | Sampler, alpha: float | None, horizon: int, **settings: int | None) -> Sampler:
    if isinstance(sampler, str):
        if any("max_new_tokens" in method.settings for method in parse_methods(sampler)):
            raise ValueError(
                f"sampler = {sampler!r} sets max_new_tokens, which is the call's own: {horizon}; leave it out"
            )
        return sampler_named(sampler, alpha=alpha, max_new_tokens=horizon, **settings)
    given = [name for name, value in {"alpha": alpha, **settings}.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be given beside a sampler, which has its own: {sampler!r}")
    return retargeted(sampler, horizon=horizon)


def _refuse(processors: Sequence[Any], stops: Sequence[Any], config: Any, model_kwargs: dict[str, Any]) -> None:
    """Refuse what this cannot honour; warn of what it leaves out.

    Raises:
        ValueError: Something that cannot be had.
    """
    if config is None:
        raise ValueError("custom_generate is called by transformers: give it to model.generate as custom_generate")
    names = [type(processor).__name__ for processor in processors]
    odd = [name for name in names if not name.endswith("Warper")]
    if odd:
        raise ValueError(f"logits processors would change the distribution p that is sampled from: leave out {odd}")
    if names:
        warnings.warn(
            f"ignored: {', '.join(names)}. Power sampling draws from the model's own distribution, sharpened by alpha "
            "alone (do_sample=False, or top_k=0 and no other of them, is silent)",
            stacklevel=4,
        )
    other = [type(stop).__name__ for stop in stops if type(stop).__name__ not in _STOPS]
    if other:
        raise ValueError(
            f"answers end at a stop token, a stop string or after max_new_tokens; {other} cannot be applied"
        )
    if (config.num_beams or 1) > 1:
        raise ValueError(f"num_beams = {config.num_beams}: samplers have no beams; leave it at 1")
    wanted = [name for name in _OUTPUTS if getattr(config, name, None)]
    if wanted:
        raise ValueError(f"{', '.join(wanted)} cannot be had; log-probabilities per token are in the output's results")
    given = {name: value for name, value in model_kwargs.items() if name not in _PREPARED and value is not None}
    caches = {name: value for name, value in given.items() if isinstance(value, Cache)}
    unknown = sorted(given.keys() - caches.keys())
    if unknown:
        raise ValueError(
            f"only token ids can be continued; the model's inputs {unknown} cannot be used (transformers {__version__})"
        )
    for name, cache in caches.items():
        if cache.get_seq_length() > 0:
            raise ValueError(f"{name} holds tokens already: give the whole prompt as input_ids, without a cache")


def _strings(stop: str | Sequence[str] | None, criteria: Sequence[Any], config: Any) -> tuple[str, ...]:
    """Every stop string that the call has, wherever it was given, once."""
    found = [*stop_strings(stop), *stop_strings(getattr(config, "stop_strings", None))]
    for one in criteria:
        if type(one).__name__ == "StopStringCriteria":
            found += stop_strings(require(one, "stop_strings", "transformers"))
    return tuple(dict.fromkeys(found))


def _prompts(input_ids: Tensor, model_kwargs: dict[str, Any]) -> list[list[int]]:
    """Rows without their padding."""
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        expected = mask.cumsum(1) - 1
        if bool(((positions.to(mask.device).expand_as(expected) != expected) & (mask != 0)).any()):
            raise ValueError("position_ids must count the tokens of every row from 0: leave them out")
    return [ids[kept != 0].tolist() for ids, kept in zip(input_ids, mask, strict=True)]


@contextmanager
def _language_model(model: Any, given: LanguageModel | None, config: Any) -> Iterator[LanguageModel]:
    """The model to sample from, ending answers at the stop tokens of ``config``."""
    if given is not None and getattr(given.decoder, "model", None) is not model:
        raise ValueError("language_model was made of another model: use fastpower.load(model)")
    decoder: Any = TransformersDecoder(model) if given is None else given.decoder
    own = decoder.eos_ids
    decoder.eos_ids = frozenset(_stops(config))
    try:
        yield LanguageModel(decoder) if given is None else given
    finally:
        decoder.eos_ids = own
        if given is None:
            decoder.close()


def _stops(config: Any) -> list[int]:
    """Tokens that end an answer, in the configuration's order: an id, several, or a tensor of them."""
    stops = config.eos_token_id
    return [] if stops is None else torch.as_tensor(stops, dtype=torch.int64, device="cpu").reshape(-1).tolist()
