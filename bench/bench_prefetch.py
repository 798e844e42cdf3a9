"""Does decoding moves ahead pay? Decode steps (latency) against rows forwarded (work), by prefetch depth.

python -m bench.bench_prefetch [--chains 24] [--depths 1 auto 2 4 8]
python -m bench.bench_prefetch --wall [--dtype bfloat16] [--chains 3] [--tokens 48]

Metropolis–Hastings on a toy decoder, acceptance about 0.4. *alone*: one chain at a time, as for one user; its steps are
its latency. *full*: all chains over 8 rows, so that what is decoded ahead takes the place of another chain's work. The
numbers are counts and the same on every machine. With --wall: seconds of one chain alone with the packaged model, the
depths taken in turn for each chain, and steps of 1 to 16 rows.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from fastpower import PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders.base import Draws, Work
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.models import load_model, prompt_tokens
from fastpower.samplers import MetropolisHastings
from fastpower.scheduler.scheduler import Scheduler, Totals

LOGITS = random_logits(12, 5, eos=11, eos_bias=-4.0, scale=3.0)
PROMPTS = (
    "If a train travels 60 miles in 1.5 hours, what is its average speed?",
    "Write a short poem about the sea.",
    "What is 12 + 35? Think step by step.",
)
ROWS = (1, 2, 4, 8, 16)


def run(depth: int | str, chains: range, rows: int) -> Totals:
    """What the scheduler did for some chains over at most ``rows`` rows."""
    sampler = MetropolisHastings(PowerTarget(4.0, 64), block=16, moves=6, prefetch=depth)
    scheduler = Scheduler(ToyDecoder(LOGITS, 12, [11]), max_rows=rows)
    for finished in scheduler.run(Job(sampler, (0,), chain) for chain in chains):
        assert finished.error is None
    return scheduler.totals


def counts(chains: int, depths: list[int | str]) -> None:
    print("depth   alone: steps   rows   full: steps   rows   (per answer)")
    for depth in depths:
        alone = [run(depth, range(chain, chain + 1), 64) for chain in range(chains)]
        full = run(depth, range(chains), 8)
        numbers = [sum(t.steps for t in alone), sum(t.rows for t in alone), full.steps, full.rows]
        a, b, c, d = (number / chains for number in numbers)
        print(f"{depth:>5} {a:14.0f} {b:6.0f} {c:13.0f} {d:6.0f}", flush=True)


def wall(chains: int, depths: list[int | str], dtype: str, tokens: int) -> None:
    model, tokenizer = load_model(dtype=dtype)
    with TransformersDecoder(model, tokenizer, cache_tokens=16384, verify=False) as decoder:
        print("rows of a step " + "  ".join(f"{n}: {1e3 * step(decoder, n):.1f} ms" for n in ROWS), flush=True)
        prompts = [prompt_tokens(tokenizer, prompt, chat=True) for prompt in PROMPTS]
        seconds: dict[int | str, list[float]] = {depth: [] for depth in depths}
        totals: dict[int | str, list[Totals]] = {depth: [] for depth in depths}
        for chain in range(-1, chains):  # the first is for warming up
            answers = set()
            for depth in depths:
                target = PowerTarget(4.0, tokens if chain >= 0 else 2)
                sampler = MetropolisHastings(target, block=max(1, target.horizon // 4), moves=10, prefetch=depth)
                scheduler = Scheduler(decoder)
                begin = time.perf_counter()
                [finished] = scheduler.run([Job(sampler, prompts[chain % len(prompts)], chain + 1)])
                if chain >= 0:
                    seconds[depth].append(time.perf_counter() - begin)
                    totals[depth].append(scheduler.totals)
                assert finished.outcome is not None, finished.error
                answers.add(tuple(finished.outcome.record.tokens))
            assert len(answers) == 1
    print(f"depth   seconds  faster than {depths[0]}   ms/step   rows/step   (one chain, {tokens} tokens, {dtype})")
    for depth in depths:
        time_of, steps = sum(seconds[depth]), sum(t.steps for t in totals[depth])
        rows = sum(t.rows for t in totals[depth])
        gain = sum(seconds[depths[0]]) / time_of
        print(f"{depth:>5} {time_of / chains:9.2f} {gain:13.2f} {1e3 * time_of / steps:13.1f} {rows / steps:11.2f}")


def step(decoder: TransformersDecoder, rows: int) -> float:
    """Seconds of a decode step, median."""
    sequences, times = [decoder.add() for _ in range(rows)], []
    for position in range(12):
        work = [Work(sequence, [5 + row]) for row, sequence in enumerate(sequences)]
        index = np.arange(rows)
        alpha, exponents = np.full(rows, 4.0, np.float32), np.array([4.0], np.float32)
        draws = Draws(alpha, exponents, index, index.astype(np.uint64), index * 0 + position, index * 0 - 1)
        begin = time.perf_counter()
        decoder.forward(work, draws)
        times.append(time.perf_counter() - begin)
    for sequence in sequences:
        decoder.free(sequence)
    return statistics.median(times[2:])


def depth_of(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int)
    parser.add_argument("--depths", type=depth_of, nargs="+", default=[1, "auto", 2, 4, 8])
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    if args.wall:
        wall(args.chains or 3, args.depths, args.dtype, args.tokens)
    else:
        counts(args.chains or 24, args.depths)


if __name__ == "__main__":
    main()
