"""Entropy-guided power sampling (EGPS; Guo et al., *Sample Where You Struggle*, arXiv 2606.09926).

Work goes where the model is undecided: warm-up stages whose block is nearly deterministic get no moves; cuts are drawn
around decision points, with the ratio that keeps them exact; several tries are made at decision points and one
elsewhere; and most moves redraw a window and keep what follows, so that their cost does not grow with the answer. Only
warm-up stages are ever skipped: skipping that depends on the state is not invariant at the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fastpower.chains.chain import Chain
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Record
from fastpower.samplers.cuts import CutLaw, EntropyThresholdCut
from fastpower.samplers.multiple_try import MultipleTry


class _OwnThreshold(EntropyThresholdCut):
    """Stands for a cut law that was not given."""


@dataclass(frozen=True)
class EntropyGuided(MultipleTry):
    """Entropy-guided power sampling (Guo et al., arXiv 2606.09926).

    Attributes:
        threshold: Entropy in nats from which a position is a decision point: there a move has ``tries`` tries, and
            cuts go there, unless ``cut`` says otherwise.
        neighbourhood: Tokens around a decision point where cuts go as well, unless ``cut`` says otherwise.
        block_threshold: A warm-up block whose mean entropy is below gets no moves.
        window: Tokens of a move that keeps the tail; 0 redraws to the end, always.
    """

    cut: CutLaw = field(default_factory=_OwnThreshold)
    threshold: float = 0.5
    neighbourhood: int = 2
    block_threshold: float = 0.1
    window: int = 8
    window_share: float | str = "auto"
    method: ClassVar[str] = "egps"

    def __post_init__(self) -> None:
        for name in ("threshold", "block_threshold"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be an entropy ≥ 0 nats, got {getattr(self, name)}")
        if self.neighbourhood < 0:
            raise ValueError(f"neighbourhood must be ≥ 0 tokens, got {self.neighbourhood}")
        if isinstance(self.cut, _OwnThreshold):  # cuts go to the decision points that the tries go to
            object.__setattr__(self, "cut", EntropyThresholdCut(self.threshold, self.neighbourhood))
        super().__post_init__()

    def worth_refining(self, x: Record, begin: int) -> bool:
        return len(x) > begin and float(x.entropy[begin:].mean()) >= self.block_threshold

    def tries_at(self, x: Record, cut: int) -> int:
        return self.tries if x.entropy[cut] >= self.threshold else 1

    def outcome(self, chain: Chain, x: Record, trace: Trace, *, complete: bool = True) -> Outcome:
        mass = float(x.entropy.sum())
        diagnostics = {
            "entropy_mass": mass,
            "decision_points": int((x.entropy >= self.threshold).sum()),
            "decoded_tokens_per_nat": chain.counts.decoded_tokens / mass if mass > 0 else None,
        }
        return Outcome(x, list(trace), diagnostics, exact=self.cut.irreducible, complete=complete)
