r"""fastpower as a model of lm-evaluation-harness: its tasks, answered by our samplers.

    python -m fastpower.integrations.lm_eval run --model fastpower --tasks gsm8k \
        --model_args pretrained=PATH,method=mh,alpha=4,moves=4

The harness has no plug-in mechanism, so its command is started from here, with the model registered; everything after
the module's name is the harness's own. From Python: ``lm_eval.simple_evaluate(model=FastpowerLM(...), tasks=[...])``.

Generation uses the sampler. Log-likelihoods are the model's own, at exponent 1: power sampling does not change them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastpower.decoders.base import Work
from fastpower.errors import PromptTooLong
from fastpower.generation import plan, run_jobs
from fastpower.interfaces import interface
from fastpower.language_model import LanguageModel, load
from fastpower.models.prompts import text_tokens
from fastpower.samplers import make_sampler
from fastpower.samplers.retarget import retargeted

with interface("lm_eval"):
    import lm_eval.models  # noqa: F401 - the harness knows its own models only if none is registered before them
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

#: log Σ p^e / e at this exponent is the largest log p, up to log(ties) / 4096.
_SHARP = 4096.0
_TIE = 1e-3


@register_model("fastpower")
class FastpowerLM(LM):  # type: ignore[misc]
    """An ``LM`` whose ``generate_until`` draws from p^alpha.

    A task's stop strings (``until``) end answers and are part of the target; sampling options of the task (temperature,
    …) are ignored.

    A context that does not fit fails alone, with a warning: its answer is "", its log-likelihood −inf. It is not cut,
    since a part of it would be another question.

    Args:
        pretrained: Anything ``fastpower.load`` takes.
        method: See ``fastpower.make_sampler``.
        alpha: See ``fastpower.make_sampler``.
        max_new_tokens: The horizon where a task gives none.
        seed: Of every draw.
        max_rows: Rows of a decode batch.
        dtype: Of the weights; None: float32 on the CPU, bfloat16 on a GPU.
        device: Where the model goes.
        batch_size: The harness's; where it is a number it stands for ``max_rows``.
        max_batch_size: The harness's; not used.
        tokenizer: Of a loaded model.
        **settings: The method's own.

    Raises:
        PromptTooLong: By ``generate_until``, where no request fits.
    """

    def __init__(
        self,
        pretrained: Any = None,
        method: str = "mh",
        alpha: float = 4.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        max_rows: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        tokenizer: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.method, self.alpha, self.seed, self.settings = method, float(alpha), int(seed), settings
        self.max_new_tokens = int(max_new_tokens)
        self._sampler(self.max_new_tokens)  # wrong settings fail here, before the model is loaded
        rows = str(batch_size if max_rows is None else max_rows)  # the harness may say "auto"
        self.max_rows = int(rows) if rows.isdigit() and (max_rows is not None or int(rows) > 1) else 64
        if isinstance(pretrained, LanguageModel):
            self.model = pretrained
        elif pretrained is None or isinstance(pretrained, str):
            self.model = load(pretrained, dtype=dtype, device=_device(device))
        else:
            self.model = load(pretrained, tokenizer)

    def _sampler(self, horizon: int, stop: Sequence[str] = ()) -> Any:
        sampler = make_sampler(self.method, alpha=self.alpha, max_new_tokens=horizon, **self.settings)
        return retargeted(sampler, stop=tuple(stop)) if stop else sampler

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache."""
        return self.model.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the harness's records."""
        if chat_template is False or self.model.tokenizer is None:
            return None
        text: str | None = getattr(self.model.tokenizer, "chat_template", None)
        return text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text."""
        text: str = self.model.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _tokens(self, text: str) -> list[int]:
        """Text to be continued, behind the start token if the model has one; "" is what stands for nothing."""
        tokenizer = self.model.tokenizer
        if not text:
            return self._empty()
        return self.model.decoder.encode(text) if tokenizer is None else text_tokens(tokenizer, text)

    def _behind_nothing(self, text: str) -> list[int]:
        """Text to be scored from its first token on: one start token, then the text's own tokens."""
        tokenizer, start = self.model.tokenizer, self._empty()
        if tokenizer is None:
            return start + self.model.decoder.encode(text)
        tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return tokens if tokens[:1] == start else start + tokens

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests. Equal requests (``repeats``) are different chains."""
        options = [dict(request.args[1] or {}) for request in requests]
        contexts = [self._tokens(request.args[0]) for request in requests]
        horizons = [_horizon(o, len(c), self.max_new_tokens) for o, c in zip(options, contexts, strict=True)]
        sizes = [len(context) + horizon for context, horizon in zip(contexts, horizons, strict=True)]
        fit = self._those_that_fit(sizes) or range(len(requests))  # where none fits, plan says what is wrong
        samplers = [self._sampler(horizons[i], _until(options[i])) for i in fit]
        jobs = plan(self.model, [contexts[i] for i in fit], samplers, seed=self.seed, fixed_length=True)
        place = {id(job): i for job, i in zip(jobs, fit, strict=True)}
        texts = {
            place[id(job)]: result.text
            for job, result in run_jobs(self.model, jobs, max_rows=self.max_rows, progress=not disable_tqdm)
        }
        answers = []
        for i, request in enumerate(requests):
            text = texts.get(i, "")
            self.cache_hook.add_partial("generate_until", request.args, text)
            answers.append(text)
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation, is it what greedy decoding gives? – up to ties within 0.001 nats)."""
        pairs = []
        for request in requests:
            context, continuation = request.args
            stem = context.rstrip()  # blanks belong to the continuation's first token
            if stem:
                whole, start = self._tokens(context + continuation), len(self._tokens(stem))
            else:
                whole, start = self._behind_nothing(context + continuation), 1
            if continuation:  # where it is one token with the context's end, that token
                start = min(start, len(whole) - 1)
            if start == 0:
                whole, start = self._empty() + whole, 1
            pairs.append((whole, start))
        fit = self._those_that_fit([len(whole) for whole, _ in pairs])
        if pairs and not fit:
            raise PromptTooLong(
                f"none of the {len(pairs)} requests fits into the model's context of {self.model.decoder.max_length} "
                f"tokens; the shortest has {min(len(whole) for whole, _ in pairs)}"
            )
        scores = dict(zip(fit, self._score([pairs[i] for i in fit]), strict=True))
        return [scores.get(i, (-math.inf, False)) for i in range(len(pairs))]

    def _those_that_fit(self, sizes: Sequence[int]) -> list[int]:
        """Places of the requests whose tokens fit into the model's context; a warning names the others."""
        limit = self.model.decoder.max_length
        for i, size in enumerate(sizes):
            if size > limit:
                warnings.warn(
                    f"request {i} fails: with what is to follow it needs {size} tokens, the model's context is {limit}",
                    stacklevel=3,
                )
        return [i for i, size in enumerate(sizes) if size <= limit]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows of the context length, every token scored once."""
        results = []
        limit = self.model.decoder.max_length
        for request in requests:
            tokens = self._behind_nothing(request.args[0])
            windows, done = [], 1
            while done < len(tokens):
                end = min(len(tokens), max(done, 1) - 1 + limit) if done == 1 else min(len(tokens), done + limit // 2)
                begin = max(0, end - limit)
                windows.append((tokens[begin:end], done - begin))
                done = end
            results.append(sum(logp for logp, _ in self._score(windows)))
        return results

    def _empty(self) -> list[int]:
        """What stands for nothing: the start token, or an end token where there is none."""
        start = getattr(self.model.tokenizer, "bos_token_id", None)
        return [int(start) if start is not None else min(self.model.decoder.eos_ids)]

    def _score(self, pairs: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """(tokens, first token to be scored ≥ 1) → (log p, greedy)."""
        decoder = self.model.decoder
        exponents = np.array([_SHARP], dtype=np.float32)
        results: list[tuple[float, bool]] = []
        for first in range(0, len(pairs), 8):
            group = pairs[first : first + 8]
            sequences = [decoder.add() for _ in group]
            try:
                work = [Work(s, tokens) for s, (tokens, _) in zip(sequences, group, strict=True)]
                scores = decoder.score(work, exponents)
            finally:
                for sequence in sequences:
                    decoder.free(sequence)
            for (_, start), score in zip(group, scores, strict=True):
                logp = score.logp[start - 1 :].astype(np.float64)
                best = score.logz[start - 1 : len(score.logp), 0] / _SHARP
                results.append((float(logp.sum()), bool((logp >= best - _TIE).all())))
        return results


def _device(name: str | None) -> str:
    """The harness asks for ``cuda`` unless told otherwise, GPU or not: then any that is there is meant."""
    import torch

    return "auto" if name is None or (name.startswith("cuda") and not torch.cuda.is_available()) else name


#: what tasks and other models of the harness call the horizon, the first one given counts
_HORIZON = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def _horizon(options: Mapping[str, Any], context: int, default: int) -> int:
    """Tokens that an answer may have; ``max_length`` counts those of the context, too."""
    given = next((name for name in (*_HORIZON, "max_length") if options.get(name) is not None), None)
    if given is None:
        return default
    try:
        value = int(options[given])
    except (TypeError, ValueError):
        value = 0
    value -= context if given == "max_length" else 0
    if value < 1:
        least = f"above the context's {context} tokens" if given == "max_length" else "a whole number of at least 1"
        raise ValueError(f"the task's {given} = {options[given]!r} leaves no token for an answer: it must be {least}")
    return value


def _until(options: Mapping[str, Any]) -> list[str]:
    """The task's stop strings; tasks may have empty ones, which say nothing."""
    stops = options.get("until") or []
    return [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]


def main() -> None:
    """lm-evaluation-harness's own command line."""
    with interface("lm_eval"):
        from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
