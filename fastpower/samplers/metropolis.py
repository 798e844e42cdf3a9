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
from typing import Any, ClassVar

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
        early_rejection: Drop a move that cannot be accepted any more. Lossless.
        prefetch: Moves under way at a time, 1 = none ahead; "auto" decodes ahead in rows that would otherwise be idle.
            Lossless, too.
        maximise: Accept y iff log p(y) > log p(x) instead (the α → ∞ variant, "max swap"; its outcome is marked
            inexact).
        window: Tokens of a move that keeps the tail (``window.py``), 0 = no such moves.
        window_share: Share of those moves, < 1; "auto" gives the others as many sequential steps as they take, so that
            the cost of a move does not grow with the horizon.
    """

    early_rejection: bool = True
    prefetch: int | str = "auto"
    maximise: bool = False
    window: int = 0
    window_share: float | str = 0.5
    method: ClassVar[str] = "mh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefetch != "auto" and (not isinstance(self.prefetch, int) or self.prefetch < 1):
            raise ValueError(
                f'prefetch must be at least 1 (1 = one move at a time), or "auto" (in idle rows), got {self.prefetch!r}'
            )
        if self.window < 0:
            raise ValueError(f"window must be ≥ 0 tokens (0 = no window moves), got {self.window}")
        share = self.window_share
        if share != "auto" and (isinstance(share, str) or not 0.0 < share < 1.0):
            raise ValueError(
                f"window_share must lie in (0, 1), got {share!r}; window moves alone never change the length "
                '(window=0 makes none, "auto" spends as many steps on them as on the others)'
            )

    @property
    def most_tries(self) -> int:
        """The most that ``tries_at`` says."""
        return 1

    def tries_at(self, x: Record, cut: int) -> int:
        """K for a cut; may depend on what precedes it and on the entropy there, on nothing after it."""
        return 1

    def kernel(self, horizon: int) -> MoveKernel:
        """The move at one horizon."""
        return MoveKernel(self.target.alpha, horizon, **self._settings(horizon))

    def window_kernel(self, horizon: int) -> WindowKernel:
        """The move that keeps the tail."""
        return WindowKernel(self.target.alpha, horizon, window=self.window, **self._settings(horizon))

    def _settings(self, horizon: int) -> dict[str, Any]:
        return {
            "cut": self.cut,
            "exponents": (self.target.alpha,),
            "skip": self.skip,
            "early_rejection": self.early_rejection,
            "maximise": self.maximise,
            "tries": self.tries_at,
            "potential": self.target.potential_at(horizon),
        }

    def share_of_windows(self, horizon: int) -> float:
        """The probability that a move at this horizon keeps the tail; it must not depend on the state."""
        if self.window == 0:
            return 0.0
        if not isinstance(self.window_share, str):
            return self.window_share
        # A window costs w decoded tokens and a forward over the tail, a suffix half the horizon on average.
        window, suffix = self.window + 1.0, horizon / 2.0
        return suffix / (suffix + window) if horizon > self.window else 0.0

    def goes_ahead(self, chain: Chain, under_way: int, horizon: int) -> bool:
        """Whether to begin one more move beside those under way."""
        if isinstance(self.prefetch, int):
            return under_way < self.prefetch
        return under_way == 0 or (under_way < _MOST_AHEAD and chain.idle_rows(horizon) >= self.most_tries)

    def refine(self, chain: Chain, x: Record, horizon: int, stage: int, trace: Trace) -> Refine:
        suffix, window, share = self.kernel(horizon), self.window_kernel(horizon), self.share_of_windows(horizon)
        ahead: deque[tuple[MoveKernel, Move]] = deque()
        for i in range(self.moves):
            chain.partial = lambda x=x: self.outcome(chain, x, trace, complete=False)
            while len(ahead) < self.moves - i and self.goes_ahead(chain, len(ahead), horizon):
                labels = ("move", stage, i + len(ahead))
                windowed = share > 0.0 and chain.uniform(Purpose.KIND, *labels) < share
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
