"""How a token's time grows: with the number of chains and with the length of the context, beside the memory's floor.

python -m bench.bench_growth [--chains 1 4 16 64 256] [--contexts 128 … 8192] [--json FILE] [--plots docs/images]

Chains: plain sampling through the scheduler, every chain with a prompt of its own; medians of the steps in which every
chain got one token. The toy model shows what the scheduler adds, the real one the whole engine. Context: decode steps
of 1 and 8 rows behind a context whose K/V are random numbers (a step's time does not depend on them), all rows with
pages of their own. The floor of a step is what has to be read once, weights and K/V, over the read bandwidth measured
in this run; with many rows multiply-adds and not memory are the limit, so the distance to it grows there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.bench_decode import draws, step_bytes
from bench.machine import facts, read_bandwidth
from fastpower import _C, PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders import Decoder, Work
from fastpower.decoders.toy import ToyDecoder
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.models import load_model
from fastpower.samplers import Plain
from fastpower.scheduler import Scheduler

PROMPT, CONTEXT_ROWS = 24, (1, 8)


def step_of_chains(decoder: Decoder, chains: int, steps: int) -> float:
    """Median seconds of a step with one new token for each of ``chains`` chains."""
    rng = np.random.default_rng(chains)
    low, high = (0, decoder.vocab_size) if decoder.vocab_size < 1000 else (100, 10000)
    prompts = rng.integers(low, high, (chains, PROMPT)).tolist()
    marks: list[tuple[float, int, int]] = []

    def look(scheduler: Scheduler) -> None:
        marks.append((time.perf_counter(), scheduler.totals.rows, scheduler.totals.tokens))

    scheduler = Scheduler(decoder, max_rows=chains, prefill_tokens=4096, on_step=look)
    sampler = Plain(PowerTarget(1.0, steps + 2))
    for finished in scheduler.run(Job(sampler, prompt, 1, i) for i, prompt in enumerate(prompts)):
        if finished.error is not None:
            raise finished.error
    seconds = [b[0] - a[0] for a, b in pairwise(marks) if b[1] - a[1] == b[2] - a[2] == chains]
    return statistics.median(seconds)


def step_at_context(decoder: TransformersDecoder, rows: int, context: int, steps: int) -> float:
    """Median seconds of a step of ``rows`` rows that each hold ``context`` tokens."""
    cache = decoder.cache
    sequences = [decoder.add() for _ in range(rows)]
    for sequence in sequences:
        plan = cache.reserve([sequence], [context])
        pages = torch.from_numpy(np.unique(plan.slots // cache.page_size))
        for tensor in (cache.k, cache.v):
            tensor[:, pages] = torch.randn(1, device=tensor.device).to(tensor.dtype)
            tensor[:, pages, :, :, ::3] = 0.25
        cache.commit(plan)
    seconds = []
    for step in range(steps + 1):
        work = [Work(sequence, [1000 + step]) for sequence in sequences]
        start = time.perf_counter()
        decoder.forward(work, draws(rows, context + step, step))
        seconds.append(time.perf_counter() - start)
    for sequence in sequences:
        decoder.free(sequence)
    return statistics.median(seconds[1:])


def point(kind: str, chains: int, context: int, seconds: float, floor: float | None) -> dict[str, Any]:
    found = {
        "kind": kind,
        "chains": chains,
        "context": context,
        "step_ms": 1e3 * seconds,
        "token_ms": 1e3 * seconds / chains,
        "floor_token_ms": None if floor is None else 1e3 * floor / chains,
    }
    share = "" if floor is None else f", floor {1e3 * floor / chains:.3f} ms ({floor / seconds:.0%})"
    print(f"{kind}: {chains} chains, context {context}: {1e3 * seconds / chains:.3f} ms a token{share}", flush=True)
    return found


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found, steps = [], arguments.steps
    toy = ToyDecoder(lambda prefix: (0.0, 0.3, -0.2, 0.1, -0.4), 5)
    for chains in arguments.chains:
        found.append(point("toy", chains, PROMPT, step_of_chains(toy, chains, steps), None))
    model, tokenizer = load_model(arguments.model, dtype=arguments.dtype)
    room = max(max(arguments.chains) * (PROMPT + steps + 32), max(CONTEXT_ROWS) * (max(arguments.contexts) + 64))
    bandwidth = read_bandwidth() * 1e9
    with TransformersDecoder(model, tokenizer, cache_tokens=room) as decoder:
        decoder.eos_ids = frozenset()
        for chains in arguments.chains:
            seconds = step_of_chains(decoder, chains, steps)
            decoder.cache.forget()
            floor = sum(step_bytes(decoder, chains, PROMPT + steps // 2)) / bandwidth
            found.append(point("real", chains, PROMPT, seconds, floor))
        for rows in CONTEXT_ROWS:
            for context in arguments.contexts:
                context = min(context, decoder.max_length - steps - 1)
                seconds = step_at_context(decoder, rows, context, steps)
                floor = sum(step_bytes(decoder, rows, context + steps // 2)) / bandwidth
                found.append(point("context", rows, context, seconds, floor))
    return found


def plot(found: list[dict[str, Any]], folder: Path) -> None:
    """growth_chains.png and growth_context.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.8))
    for kind, label in (("real", "SmolLM2-135M"), ("toy", "toy model: scheduler and toy")):
        points = [p for p in found if p["kind"] == kind]
        [line] = axes.plot([p["chains"] for p in points], [p["token_ms"] for p in points], "o-", label=label)
        if kind == "real":
            floor = [p["floor_token_ms"] for p in points]
            axes.plot([p["chains"] for p in points], floor, "--", color=line.get_color(), label="memory floor")
    finish(figure, axes, "chains", folder / "growth_chains.png")
    figure, axes = pyplot.subplots(figsize=(6, 3.8))
    for rows in sorted({p["chains"] for p in found if p["kind"] == "context"}):
        points = [p for p in found if p["kind"] == "context" and p["chains"] == rows]
        x = [p["context"] for p in points]
        [line] = axes.plot(x, [p["token_ms"] for p in points], "o-", label=f"{rows} row{'s' * (rows > 1)}")
        axes.plot(x, [p["floor_token_ms"] for p in points], "--", color=line.get_color(), label="its memory floor")
    finish(figure, axes, "context, tokens", folder / "growth_context.png")


def finish(figure: Any, axes: Any, label: str, path: Path) -> None:
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds a token")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--steps", type=int, default=14, help="timed steps of each point")
    parser.add_argument("--json", type=Path, default=None, help="write the points here")
    parser.add_argument("--plots", type=Path, default=None, help="write growth_chains.png and growth_context.png here")
    arguments = parser.parse_args()
    torch.set_num_threads(_C.num_threads())
    machine = facts()
    print(json.dumps(machine))
    found = measure(arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine, "points": found}, indent=1) + "\n")
    if arguments.plots is not None:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        plot(found, arguments.plots)


if __name__ == "__main__":
    main()
