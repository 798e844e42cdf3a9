"""Metropolis–Hastings on whole answers (Karan & Du, *Reasoning with Sampling*, arXiv 2510.14901), exact for answers of
variable length. The move itself is in ``move.py``, the stages in ``staged.py``.

Three things save work without changing a single token of a chain, because every random number is keyed by what it is
for: *skip* – decoding starts at the first difference between proposal and current answer; *early_rejection* – U is
drawn first and a proposal is dropped once it cannot win; *prefetch* – the next moves are decoded as if those before
them were rejected, and redone after an acceptance (Brockwell 2006).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from fastpower.chain import Chain
from fastpower.cuts import CutLaw, EntropyJumpCut
from fastpower.outcome import Outcome
from fastpower.record import Record
from fastpower.samplers.move import Move, MoveKernel
from fastpower.samplers.staged import Refine, Staged, Trace, event


@dataclass(frozen=True)
class MetropolisHastings(Staged):
    """Exact Metropolis–Hastings for p^α.

    maximise: accept y iff log p(y) > log p(x) instead (the α → ∞ variant, "max swap"; its outcome is marked inexact).
    early_rejection, prefetch (moves decoded ahead, 1 = none): lossless acceleration.
    """

    early_rejection: bool = True
    prefetch: int = 1
    maximise: bool = False
    method: ClassVar[str] = "mh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefetch < 1:
            raise ValueError(f"prefetch must be at least 1 (1 = one move at a time), got {self.prefetch}")

    def kernel(self, horizon: int) -> MoveKernel:
        """The move at one horizon."""
        alpha = self.target.alpha
        return MoveKernel(alpha, horizon, self.cut, (alpha,), 0, self.skip, self.early_rejection, self.maximise)

    def refine(self, chain: Chain, x: Record, horizon: int, stage: int, trace: Trace) -> Refine:
        kernel = self.kernel(horizon)
        ahead: deque[Move] = deque()
        for i in range(self.moves):
            chain.partial = lambda x=x: self.outcome(chain, x, trace, complete=False)
            while len(ahead) < min(self.prefetch, self.moves - i):
                ahead.append(kernel.start(chain, x, "move", stage, i + len(ahead)))
            move = ahead.popleft()
            y, log_ratio = yield from kernel.finish(chain, x, move)
            accepted = y is not None and move.log_u < log_ratio
            chain.moved(accepted)
            if accepted and y is not None and y is not x:
                x = y
                for later in ahead:  # decoded for a state that is no more
                    later.cancel()
                ahead.clear()
            trace.append(event(stage, horizon, move.cut, accepted, x))
        return x

    def outcome(self, chain: Chain, x: Record, trace: Trace, *, complete: bool = True) -> Outcome:
        return Outcome(x, list(trace), exact=not self.maximise, complete=complete)


@dataclass(frozen=True)
class EntropyCut(MetropolisHastings):
    """Entropy-Cut Metropolis–Hastings (Zhou, Mehrotra, Liu, arXiv 2605.30327): cuts where the entropy jumps up, with
    the ratio of cut laws that keeps it exact."""

    cut: CutLaw = field(default_factory=EntropyJumpCut)
    method: ClassVar[str] = "ec_mh"
