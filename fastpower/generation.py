"""``fastpower.generate``: prompts in, answers from p^alpha out."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastpower.chains.chain import Sampler
from fastpower.chains.job import Job, prompt_id
from fastpower.errors import Interrupted, PromptTooLong
from fastpower.language_model import LanguageModel, load
from fastpower.models.prompts import as_prompts
from fastpower.progress import Progress
from fastpower.results import Result, Results
from fastpower.samplers import METHODS, MetropolisHastings, Plain
from fastpower.samplers.methods import parse_methods, sampler_named
from fastpower.samplers.retarget import retargeted
from fastpower.scheduler import Scheduler


def plan(
    model: LanguageModel,
    prompts: Any,
    sampler: Sampler | Sequence[Sampler],
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[int | str] | None = None,
    fixed_length: bool = False,
) -> list[Job]:
    """The jobs behind every door (``generate``, ``stream``, Ray, lm-eval), checked before anything is computed.

    Args:
        model: What they are for.
        prompts: See ``fastpower.models.prompts.as_prompts``.
        sampler: One for all prompts, or a list with one for each.
        seed: Of all of them.
        chains: Answers per prompt. A prompt (or name) that is there twice gets further chains, not the same ones again.
        prompt_ids: Names, one per prompt, instead of those made from the prompts' tokens.
        fixed_length: Allow a model without end-of-sequence token.

    Returns:
        Jobs in the order of prompts, then chains.

    Raises:
        ValueError: What is no prompt, chains < 1, names that do not fit, a model without end-of-sequence token.
        PromptTooLong: A prompt that does not fit with its sampler's horizon.
    """
    if chains < 1:
        raise ValueError(f"chains must be at least 1 per prompt, got {chains}")
    given = as_prompts(prompts)
    samplers: list[Sampler] = list(sampler) if isinstance(sampler, Sequence) else [sampler] * len(given)
    names = None if prompt_ids is None else prompt_names(prompt_ids, len(given))
    jobs: list[Job] = []
    seen = Counter[int | str]()
    for i, (prompt, one) in enumerate(zip(given, samplers, strict=True)):
        job = prepare(model, Job(one, prompt, seed), called=f"prompt {i}", fixed_length=fixed_length)
        name = names[i] if names is not None else prompt_id(job.tokens)
        jobs += [replace(job, prompt_id=name, chain=seen[name] + chain) for chain in range(chains)]
        seen[name] += chains
    return jobs


def prepare(model: LanguageModel, job: Job, *, called: str = "", fixed_length: bool = False) -> Job:
    """``job`` with its prompt's token ids, ready for the scheduler; what ``plan`` does with each.

    Args:
        model: What it is for.
        job: With a prompt in any form.
        called: What to call the prompt in an error; "" names it by the job's ``prompt_id``.
        fixed_length: Allow a model without end-of-sequence token.

    Raises:
        ValueError: What is no prompt, or a model without end-of-sequence token.
        PromptTooLong: The prompt does not fit with the sampler's horizon.
    """
    horizon, limit = job.sampler.target.horizon, model.decoder.max_length
    if not fixed_length and not job.sampler.target.stop:
        require_end(model, horizon)
    if job.sampler.target.stop:
        require_text(model, "stop strings end answers by their text")
    if job.sampler.target.potential is not None:
        require_potential(model, job.sampler)
    prompt = model.wording(job.prompt)
    tokens = model.tokens(prompt)
    if len(tokens) + horizon > limit:
        raise PromptTooLong(
            f"{called or f'the prompt of {job.prompt_id!r}'} has {len(tokens)} tokens; with max_new_tokens = {horizon} "
            f"it exceeds the model's context of {limit}; shorten it or set max_new_tokens to at most "
            f"{max(limit - len(tokens), 0)}"
        )
    return replace(job, prompt=prompt, tokens=tokens)


def prompt_names(prompt_ids: Sequence[int | str], prompts: int) -> list[int | str]:
    """The names of prompts, checked: those that a result shows alike must be the same.

    Raises:
        ValueError: Names that are no texts or whole numbers, too few or too many, and 1 beside "1".
    """
    if isinstance(prompt_ids, (str, bytes)) or not isinstance(prompt_ids, Iterable):
        raise ValueError(f"prompt_ids must be a list of names, one per prompt, got {prompt_ids!r}")
    names: list[int | str] = []
    for name in prompt_ids:
        if isinstance(name, bool) or not (isinstance(name, str) or hasattr(name, "__index__")):
            raise ValueError(f"prompt_ids must be texts or whole numbers, got {name!r}")
        names.append(str(name) if isinstance(name, str) else operator.index(name))
    if len(names) != prompts:
        raise ValueError(f"prompt_ids must name every prompt: {prompts} prompts, {len(names)} ids")
    if len({str(name) for name in names}) < len(set(names)):
        twice = next(name for name in names if isinstance(name, int) and str(name) in names)
        raise ValueError(
            f"prompt_ids holds {twice} and {str(twice)!r}: they key different draws, but results show both as "
            f"{str(twice)!r}; give all names as texts or all as numbers"
        )
    return names


def require_end(model: LanguageModel, horizon: int) -> None:
    """Refuse a model that names no end-of-sequence token: its answers would all be cut off.

    Raises:
        ValueError: ``model`` is one.
    """
    if not model.decoder.eos_ids:
        raise ValueError(
            f"{model.name} names no end-of-sequence token, so that every answer would have exactly {horizon} tokens: "
            "set generation_config.eos_token_id of the model, or, if that is what you want, fixed_length=True"
        )


def require_text(model: LanguageModel, why: str) -> None:
    """Refuse a model whose tokens have no text, which ``why`` needs.

    Raises:
        ValueError: ``model`` is one.
    """
    if not model.has_text:
        raise ValueError(f"{why}, and {model.name} was loaded without a tokenizer: fastpower.load(model, tokenizer)")


def require_potential(model: LanguageModel, sampler: Sampler) -> None:
    """Refuse a sampler that would leave its target's potential out, and a potential that cannot be asked.

    Raises:
        ValueError: It is one.
    """
    if not getattr(sampler, "takes_potential", False):
        takers = ", ".join(name for name, cls in METHODS.items() if getattr(cls, "takes_potential", False))
        raise ValueError(
            f"{sampler.method} does not sample p^alpha with a potential: take one of {takers}, or leave potential out"
        )
    if sampler.target.potential.needs_text:
        require_text(model, f"{sampler.target.potential!r} reads texts")


def stream(
    model: Any,
    prompts: str | Iterable[Any],
    sampler: Sampler | str | None = None,
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[int | str] | None = None,
    stop: str | Sequence[str] | None = None,
    fixed_length: bool = False,
    max_rows: int = 64,
    progress: bool | Callable[[Scheduler], None] = False,
    **scheduler_options: Any,
) -> Iterator[Result]:
    """Like ``generate``, yielding each answer as soon as it is finished.

    Warning:
        Answers do not finish in a fair order: short ones come first. Whoever takes the first few and stops has a sample
        that favours them; a warning says so when that happens. Take all, or ask for fewer.
    """
    sampler, scheduler_options = _asked(sampler, scheduler_options, stop)
    language_model = load(model)
    options: dict[str, Any] = {"seed": seed, "chains": chains, "prompt_ids": prompt_ids, "fixed_length": fixed_length}
    jobs = plan(language_model, prompts, sampler, **options)
    given = 0
    try:
        for _, result in run_jobs(language_model, jobs, max_rows=max_rows, progress=progress, **scheduler_options):
            given += 1
            yield result
    except GeneratorExit:
        if 0 < given < len(jobs):
            warnings.warn(
                f"stream was left after {given} of {len(jobs)} answers: short answers finish first, so these are no "
                "fair sample of p^alpha. Take all of them, or ask for fewer",
                stacklevel=2,
            )
        raise


#: what other libraries call things, or what power sampling does not have, and what to do instead
_ELSEWHERE = (
    {
        "temperature": 'p^alpha is not a temperature: set alpha (and "low_temperature" draws at temperature 1/alpha)',
        "max_tokens": "the horizon is called max_new_tokens",
        "max_length": "the horizon is called max_new_tokens, and counts new tokens only",
        "n": "independent answers per prompt are called chains",
        "num_return_sequences": "independent answers per prompt are called chains",
        "batch_size": "rows of one decode batch are called max_rows",
        "system": 'give a conversation: [{"role": "system", …}, {"role": "user", …}]',
        "tokenizer": "give it to fastpower.load(model, tokenizer)",
    }
    | dict.fromkeys(
        ("stop_token_ids", "eos_token_id"),
        "answers end at the model's end-of-sequence tokens (model.decoder.eos_ids), at a stop string or at the "
        "horizon, over which p^alpha is defined",
    )
    | dict.fromkeys(("stop_strings", "until"), "strings that end an answer are called stop")
    | dict.fromkeys(
        (
            "top_p",
            "top_k",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "logit_bias",
            "logits_processor",
            "do_sample",
            "num_beams",
        ),
        "it would change the distribution that is sampled; alpha alone sharpens it",
    )
)


def _asked(
    sampler: Sampler | str | None, options: dict[str, Any], stop: str | Sequence[str] | None
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler, and the scheduler's share of a call's further options; the rest are settings of a named sampler."""
    known = inspect.signature(Scheduler).parameters.keys() - {"decoder", "max_rows", "on_step"}
    settings = {name: value for name, value in options.items() if name not in known}
    scheduler_options = {name: value for name, value in options.items() if name in known}
    methods = parse_methods(sampler) if isinstance(sampler, str) else []
    own = {field.name for method in methods for field in dataclasses.fields(METHODS.get(method.name, Plain))}
    for name, value in settings.items():
        if name in _ELSEWHERE and name not in own:
            raise ValueError(f"{name} = {value!r}: {_ELSEWHERE[name]}")
    if isinstance(sampler, str):
        chosen = sampler_named(sampler, **settings)
        return chosen if stop is None else retargeted(chosen, stop=stop), scheduler_options
    if settings:
        raise ValueError(
            f"unknown option {', '.join(settings)}: settings belong to a sampler, either a named one "
            f'("mh", {next(iter(settings))}=…) or fastpower.make_sampler("mh", …); '
            f"other options: {', '.join(sorted(known))}"
        )
    if sampler is not None and not (hasattr(sampler, "run") and hasattr(sampler, "target")):
        raise ValueError(f'sampler must be a sampler or the name of one, such as "mh(moves=4)"; got {sampler!r}')
    chosen = sampler or MetropolisHastings()
    return chosen if stop is None else retargeted(chosen, stop=stop), scheduler_options


