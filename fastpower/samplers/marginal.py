"""Marginal sharpening: P(a)^K of the answer itself, P(a) = Σ_z p(z) p(a | z) over the traces that lead to it.

p^α splits the mass of one answer over its traces; this adds it up first. A group is K traces z_1 … z_K, drawn from the
model up to a delimiter, and one answer that all of them decode together. Token t is drawn from

    r_t(v) ∝ Π_k p(v | z_k, a_<t),    log w += log Σ_v Π_k p(v | z_k, a_<t),

so that a group's weight times the law of its answer is Π_k p(a | z_k), whose mean over traces is P(a)^K. Without the
weight the answer's law would be a product renormalised token by token, which is something else. Groups are a
population: they are resampled by their weights, and E[Ẑ 1{a}] = P(a)^K for every number of groups.

Traces that end, or reach their share of the horizon, without the delimiter have no answer: P counts those that have.
Of M = N K traces R reach it; they make ⌊R / K⌋ groups, and Ẑ is multiplied by R (R − 1) … / (M (M − 1) …), K factors
each, the unbiased estimate of what the K-th power of that share is.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from fastpower.chains.chain import Chain, Run
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Branch, Pool, Pooled, Rollout, Score
from fastpower.random import Purpose, select
from fastpower.samplers.particles import ancestors, effective_size
from fastpower.samplers.smc import check_population
from fastpower.target import PowerTarget


@dataclass(frozen=True)
class Group:
    """K traces and the answer that they have decoded together so far."""

    traces: tuple[Record, ...]
    branches: tuple[Branch, ...]  #: of each trace, the answer's tokens behind it
    answer: tuple[int, ...] = ()
    ended: bool = False


@dataclass(frozen=True)
class MarginalSharpening:
    """Sharpen the law of answers, whatever traces lead to them: target P(a)^K, consistent in the number of groups.

    Attributes:
        target: Its alpha is K, a whole number: K traces decode one answer together. Its horizon holds trace, delimiter
            and answer.
        delimiter: Text with which a trace ends and the answer begins ("####", "</think>").
        particles: N, groups of K traces.
        answer_tokens: Most tokens of an answer; 0: a quarter of the horizon, at most 32. Traces have the others.
        threshold: Resample groups when ESS < threshold · N, in (0, 1].
        block: Answer tokens between checks.
        scheme: As in ``PowerSMC``.

    Raises:
        ValueError: Alpha is no whole number ≥ 1, or another setting is out of range.
    """

    target: PowerTarget = field(default_factory=lambda: PowerTarget(2.0))
    delimiter: str = "\\boxed{"
    particles: int = 8
    answer_tokens: int = 0
    threshold: float = 0.5
    block: int = 4
    scheme: str = "systematic"
    method: ClassVar[str] = "marginal"

    def __post_init__(self) -> None:
        check_population(self.particles, self.threshold, self.block, self.scheme)
        if self.target.alpha < 1 or self.target.alpha != int(self.target.alpha):
            raise ValueError(
                f"alpha must be a whole number ≥ 1 for {self.method} (so many traces decode an answer together), got "
                f"{self.target.alpha}; use 2 or 3, or reweight answers for other exponents"
            )
        if not self.delimiter:
            raise ValueError("delimiter must be a text of at least one character, such as '####', got ''")
        if self.target.schedule:
            raise ValueError(f"{self.method} has no schedule of exponents, got {self.target.schedule}")
        if self.answer_tokens < 0 or self.longest >= self.target.horizon:
            raise ValueError(
                f"answer_tokens must be ≥ 0 and leave a token for the trace, got {self.answer_tokens} of a horizon of "
                f"{self.target.horizon}"
            )

    @property
    def together(self) -> int:
        """K."""
        return int(self.target.alpha)

    @property
    def longest(self) -> int:
        """The most tokens of an answer."""
        return self.answer_tokens or max(1, min(32, self.target.horizon // 4))

    def run(self, chain: Chain) -> Run:
        """Traces, groups, one answer."""
        traces = yield from self._traces(chain)
        reached = [trace for trace in traces if self._reached(chain, trace)]
        facts: dict[str, Any] = {"law": "consistent", "together": self.together, "traces": len(traces)}
        facts["reached"] = len(reached)
        k, lines = self.together, Trace()
        groups = [
            Group(tuple(own), tuple(trace.branch for trace in own))
            for own in (reached[i : i + k] for i in range(0, len(reached) - k + 1, k))
        ]
        if not groups:
            return self._without(traces[0], lines, facts, "delimiter not reached")
        share = sum(math.log((len(reached) - j) / (len(traces) - j)) for j in range(k))
        groups, weights, log_z = yield from self._answers(chain, groups, lines)
        top = float(np.logaddexp.reduce(weights))
        if top == -math.inf:
            return self._without(traces[0], lines, facts, "the traces of no group have an answer in common")
        group = groups[select(np.exp(weights - top), chain.uniform(Purpose.ANSWER, "group"))]
        trace = group.traces[int(chain.uniform(Purpose.SELECT, "trace") * k)]  # given the group all are alike
        facts |= {"status": "answered", "log_z": share + log_z, "ess": effective_size(weights), "groups": len(groups)}
        facts["answer"] = list(group.answer)
        scored = yield Score(trace.branch, len(trace.branch), group.answer, (self.target.alpha,))
        return Outcome(trace.followed_by(list(group.answer), scored, group.ended), lines, facts, exact=False)

    def _without(self, trace: Record, lines: Trace, facts: dict[str, Any], why: str) -> Outcome:
        """No answer: the first trace, and why."""
        return Outcome(trace, lines, facts | {"status": why, "log_z": None}, exact=False)

    def _traces(self, chain: Chain) -> Generator[Any, Any, list[Record]]:
        """N K traces from the model, each up to the delimiter, its end or its share of the horizon."""
        alpha, most = (self.target.alpha,), self.target.horizon - self.longest
        until = (self.delimiter, *self.target.stop)
        count = self.particles * self.together
        suffixes = yield [
            Rollout(chain.prompt, chain.prompt_length, most, chain.key("trace", i), 1.0, alpha, until=until)
            for i in range(count)
        ]
        empty = Record.empty(chain.prompt)
        return [replace(empty.spliced(0, suffix), ended=suffix.tokens[-1] in chain.eos_ids) for suffix in suffixes]

    def _reached(self, chain: Chain, trace: Record) -> bool:
        """Whether a trace ends with the delimiter, and with nothing that ends an answer."""
        if trace.tokens[-1] in chain.eos_ids or (chain.stopping is not None and chain.stopping(trace.tokens)):
            return False
        delimited = chain.stopping_at((self.delimiter,))
        return delimited is not None and delimited(trace.tokens)

    def _answers(
        self, chain: Chain, groups: list[Group], lines: Trace
    ) -> Generator[Any, Any, tuple[list[Group], Array, float]]:
        """Groups with their whole answers, log-weights since the last resampling, and log Ẑ of all."""
        n, evidence = len(groups), 0.0
        weights = np.zeros(n)
        for t in range(self.longest):
            alive = [i for i, group in enumerate(groups) if not group.ended and weights[i] > -math.inf]
            if not alive:
                break
            drawn = yield [Pool(groups[i].branches, chain.key("answer", i), t) for i in alive]
            for i, token in zip(alive, drawn, strict=True):
                weights[i] += self._gain(token)
                groups[i] = self._longer(chain, groups[i], token)
            total, ess = float(np.logaddexp.reduce(weights)), effective_size(weights)
            last = t + 1 == self.longest
            resampled = (t + 1) % self.block == 0 and not last and 0 < ess < self.threshold * n
            lines.append({"position": t + 1, "ess": ess, "alive": len(alive), "resampled": resampled})
            if resampled:
                evidence += total - math.log(n)
                chosen = ancestors(weights, self.scheme, chain.key("resample"), t)
                groups, weights = [groups[i] for i in chosen], np.zeros(n)
                lines[-1] |= {"ancestors": chosen, "unique_ancestors": len(set(chosen))}
        return groups, weights, evidence + float(np.logaddexp.reduce(weights)) - math.log(n)

    def _gain(self, token: Pooled) -> float:
        """What a draw adds to a group's log-weight."""
        return token.log_mass if token.token >= 0 else -math.inf

    def _longer(self, chain: Chain, group: Group, token: Pooled) -> Group:
        """A group with one more token."""
        if token.token < 0:
            return group
        answer = (*group.answer, token.token)
        ended = token.token in chain.eos_ids or (chain.stopping is not None and chain.stopping(answer))
        return replace(group, branches=token.branches, answer=answer, ended=ended)
