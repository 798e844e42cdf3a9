"""Does the cost of a move follow entropy, or length? Tokens decoded and sequential forwards per move, by length.

python -m bench.bench_entropy_scaling [--lengths 64 128 256 512 1024] [--chains 8] [--moves 40] [--plot FILE.svg]
python -m bench.bench_entropy_scaling --model [PATH] [--lengths 32 64 128] [--chains 2] [--moves 8]

The toy has 8 decision points, 10 nats under p^α, whatever its length: choices between 6 tokens, with certain tokens
between. The likeliest choice leaves the next one open and the second settles it, so that p^α is far from a low
temperature. One chain alone at a time, every move waiting for the one before (prefetch=1), no guesses; steps that
decode and forwards that score tails are counted alike, and the first answer's are left out. Counts, not times.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastpower.chains.job import Job
from fastpower.decoders.toy import ToyDecoder, _Node
from fastpower.random import derive, uniforms
from fastpower.samplers import EntropyCut, EntropyGuided, MetropolisHastings, MultipleTry
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget

ALPHA, DECISIONS, CHOICES = 4.0, 8, 6
LEADS = (0.0, 0.3, 0.9, 1.2, 1.6, 2.0)  # how far a choice's logit is behind the first one's, up to scale
NATS = (1.75, 0.7, 1.75, 1.75, 0.7, 0.7)  # entropy of a decision after each choice of the one before
PROMPT = (0,)
PROMPTS = ("Write a short story about a lighthouse keeper who finds a letter.", "Explain how rain forms, step by step.")


class Decisions(ToyDecoder):
    """The toy: one choice at the beginning of each eighth of the answer, certain tokens between."""

    def __init__(self, length: int) -> None:
        super().__init__(lambda prefix: [0.0] * (CHOICES + 1), CHOICES + 1, [])
        self.stretch = length // DECISIONS
        self.certain = np.full(CHOICES + 1, -40.0, np.float32)
        self.certain[CHOICES] = 0.0
        self.choices = {(k, c): choice(k, c) for k in range(DECISIONS) for c in range(CHOICES)}

    def row(self, node: _Node) -> np.ndarray:
        t = node.depth - len(PROMPT)
        if t % self.stretch:
            return self.certain
        k = min(t // self.stretch, DECISIONS - 1)
        before = node.ancestor(node.depth - self.stretch + 1).token if t else 0
        return self.choices[k, min(before, CHOICES - 1)]


def choice(k: int, before: int) -> np.ndarray:
    """Logits of decision k after a choice: falling, with some noise, at the scale that gives them their entropy."""
    noise = uniforms(derive(5, k, before), 0, CHOICES, 0)  # type: ignore[arg-type]
    z = -np.array(LEADS) - 0.1 * noise
    low, high = 0.0, 50.0
    for _ in range(60):
        scale = (low + high) / 2.0
        logp = scale * z - np.logaddexp.reduce(scale * z)
        low, high = (scale, high) if -(np.exp(logp) * logp).sum() > NATS[before] else (low, scale)
    return np.append(scale * z, -40.0).astype(np.float32)


def expected_logp(alpha: float) -> float:
    """E[log p] under p^alpha, by the chain of decisions: d log Z / d alpha."""

    def log_z(a: float) -> float:
        future = np.zeros(CHOICES)
        for k in range(DECISIONS - 1, -1, -1):
            rows = np.array([choice(k, c)[:CHOICES] for c in range(CHOICES)], float)
            rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
            future = np.logaddexp.reduce(a * rows + future, axis=1)
        return float(future[0])

    return (log_z(alpha + 1e-4) - log_z(alpha - 1e-4)) / 2e-4


def samplers(target: PowerTarget, moves: int) -> dict[str, Any]:
    """At their defaults, but for one stage only and nothing ahead."""
    settings = {"block": target.horizon, "moves": moves, "prefetch": 1}
    return {
        "mh": MetropolisHastings(target, **settings),
        "ec_mh": EntropyCut(target, **settings),
        "mtm": MultipleTry(target, **settings),
        "egps": EntropyGuided(target, **settings),
    }


@dataclass
class Chain:
    """What one chain did after its first answer. (moves,) each: sequential forwards so far, log p.

    initial: log p of the first answer.
    """

    forwards: np.ndarray
    logp: np.ndarray
    decoded: int
    fed: int
    accepted: int
    initial: float


def run(decoder: Any, prompt: Any, sampler: Any, seed: int) -> Chain:
    """One chain, alone."""
    made: list[int] = []  # sequential forwards after which each move was finished
    first = [0, 0, 0]

    def look(scheduler: Scheduler) -> None:
        totals = scheduler.totals
        live = scheduler.live[0].chain if scheduler.live else None
        if live is not None and live.partial is None:
            first[:] = [totals.steps + totals.scorings, totals.tokens, live.counts.decoded_tokens]
        elif live is not None:
            made.extend([totals.steps + totals.scorings] * (live.counts.moves - len(made)))

    scheduler = Scheduler(decoder, on_step=look, guess=0)
    [finished] = scheduler.run([Job(sampler, prompt, seed, 0, seed)])
    assert finished.error is None, finished.error
    totals, counts, trace = scheduler.totals, finished.chain.counts, finished.outcome.trace
    made.extend([totals.steps + totals.scorings] * (len(trace) - len(made)))
    start, fed, drawn = (count + 1 for count in first)  # the first answer's last step is not seen in time
    logp = np.array([line["logp"] for line in trace])
    return Chain(
        np.array(made) - start,
        logp,
        counts.decoded_tokens - drawn,
        totals.tokens - fed,
        counts.accepted,
        finished.outcome.diagnostics["initial_logp"],
    )


def per_move(chains: list[Chain]) -> dict[str, float]:
    """Averages over all moves of all chains."""
    moves = sum(len(chain.logp) for chain in chains)
    return {
        "decoded": sum(chain.decoded for chain in chains) / moves,
        "forwards": sum(chain.forwards[-1] for chain in chains) / moves,
        "fed": sum(chain.fed for chain in chains) / moves,
        "accepted": sum(chain.accepted for chain in chains) / moves,
        "initial": float(np.mean([chain.initial for chain in chains])),
        "logp": float(np.mean([chain.logp[-1] for chain in chains])),
    }


def reached(chains: list[Chain], logp: float) -> float:
    """Sequential forwards, on average, after which the chains' mean log p is at least ``logp``; inf if it never is."""
    most = min(len(chain.logp) for chain in chains)
    mean = np.mean([chain.logp[:most] for chain in chains], axis=0)
    cost = np.mean([chain.forwards[:most] for chain in chains], axis=0)
    there = np.flatnonzero(mean >= logp)
    return float(max(cost[there[0]], 0.0)) if len(there) else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="?", const="", default=None, help="a model instead of the toy")
    parser.add_argument("--lengths", type=int, nargs="+", default=None)
    parser.add_argument("--chains", type=int, default=None)
    parser.add_argument("--moves", type=int, default=None, help="of mh; the others make as many")
    parser.add_argument("--more", type=int, default=6, help="egps makes so many times more moves, to compare log p")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE")
    args = parser.parse_args()
    toy = args.model is None
    lengths = args.lengths or ([64, 128, 256, 512, 1024] if toy else [32, 64, 128])
    chains, moves = args.chains or (16 if toy else 2), args.moves or (40 if toy else 8)
    model = None
    if not toy:
        import fastpower

        model = fastpower.load(args.model or None, dtype="bfloat16")
    table: dict[str, list[dict[str, float]]] = {}
    print(f"{chains} chains, {moves} moves (egps {moves * args.more}), per move:")
    print("    T method  decoded  forwards  tokens fed  accepted   log p at first, at last  forwards to mh's  of mh's")
    for length in lengths:
        target, goal, own = PowerTarget(ALPHA, length), 0.0, 0.0
        for name, sampler in samplers(target, moves).items():
            if name == "egps":
                sampler = samplers(target, moves * args.more)[name]
            found = []
            for chain in range(chains):
                decoder = Decisions(length) if model is None else model.decoder
                prompt = (
                    PROMPT
                    if model is None
                    else model.tokens([{"role": "user", "content": PROMPTS[chain % len(PROMPTS)]}])
                )
                found.append(run(decoder, prompt, sampler, chain))
            row = per_move(found)
            if name == "mh":
                goal, own = row["logp"], float(np.mean([chain.forwards[-1] for chain in found]))
            table.setdefault(name, []).append(row)
            there = reached(found, goal)
            print(
                f"{length:5} {name:<6} {row['decoded']:8.1f} {row['forwards']:9.1f} {row['fed']:11.1f} "
                f"{row['accepted']:9.2f} {row['initial']:15.2f} {row['logp']:11.2f} {there:23.0f} {there / own:8.2f}",
                flush=True,
            )
    if toy:
        print(f"E[log p] under p^{ALPHA:g} {expected_logp(ALPHA):.2f}, under p {expected_logp(1.0):.2f}")
    for what in ("decoded", "forwards"):
        growth = {name: rows[-1][what] / rows[0][what] for name, rows in table.items()}
        print(f"{what} per move, T = {lengths[-1]} against {lengths[0]}: {growth}")
    if args.plot is not None:
        plot(lengths, table, args.plot)


def plot(lengths: list[int], table: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Both counts over length, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "fastpower"
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained", sharex=True)
    for axis, what, title in zip(
        axes, ("forwards", "decoded"), ("sequential forwards per move", "tokens decoded per move"), strict=True
    ):
        for (name, rows), style in zip(table.items(), ("o-", "s--", "^:", "D-"), strict=False):
            axis.plot(lengths, [row[what] for row in rows], style, label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel="length of the answer, tokens")
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