def run_jobs(
    model: LanguageModel,
    jobs: Sequence[Job],
    *,
    max_rows: int = 64,
    progress: bool | Callable[[Scheduler], None] = False,
    **options: Any,
) -> Iterator[tuple[Job, Result]]:
    """Jobs and their results as they finish. An error of one job is raised when all others are finished."""
    show = Progress(jobs) if progress is True else None
    on_step = show.update if show is not None else (progress if callable(progress) else None)
    scheduler = Scheduler(model.decoder, max_rows=max_rows, on_step=on_step, **{"guess": model.guess, **options})
    failure: Exception | None = None
    done: list[Result] = []
    try:
        for finished in scheduler.run(jobs):
            if finished.error is not None:  # the others go on; nothing that was finished is lost
                failure = failure or finished.error
                continue
            done.append(Result.of(finished, model.text))
            if show is not None:
                show.finished(finished)
            yield finished.job, done[-1]
    except KeyboardInterrupt as stop:
        partial = [Result.of(finished, model.text) for finished in scheduler.unfinished]
        raise Interrupted("interrupted; `results` holds what was finished so far", Results(done + partial)) from stop
    finally:
        if show is not None:
            show.close()
    outside = sum(not result.diagnostics.get("in_support", True) for result in done)
    if outside:
        warnings.warn(
            f"{outside} of {len(done)} answers have a potential of 0: their chains met none above it and moved by "
            "p^alpha alone. More moves, more particles or a softer potential (log_weight) help",
            stacklevel=2,
        )
    if failure is not None:
        raise failure


