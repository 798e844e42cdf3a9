"""``fastpower.generate``: prompts in, answers from p^alpha out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fastpower.chains.chain import Sampler
from fastpower.chains.job import Job
from fastpower.errors import Interrupted, PromptTooLong
from fastpower.language_model import LanguageModel, Prompt, load
from fastpower.progress import Progress
from fastpower.results import Result, Results
from fastpower.samplers import MetropolisHastings
from fastpower.scheduler import Scheduler


def prompt_id(tokens: Sequence[int]) -> str:
    """A name for a prompt made from its tokens: what is drawn for it does not depend on the prompts beside it."""
    return hashlib.blake2b(b",".join(str(t).encode() for t in tokens), digest_size=8).hexdigest()


def plan(
    model: LanguageModel,
    prompts: Iterable[Prompt],
    sampler: Sampler,
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[int | str] | None = None,
    fixed_length: bool = False,
) -> list[Job]:
    """The jobs of a call of ``generate``, checked before anything is computed.

    Raises ValueError for an empty prompt, chains < 1, or a model without end-of-sequence token unless ``fixed_length``,
    and PromptTooLong for a prompt that does not fit with the horizon.
    """
    if chains < 1:
        raise ValueError(f"chains must be at least 1 per prompt, got {chains}")
    if not fixed_length:
        require_end(model, sampler.target.horizon)
    tokens = [model.tokens(prompt) for prompt in prompts]
    if prompt_ids is not None and len(prompt_ids) != len(tokens):
        raise ValueError(f"prompt_ids must name every prompt: {len(tokens)} prompts, {len(prompt_ids)} ids")
    jobs, seen = [], Counter[int | str]()
    horizon, limit = sampler.target.horizon, model.decoder.max_length
    for i, ids in enumerate(tokens):
        if len(ids) + horizon > limit:
            raise PromptTooLong(
                f"prompt {i} has {len(ids)} tokens; with max_new_tokens = {horizon} it exceeds the model's context of "
                f"{limit}; shorten it or set max_new_tokens to at most {max(limit - len(ids), 0)}"
            )
        name = prompt_ids[i] if prompt_ids is not None else prompt_id(ids)
        jobs += [Job(sampler, ids, seed, name, seen[name] + chain) for chain in range(chains)]
        seen[name] += chains  # a prompt given twice gets further chains, not the same ones again
    return jobs


def require_end(model: LanguageModel, horizon: int) -> None:
    """Raise ValueError for a model that names no end-of-sequence token: its answers would all be cut off."""
    if not model.decoder.eos_ids:
        raise ValueError(
            f"{model.name} names no end-of-sequence token, so that every answer would have exactly {horizon} tokens: "
            "set generation_config.eos_token_id of the model, or, if that is what you want, fixed_length=True"
        )


def stream(
    model: Any,
    prompts: Iterable[Prompt],
    sampler: Sampler | None = None,
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[int | str] | None = None,
    fixed_length: bool = False,
    max_rows: int = 64,
    progress: bool | Callable[[Scheduler], None] = False,
    **scheduler_options: Any,
) -> Iterator[Result]:
    """Like ``generate``, yielding each answer as soon as it is finished."""
    language_model = load(model)
    sampler = sampler or MetropolisHastings()
    if isinstance(prompts, str):
        prompts = [prompts]
    options: dict[str, Any] = {"seed": seed, "chains": chains, "prompt_ids": prompt_ids, "fixed_length": fixed_length}
    jobs = plan(language_model, prompts, sampler, **options)
    for _, result in run_jobs(language_model, jobs, max_rows=max_rows, progress=progress, **scheduler_options):
        yield result


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
    scheduler = Scheduler(model.decoder, max_rows=max_rows, on_step=on_step, **options)
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
    if failure is not None:
        raise failure


def generate(
    model: Any,
    prompts: str | Iterable[Prompt],
    sampler: Sampler | None = None,
    *,
    seed: int = 0,
    chains: int = 1,
    prompt_ids: Sequence[int | str] | None = None,
    fixed_length: bool = False,
    max_rows: int = 64,
    progress: bool | Callable[[Scheduler], None] = False,
    **scheduler_options: Any,
) -> Results:
    """Sample answers to prompts.

    model       anything ``fastpower.load`` takes; None is the packaged model
    prompts     one text, or a sequence of texts, conversations or token-id lists
    sampler     see ``fastpower.samplers``; default exact Metropolis–Hastings at alpha = 4
    seed        with the prompt and the chain number it decides every draw: same seed, same answer, whatever else is
                sampled beside it (bit for bit where ``model.decoder.batch_invariant``)
    chains      independent answers per prompt
    prompt_ids  names that replace the prompts' content in keying the draws
    fixed_length  allow a model without end-of-sequence token: its answers all have exactly the horizon's length, over
                which p^alpha is a distribution like any other
    max_rows    rows of one decode batch
    **scheduler_options  prefill_tokens, and switches for testing (share_lanes, resume, lock_step); see ``Scheduler``
    progress    True shows a progress bar on stderr; or a function called with the scheduler after every step

    Returns Results in the order of prompts, then chains. Raises ValueError, PromptTooLong, UnsupportedModel before any
    computation; InvalidLogits or CacheFull after all other answers are finished (they are in the error's ``results``);
    Interrupted on Ctrl-C, with ``results`` finished so far.
    """
    language_model = load(model)
    sampler = sampler or MetropolisHastings()
    if isinstance(prompts, str):
        prompts = [prompts]
    options: dict[str, Any] = {"seed": seed, "chains": chains, "prompt_ids": prompt_ids, "fixed_length": fixed_length}
    jobs = plan(language_model, prompts, sampler, **options)
    order = {(str(job.prompt_id), job.chain): i for i, job in enumerate(jobs)}
    found: list[Result] = []
    try:
        for _, result in run_jobs(language_model, jobs, max_rows=max_rows, progress=progress, **scheduler_options):
            found.append(result)
    except Exception as error:
        error.results = Results(found)  # type: ignore[attr-defined]
        raise
    found.sort(key=lambda result: order[result.prompt_id, result.chain])
    return Results(found)
