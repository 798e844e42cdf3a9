"""Would delayed acceptance pay where tails are kept? Acceptance and tail tokens scored, against early rejection.

python -m bench.bench_delayed [--model [PATH]] [--length 128] [--window 8] [--moves 200] [--chains 4]

Delayed acceptance takes a window move in two steps: a₁ = min(1, r₁) from the window and the first s tokens of the tail,
then a₂ = min(1, r₂) from the rest and the cut law, r₁ r₂ = r. It is exact, scores the rest for those only that pass a₁,
and accepts less: a₁ a₂ ≤ min(1, r). Early rejection accepts min(1, r) and scores what its bound asks for. Both are
computed from the same moves of the same chains (in their second half), averaged over U.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.bench_entropy_scaling import ALPHA, PROMPT, PROMPTS, Decisions
from fastpower.chains.job import Job
from fastpower.samplers import MetropolisHastings
from fastpower.samplers.cuts import CutLaw, EntropyThresholdCut
from fastpower.samplers.window import WindowKernel
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget

U = np.log((np.arange(200) + 0.5) / 200)
PIECES = (16, 128, 1024)  # as ``samplers/window.py`` scores them


@dataclass
class Seen:
    """One window move: log r of the window, of each tail token (n,), of the cut law, and the tail's log p of x (n,)."""

    window: float
    tail: np.ndarray
    law: float
    old: np.ndarray


SEEN: list[Seen] = []


@dataclass(frozen=True, slots=True)
class Watched(WindowKernel):
    """Writes down what its moves were made of."""

    def log_acceptance(self, x, y, plan):
        if plan.difference is not None:
            end, inside = self.end(plan.cut), slice(plan.difference + 1, self.end(plan.cut))
            law = self.cut.log_probability(self.cuttable(y), plan.cut, self.horizon)
            law -= self.cut.log_probability(self.cuttable(x), plan.cut, self.horizon)
            window = float(y.logz[inside, 0].sum() - x.logz[inside, 0].sum())
            SEEN.append(Seen(window, self.alpha * (y.logp - x.logp)[end:], law, self.alpha * x.logp[end:]))
        return WindowKernel.log_acceptance(self, x, y, plan)


@dataclass(frozen=True)
class Sampler(MetropolisHastings):
    """Everything is scored, so that everything can be compared."""

    def window_kernel(self, horizon):
        return Watched(self.target.alpha, horizon, self.cut, (self.target.alpha,), window=self.window, **OFF)


OFF = {"early_rejection": False}


def early(seen: Seen) -> tuple[float, float]:
    """Acceptance, and tail tokens scored."""
    total = seen.window + float(seen.tail.sum()) + seen.law
    scored, n, s = np.zeros(len(U)), len(seen.tail), 0
    alive = np.ones(len(U), bool)
    for piece in PIECES:
        bound = seen.window + float(seen.tail[:s].sum()) - float(seen.old[s:].sum())
        alive &= bound >= U
        step = min(piece, n - s)
        scored += alive * step
        s += step
    return min(1.0, float(np.exp(min(0.0, total)))), float(scored.mean())


def delayed(seen: Seen, s: int) -> tuple[float, float]:
    """The same of delayed acceptance after ``s`` tokens of the tail."""
    first = min(1.0, float(np.exp(min(0.0, seen.window + float(seen.tail[:s].sum())))))
    second = min(1.0, float(np.exp(min(0.0, float(seen.tail[s:].sum()) + seen.law))))
    return first * second, min(s, len(seen.tail)) + first * max(len(seen.tail) - s, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="?", const="", default=None, help="a model instead of the toy")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--chains", type=int, default=4)
    args = parser.parse_args()
    cut: CutLaw = EntropyThresholdCut()
    sampler = Sampler(
        PowerTarget(ALPHA, args.length), args.length, args.moves, cut, window=args.window, window_share=0.95, prefetch=1
    )
    model: Any = None
    if args.model is not None:
        import fastpower

        model = fastpower.load(args.model or None, dtype="bfloat16")
    kept: list[Seen] = []
    for chain in range(args.chains):
        decoder, prompt = (Decisions(args.length), PROMPT) if model is None else (model.decoder, None)
        prompt = prompt or model.tokens([{"role": "user", "content": PROMPTS[chain % len(PROMPTS)]}])
        SEEN.clear()
        [finished] = Scheduler(decoder, guess=0).run([Job(sampler, prompt, chain)])
        assert finished.error is None, finished.error
        kept += SEEN[len(SEEN) // 2 :]
    tail = np.mean([len(seen.tail) for seen in kept])
    print(f"{len(kept)} windows of {args.window} that differ, tails of {tail:.0f} tokens on average")
    print("way                        accepted  tail tokens scored  scored per accepted")
    ways = {"early rejection": early, **{f"delayed after {s}": lambda seen, s=s: delayed(seen, s) for s in (4, 16, 64)}}
    for name, way in ways.items():
        accepted, scored = np.mean([way(seen) for seen in kept], axis=0)
        print(f"{name:<26} {accepted:8.3f} {scored:19.1f} {scored / accepted:20.1f}")


if __name__ == "__main__":
    main()
