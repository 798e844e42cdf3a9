"""Metropolis–Hastings on whole answers, exact for answers of variable length.

From Karan & Du, *Reasoning with Sampling*, arXiv 2510.14901. The move itself is in ``move.py``, the stages in
``staged.py``.

Three things save work without changing a single token of a chain, because every random number is keyed by what it is
for: *skip* – decoding starts at the first difference between proposal and current answer; *early_rejection* – U is
drawn first and a proposal is dropped once it cannot win; *prefetch* – the next moves are decoded as if those before
them were rejected, and redone after an acceptance (Brockwell 2006).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from fastpower.chains.chain import Chain
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Record
from fastpower.random import Purpose
from fastpower.samplers.cuts import CutLaw, EntropyJumpCut
from fastpower.samplers.move import Move, MoveKernel
from fastpower.samplers.staged import Refine, Staged, event
from fastpower.samplers.window import WindowKernel

# 1 / acceptance rate moves are made per wait, however many are under way: more than this is hardly ever used.
_MOST_AHEAD = 8


@dataclass(frozen=True)
class MetropolisHastings(Staged):
    """Exact Metropolis–Hastings for p^α.

    Attributes:
        maximise: Accept y iff log p(y) > log p(x) instead (the α → ∞ variant, "max swap"; its outcome is marked
            inexact).
        early_rejection: Lossless acceleration.
        prefetch: Moves under way at a time, 1 = none ahead; "auto" decodes ahead in rows that would otherwise be idle.
            Lossless, too.
        window: Tokens of a move that keeps the tail (``window.py``), 0 = no such moves.
        window_share: Share of those moves, < 1.
    """

    early_rejection: bool = True
    prefetch: int | str = "auto"
    maximise: bool = False
    window: int = 0
    window_share: float = 0.5
    method: ClassVar[str] = "mh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefetch != "auto" and (not isinstance(self.prefetch, int) or self.prefetch < 1):
            raise ValueError(
                f'prefetch must be at least 1 (1 = one move at a time), or "auto" (in idle rows), got {self.prefetch!r}'
            )
        if self.window < 0:
            raise ValueError(f"window must be ≥ 0 tokens (0 = no window moves), got {self.window}")
        if not 0.0 < self.window_share < 1.0:
            raise ValueError(
                f"window_share must lie in (0, 1), got {self.window_share}; window moves alone never change the length "
                "(window=0 makes none)"
            )

    def kernel(self, horizon: int) -> MoveKernel:
        """The move at one horizon."""
        alpha = self.target.alpha
        return MoveKernel(alpha, horizon, self.cut, (alpha,), 0, self.skip, self.early_rejection, self.maximise)

    def window_kernel(self, horizon: int) -> WindowKernel:
        """The move that keeps the tail."""
        alpha, window = self.target.alpha, self.window
        return WindowKernel(
            alpha, horizon, self.cut, (alpha,), 0, self.skip, self.early_rejection, self.maximise, window
        )

    def goes_ahead(self, chain: Chain, under_way: int, horizon: int) -> bool:
        """Whether to begin one more move beside those under way."""
        if isinstance(self.prefetch, int):
            return under_way < self.prefetch
        return under_way == 0 or (under_way < _MOST_AHEAD and chain.idle_rows(horizon) > 0)

    def refine(self, chain: Chain, x: Record, horizon: int, stage: int, trace: Trace) -> Refine:
        suffix, window = self.kernel(horizon), self.window_kernel(horizon)
        ahead: deque[tuple[MoveKernel, Move]] = deque()
        for i in range(self.moves):
            chain.partial = lambda x=x: self.outcome(chain, x, trace, complete=False)
            while len(ahead) < self.moves - i and self.goes_ahead(chain, len(ahead), horizon):
                labels = ("move", stage, i + len(ahead))
                windowed = self.window > 0 and chain.uniform(Purpose.KIND, *labels) < self.window_share
                kernel = window if windowed else suffix
                ahead.append((kernel, kernel.start(chain, x, *labels)))
            kernel, move = ahead.popleft()
            y, log_ratio = yield from kernel.finish(chain, x, move)
            accepted = move.cut is not None and y is not None and move.log_u < log_ratio  # no cut is no move
            chain.moved(accepted)
            if accepted and y is not None and y is not x:
                x = y
                for _, later in ahead:  # decoded for a state that is no more
                    later.cancel()
                ahead.clear()
            line = event(stage, horizon, move.cut, accepted, x)
            trace.append(line | {"window": self.window} if kernel is window else line)
        return x

    def outcome(self, chain: Chain, x: Record, trace: Trace, *, complete: bool = True) -> Outcome:
        return Outcome(x, list(trace), exact=self.cut.irreducible and not self.maximise, complete=complete)


@dataclass(frozen=True)
class EntropyCut(MetropolisHastings):
    """Entropy-Cut Metropolis–Hastings (Zhou, Mehrotra, Liu, arXiv 2605.30327).

    Cuts where the entropy jumps up, with the ratio of cut laws that keeps it exact.
    """

    cut: CutLaw = field(default_factory=EntropyJumpCut)
    method: ClassVar[str] = "ec_mh"
