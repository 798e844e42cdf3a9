"""``pool_rows`` against one read of its logits and one write of its pools, and against the same numbers from PyTorch.

    python -m pytest bench/bench_pool_rows.py

Ours and a read of the next rows alternate over as many different batches as fill ``MEGABYTES``, as in
``bench_sample_tokens``. What has to move is B·V logits in and G·V float32 out; ``of_floor`` is the time that the
machine needs to read as many bytes, over ours.
"""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from bench.bench_sample_tokens import MEGABYTES, REPEATS, SLOW_REPEATS, alternate, ratio, same_threads  # noqa: F401
from bench.machine import facts, read
from fastpower.kernels import pool_rows
from tests.kernels.sampling_inputs import make_logits


def eager(case):
    """The same from PyTorch: log_softmax, a sum by group, logsumexp."""
    z, starts = case
    logp = torch.log_softmax(z.float(), 1)
    groups = len(starts) - 1
    pooled = logp.view(groups, -1, z.shape[1]).sum(1)
    return pooled, torch.logsumexp(pooled, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows, k, vocab", [(16, 2, 49152), (64, 4, 151936)])
def test_groups_of_k_rows(benchmark, same_threads, rows, k, vocab, dtype):  # noqa: F811
    size, groups = rows * vocab * dtype.itemsize, rows // k
    seeds = range(max(2, (MEGABYTES << 20) // size))
    starts = torch.arange(0, rows + 1, k)
    cases = [(make_logits("model", rows, vocab, seed).to(dtype), starts) for seed in seeds]
    views = {id(case): case[0].view(torch.uint8).numpy() for case in cases}
    ours, reading = alternate([lambda case: pool_rows(*case), lambda case: read(views[id(case)])], cases, REPEATS)
    ours_too, torchs = alternate([lambda case: pool_rows(*case), eager], cases, SLOW_REPEATS)
    moved = 1 + 4 * groups * vocab / size
    benchmark.extra_info |= facts() | {
        "shape": f"({rows}, {vocab}) {str(dtype).removeprefix('torch.')}, groups of {k}",
        "ours_us": round(1e6 * statistics.median(ours), 1),
        "read_us": round(1e6 * statistics.median(reading), 1),
        "torch_us": round(1e6 * statistics.median(torchs), 1),
        "of_floor": round(moved * ratio(reading, ours), 3),
        "speedup_over_torch": round(ratio(torchs, ours_too), 2),
    }
    rotation = itertools.cycle(cases)
    benchmark.pedantic(lambda: pool_rows(*next(rotation)), rounds=REPEATS)
