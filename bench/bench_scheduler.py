"""What the scheduler adds to a decode step: all of it but the decoder's and the samplers' own work.

python -m bench.bench_scheduler [--rows 64 512] [--tokens 96] [--json FILE] [--profile]

A toy decoder does the decoding, so the step's other costs are all Python: admission, lanes, members, forks, frees,
delivery of results. ``plain`` is the steady state, one rollout a row. ``best_of`` adds lanes that split. ``mh`` adds
rollouts that begin and end all the time: on this toy a proposal is given up after a few tokens, so several chains of 64
make a move at every step; the samplers' own work (cuts, couplings, ratios, records) is printed beside it. Goals: 1 ms a
step at 64 rows, 5 ms at 512. CPU time of the scheduler's thread, so that other processes do not count; medians over the
steps with all rows in use.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.machine import facts
from fastpower import PowerTarget
from fastpower.chains.chain import Chain, Run
from fastpower.chains.job import Job
from fastpower.decoders.toy import ToyDecoder
from fastpower.samplers import BestOfN, MetropolisHastings, Plain
from fastpower.scheduler import Scheduler

VOCABULARY = 5
GOAL = {64: 1.0, 512: 5.0}  #: milliseconds a step


class Stopwatch:
    """Times the decoder's forwards and the steps around them."""

    def __init__(self, decoder: ToyDecoder) -> None:
        self.inside, self.sampling, self._rows = 0.0, 0.0, 0
        self.overheads: list[tuple[int, float, float]] = []  # rows, and seconds of scheduler and samplers, of each step
        self._last = time.thread_time()
        for name in ("forward", "fork"):  # the toy forks by walking up its trie, a paged cache does not
            setattr(decoder, name, self._timed(getattr(decoder, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*arguments)
            finally:
                self.inside += time.thread_time() - start

        return call

    def step(self, scheduler: Scheduler) -> None:
        now = time.thread_time()
        rows, self._rows = scheduler.totals.rows - self._rows, scheduler.totals.rows
        self.overheads.append((rows, now - self._last - self.inside - self.sampling, self.sampling))
        self.inside, self.sampling, self._last = 0.0, 0.0, now


class Timed:
    """A sampler whose own work goes into the stopwatch's books."""

    def __init__(self, sampler: Any, watch: Stopwatch) -> None:
        self.target, self.method, self._sampler, self._watch = sampler.target, sampler.method, sampler, watch

    def run(self, chain: Chain) -> Run:
        inner, value = self._sampler.run(chain), None
        while True:
            start = time.thread_time()
            try:
                request = inner.send(value)
            except StopIteration as stop:
                return stop.value
            finally:
                self._watch.sampling += time.thread_time() - start
            value = yield request


def samplers(tokens: int) -> dict[str, Any]:
    target = PowerTarget(2.0, tokens)
    return {
        "plain": Plain(target),
        "mh": MetropolisHastings(target, block=tokens // 3, moves=4),
        "best_of": BestOfN(target, n=8),
    }


def jobs(name: str, sampler: Any, rows: int) -> Iterator[Job]:
    count = 2 * rows // 8 if name == "best_of" else 2 * rows
    return (Job(sampler, (0, i % 3), 1, i) for i in range(count))


def measure(name: str, rows: int, tokens: int) -> dict[str, Any]:
    """One run of twice as many chains as rows."""
    logits = [0.0, 0.3, -0.2, 0.1, -0.4]
    decoder = ToyDecoder(lambda prefix: logits, VOCABULARY)
    watch = Stopwatch(decoder)
    scheduler = Scheduler(decoder, max_rows=rows, on_step=watch.step)
    gc.disable()  # a collection would walk through the toy's trie of every prefix ever seen
    for finished in scheduler.run(jobs(name, Timed(samplers(tokens)[name], watch), rows)):
        if finished.error is not None:
            raise finished.error
    gc.enable()
    steps = [(own, sampling) for width, own, sampling in watch.overheads[1:] if width == rows]
    full = [1e3 * own for own, _ in steps]
    if not full:
        raise RuntimeError(f"{name} never filled {rows} rows: raise --tokens")
    return {
        "sampler": name,
        "rows": rows,
        "steps": len(full),
        "median_ms": statistics.median(full),
        "mean_ms": statistics.fmean(full),
        "samplers_ms": 1e3 * statistics.fmean(sampling for _, sampling in steps),
        "goal_ms": GOAL.get(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--samplers", nargs="+", default=["plain", "mh", "best_of"])
    parser.add_argument("--json", default=None, help="write the results here")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    machine = facts(bandwidth=False)
    print(json.dumps(machine))
    results = []
    for rows in arguments.rows:
        for name in arguments.samplers:
            if arguments.profile:
                profile = cProfile.Profile()
                profile.runcall(measure, name, rows, arguments.tokens)
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            found = measure(name, rows, arguments.tokens)
            results.append(found)
            goal = "" if found["goal_ms"] is None else f", goal {found['goal_ms']:g}"
            print(
                f"{name:>8} {rows:4d} rows: {found['median_ms']:.3f} ms a step over {found['steps']} steps "
                f"(mean {found['mean_ms']:.3f}{goal}); samplers {found['samplers_ms']:.3f} ms"
            )
    if arguments.json is not None:
        with open(arguments.json, "w") as out:
            json.dump({"machine": machine, "results": results}, out, indent=1)


if __name__ == "__main__":
    main()