def generate(
    model: Any,
    prompts: str | Iterable[Any],
    sampler: Sampler | str | None = None,
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[int | str] | None = None,
    stop: str | Sequence[str] | None = None,
    fixed_length: bool = False,
    max_rows: int = 64,
    progress: bool | Callable[[Scheduler], None] = False,
    **scheduler_options: Any,
) -> Results:
    """Sample answers to prompts.

    Args:
        model: Anything ``fastpower.load`` takes; None is the packaged model.
        prompts: One text, conversation or list of token ids, or a sequence of such; ids also as NumPy arrays, tensors
            or what a tokenizer returns.
        sampler: See ``fastpower.samplers``, or the name of one, "mh" or "mh(moves=4)", which means what it means on the
            command line (alpha = 4, max_new_tokens = 512 unless set, here or beside it: ``alpha=2``); default exact
            Metropolis–Hastings as in the paper: alpha = 4, a horizon of 3072, blocks of 192.
        seed: With the prompt and the chain number it decides every draw: same seed, same answer, whatever else is
            sampled beside it (bit for bit where ``model.decoder.batch_invariant``).
        chains: Independent answers per prompt.
        prompt_ids: Names that replace the prompts' content in keying the draws.
        stop: Strings that end an answer, with the first token with which its text contains one of them. They are part
            of the target, exactly; a result's text ends before the string, its token ids have it. Replaces those of the
            sampler's target.
        fixed_length: Allow a model without end-of-sequence token: its answers all have exactly the horizon's length,
            over which p^alpha is a distribution like any other.
        max_rows: Rows of one decode batch.
        progress: True shows a progress bar on stderr; or a function called with the scheduler after every step.
        **scheduler_options: ``prefill_tokens``, and switches for testing (``share_lanes``, ``resume``, ``lock_step``);
            see ``Scheduler``.

    Returns:
        Answers in the order of prompts, then chains.

    Raises:
        ValueError: What is no prompt or sampler, before any computation; so are the next two.
        PromptTooLong: A prompt that does not fit with its sampler's horizon.
        UnsupportedModel: A model that cannot run over pages.
        InvalidLogits: NaN from the model; raised after all other answers are finished (they are in ``results`` of the
            error).
        CacheFull: An answer that does not fit into the cache alone; raised like ``InvalidLogits``.
        Interrupted: Ctrl-C, with ``results`` finished so far.
    """
    sampler, scheduler_options = _asked(sampler, scheduler_options, stop)
    language_model = load(model)
    options: dict[str, Any] = {"seed": seed, "chains": chains, "prompt_ids": prompt_ids, "fixed_length": fixed_length}
    jobs = plan(language_model, prompts, sampler, **options)
    order = {id(job): i for i, job in enumerate(jobs)}
    found: dict[int, Result] = {}
    try:
        for job, result in run_jobs(language_model, jobs, max_rows=max_rows, progress=progress, **scheduler_options):
            found[order[id(job)]] = result
    except Exception as error:
        error.results = Results([found[i] for i in sorted(found)])  # type: ignore[attr-defined]
        raise
    return Results([found[i] for i in range(len(jobs))])
