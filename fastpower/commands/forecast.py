"""What an evaluation will take, before it is begun: tokens by method, rows that the cache has room for, and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastpower.evaluate.evaluation import Evaluation
from fastpower.measure.throughput import decode_rate
from fastpower.samplers import (
    BestOfN,
    ConditionalSMC,
    LowTemperature,
    MarginalSharpening,
    MultipleTry,
    ParallelTempering,
    ParticleMH,
    Plain,
    PowerSMC,
)
from fastpower.samplers.staged import Staged

if TYPE_CHECKING:
    from fastpower.language_model import LanguageModel

#: problems whose prompts are counted
_PROMPTS = 20


@dataclass(frozen=True)
class MethodForecast:
    """A method's share of an evaluation.

    Attributes:
        method: Its label.
        answers: That will be drawn.
        tokens: For one answer that fills the horizon (``tokens_of``); None where that cannot be said.
        hours: For all answers at the measured rate; None likewise.
    """

    method: str
    answers: int
    tokens: int | None
    hours: float | None


@dataclass(frozen=True)
class Forecast:
    """What an evaluation will take on this machine.

    Attributes:
        problems: Of the task.
        prompt: Tokens of the longest prompt among the first twenty problems.
        room: Tokens of K/V that the cache has free.
        rows: Answers of full length that fit beside each other, at most ``max_rows``.
        tokens_per_second: Of plain decoding with so many rows, measured.
        methods: In order.
    """

    problems: int
    prompt: int
    room: int
    rows: int
    tokens_per_second: float
    methods: Sequence[MethodForecast]

    @property
    def hours(self) -> float:
        """Of all methods that can be foretold, if every answer fills the horizon."""
        return sum(method.hours for method in self.methods if method.hours is not None)


def forecast(evaluation: Evaluation, model: LanguageModel, *, max_rows: int = 64, seconds: float = 3.0) -> Forecast:
    """Measure how fast ``model`` decodes here, and say what the evaluation takes.

    Args:
        evaluation: What is to be run.
        model: Loaded: that its weights fit has been seen.
        max_rows: Rows of one decode batch.
        seconds: For the measurement.

    Raises:
        ValueError: Not even one answer of full length fits into the cache or the model's context.
    """
    samplers = evaluation.samplers()
    horizon = max(sampler.target.horizon for sampler in samplers.values())
    jobs = [evaluation.job("", next(iter(samplers.values())), p, 0) for p in evaluation.problems[:_PROMPTS]]
    prompt = max(len(model.tokens(job.prompt)) for job in jobs)
    room, context = int(model.decoder.stats()["free_tokens"]), model.decoder.max_length
    if prompt + horizon > context:
        raise ValueError(
            f"max_new_tokens = {horizon} behind prompts of {prompt} tokens passes the model's context of {context}; "
            f"give at most {context - prompt}"
        )
    rows = min(max_rows, room // (prompt + horizon))
    if rows < 1:
        raise ValueError(
            f"an answer of full length takes {prompt + horizon} tokens of K/V and {room} are free: give a smaller "
            "max_new_tokens, or a larger cache with --cache-tokens"
        )
    rate = decode_rate(model.decoder, rows, prompt=min(prompt, 64), seconds=seconds).tokens_per_second
    answers = len(evaluation.problems) * evaluation.chains
    methods = []
    for method in evaluation.methods:
        tokens = tokens_of(samplers[method.label])
        hours = None if tokens is None else tokens * answers / rate / 3600
        methods.append(MethodForecast(method.label, answers, tokens, hours))
    return Forecast(len(evaluation.problems), prompt, room, rows, rate, methods)


def tokens_of(sampler: Any) -> int | None:
    """Tokens that a sampler draws for an answer that fills the horizon, with every move cutting in the middle.

    Answers that end sooner, early rejection and skipping make it less.

    Returns:
        None for samplers whose work depends on more.

    Examples:
        >>> from fastpower import PowerTarget
        >>> from fastpower.samplers import MetropolisHastings
        >>> tokens_of(PowerSMC(PowerTarget(4.0, 100), particles=16))
        1600
        >>> tokens_of(MetropolisHastings(PowerTarget(4.0, 100), block=50, moves=2))
        250
    """
    horizon: int = sampler.target.horizon
    if isinstance(sampler, (Plain, LowTemperature)):
        return horizon
    if isinstance(sampler, BestOfN):
        return sampler.n * horizon if sampler.budget is None else sampler.budget + horizon
    if isinstance(sampler, MarginalSharpening):
        return sampler.particles * sampler.together * horizon
    if isinstance(sampler, PowerSMC):
        moved = sampler.moves * sum(range(sampler.block, horizon, sampler.block)) // 2
        return sampler.islands * sampler.particles * (horizon + moved)
    if isinstance(sampler, ParticleMH):
        return (sampler.moves + 1) * sampler.particles * horizon
    if isinstance(sampler, ConditionalSMC):
        return (sampler.moves * (sampler.particles - 1) + 1) * horizon
    if isinstance(sampler, (Staged, ParallelTempering)):
        halves = sum(sampler.target.stages(sampler.block)) * sampler.moves // 2
        tries = sampler.tries if isinstance(sampler, MultipleTry) else 1
        rungs = len(sampler.rungs) if isinstance(sampler, ParallelTempering) else 1
        return rungs * (horizon + halves * tries)
    return None
