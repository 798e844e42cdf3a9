"""Does decoding moves ahead pay? Decode steps (latency) against rows forwarded (work), by prefetch depth.

python -m bench.bench_prefetch [--chains 24] [--depths 1 2 4 8]

Metropolis–Hastings on a toy decoder, acceptance about 0.4. *alone*: one chain at a time, as for one user; its steps are
its latency. *full*: all chains over 8 rows, so that what is decoded ahead takes the place of another chain's work. The
numbers are counts and the same on every machine.
"""

from __future__ import annotations

import argparse

from fastpower import PowerTarget
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.jobs import Job, Totals
from fastpower.samplers import MetropolisHastings
from fastpower.scheduler import Scheduler

LOGITS = random_logits(12, 5, eos=11, eos_bias=-4.0, scale=3.0)


def run(depth: int, chains: range, rows: int) -> Totals:
    """What the scheduler did for some chains over at most ``rows`` rows."""
    sampler = MetropolisHastings(PowerTarget(4.0, 64), block=16, moves=6, prefetch=depth)
    scheduler = Scheduler(ToyDecoder(LOGITS, 12, [11]), max_rows=rows)
    for finished in scheduler.run(Job(sampler, (0,), chain) for chain in chains):
        assert finished.error is None
    return scheduler.totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=24)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    print("depth   alone: steps   rows   full: steps   rows   (per answer)")
    for depth in args.depths:
        alone = [run(depth, range(chain, chain + 1), 64) for chain in range(args.chains)]
        full = run(depth, range(args.chains), 8)
        numbers = [sum(t.steps for t in alone), sum(t.rows for t in alone), full.steps, full.rows]
        a, b, c, d = (number / args.chains for number in numbers)
        print(f"{depth:5} {a:14.0f} {b:6.0f} {c:13.0f} {d:6.0f}", flush=True)


if __name__ == "__main__":
    main()
