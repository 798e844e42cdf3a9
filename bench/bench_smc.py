"""What resampling costs a run of Power-SMC, and how little K/V it moves.

python -m bench.bench_smc [--particles 32] [--horizon 96] [--block 8] [--repeats 3]

Counted as resampling: drawing ancestors, replacing the particles, every fork of a sequence and every copy of a partly
filled page. Lanes that split because their particles drew different tokens fork and copy, too, and are counted with
it: the share printed is an upper bound. Beside it what a cache that is gathered by ancestor would have moved: the K/V
of all particles at every resampling. Goal: 2 % of the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from bench.machine import facts
from fastpower import _C, PowerTarget, kernels
from fastpower.chains.job import Job
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.models import load_model, prompt_tokens
from fastpower.samplers import PowerSMC, particles, smc
from fastpower.scheduler import Scheduler

PROMPT = "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive? Explain every step."


class Stopwatch:
    """Seconds inside the wrapped functions, nested ones once."""

    def __init__(self) -> None:
        self.seconds, self.copied, self._inside = 0.0, 0, False

    def timed(self, call: Callable[..., Any], count: Callable[..., int] = lambda *a, **k: 0) -> Callable[..., Any]:
        def inner(*args: Any, **keywords: Any) -> Any:
            self.copied += count(*args, **keywords)
            if self._inside:
                return call(*args, **keywords)
            self._inside, start = True, time.perf_counter()
            try:
                return call(*args, **keywords)
            finally:
                self.seconds, self._inside = self.seconds + time.perf_counter() - start, False

        return inner


def run(decoder: TransformersDecoder, prompt: list[int], sampler: PowerSMC, seed: int) -> dict[str, Any]:
    watch = Stopwatch()
    copy = watch.timed(kernels.copy_pages, lambda k, v, source, target, tokens, **_: int(tokens.sum()))
    with (
        mock.patch.object(smc, "ancestors", watch.timed(smc.ancestors)),
        mock.patch.object(particles.Particles, "resample", watch.timed(particles.Particles.resample)),
        mock.patch.object(kernels, "copy_pages", copy),
        mock.patch.object(decoder, "fork", watch.timed(decoder.fork)),
    ):
        start = time.perf_counter()
        [finished] = Scheduler(decoder).run([Job(sampler, prompt, seed)])
        total = time.perf_counter() - start
    if finished.error is not None:
        raise finished.error
    resampled = [line["position"] for line in finished.outcome.trace if line["resampled"]]
    return {
        "seconds": total,
        "share": watch.seconds / total,
        "resamplings": len(resampled),
        "copied_tokens": watch.copied,
        "gather_tokens": sum(sampler.particles * (len(prompt) + position) for position in resampled),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(_C.num_threads())
    print(json.dumps(facts(bandwidth=False)))
    model, tokenizer = load_model(arguments.model, dtype=arguments.dtype)
    prompt = prompt_tokens(tokenizer, PROMPT)
    sampler = PowerSMC(
        PowerTarget(4.0, arguments.horizon), particles=arguments.particles, block=arguments.block, threshold=0.9, ramp=0
    )
    with TransformersDecoder(model, tokenizer, cache_tokens=32768) as decoder:
        decoder.eos_ids = frozenset()
        runs = [run(decoder, prompt, sampler, seed) for seed in range(arguments.repeats)]
    for found in runs:
        print(
            f"{arguments.particles} particles, {arguments.horizon} tokens: {found['seconds']:.2f} s, "
            f"{found['resamplings']} resamplings; resampling at most {found['share']:.2%} of the run; "
            f"K/V of {found['copied_tokens']} tokens copied (a gathered cache: {found['gather_tokens']})"
        )
    print(f"median share {statistics.median(found['share'] for found in runs):.2%}, goal 2 %")


if __name__ == "__main__":
    main()
