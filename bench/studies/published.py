"""The published procedure of Metropolis–Hastings as a labelled baseline: its law, by our decoder. **Not exact.**

python -m bench.studies.published --config bench/studies/published_05b.yaml --model FILE --data FILE --out RUN

is ``fastpower eval`` with one more method, ``published_mh``. What differs from ``mh`` is what the code that came with
Karan & Du (arXiv 2510.14901) does, told in our own words:

- *truncated comparison*: a proposal that ends early is compared with only as many tokens of the current answer as it
  has itself, so that what the current answer says behind that is left out of the ratio;
- *no longer proposals*: a proposal may be as long as the current answer and no longer, and there is no ratio of the
  cut laws; a stage adds a block to whatever length the answer has, so that one may be left unfinished in the end;
- *early return*: as soon as an answer has ended at the end of a stage, it is returned, without the later stages' moves.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import ClassVar

from fastpower.chains.chain import Chain, Run
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Record
from fastpower.random import Purpose
from fastpower.samplers import METHODS
from fastpower.samplers.staged import event, extend
from fastpower.target import PowerTarget


@dataclass(frozen=True)
class PublishedProcedure:
    """block: tokens per stage. moves: N per stage. Its results are never marked exact."""

    target: PowerTarget = field(default_factory=PowerTarget)
    block: int = 192
    moves: int = 10
    method: ClassVar[str] = "published_mh"

    def run(self, chain: Chain) -> Run:
        """One run, which returns at the first stage whose moves leave an ended answer."""
        alpha, trace = self.target.alpha, Trace()
        x = Record.empty(chain.prompt)
        for stage, horizon in enumerate(self.target.stages(self.block)):
            x = yield from extend(chain, x, min(len(x) + self.block, self.target.horizon), alpha, stage)
            for i in range(self.moves):
                labels = ("move", stage, i)
                cut = int(chain.uniform(Purpose.CUT, *labels) * len(x))
                kept = x.first(cut)
                suffix = yield chain.onward(kept, len(x), chain.key(*labels), alpha, (alpha,))
                y = kept.spliced(cut, suffix)
                log_ratio = float(y.logz[cut:].sum() - x.logz[cut : len(y)].sum())
                accepted = math.log(chain.uniform(Purpose.ACCEPT, *labels)) < log_ratio
                chain.moved(accepted)
                x = y if accepted else x
                trace.append(event(stage, horizon, cut, accepted, x))
            if x.ended:
                break
        return Outcome(x, trace, exact=False)


def register() -> None:
    """Make ``published_mh`` a method of this process."""
    METHODS[PublishedProcedure.method] = PublishedProcedure


def main() -> int:
    from fastpower.cli import main as command

    register()
    return command(["eval", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
