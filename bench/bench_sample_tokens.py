"""``sample_tokens`` against one read of its logits and against the same numbers from eager PyTorch.

    python -m pytest bench/bench_sample_tokens.py

Ours and a read of the next rows (all kernel threads, ``bench.machine``) alternate over as many different batches as
fill ``MEGABYTES``, so that rows come from memory; then ours and PyTorch's chain do. Ratios are medians over pairs of
calls. The two are apart because PyTorch's OpenMP threads spin for milliseconds after a loop, on the core that the next
call needs.
``extra_info`` holds the times, GB/s, the fraction of the read bandwidth and the speed-up.
"""

from __future__ import annotations

import itertools
import statistics
import time

import pytest
import torch

from bench.machine import facts, read
from fastpower import _C
from fastpower.kernels import sample_tokens
from tests.kernels.sampling_inputs import make_case

MEGABYTES = 160
REPEATS = 60  # against the read
SLOW_REPEATS = 8  # against PyTorch
ALPHA = 4.0


def eager(case):
    """What a power-sampling step computes without us: two log_softmax, entropy, multinomial, gather."""
    logp = torch.log_softmax(case.logits, 1)
    logq = torch.log_softmax(ALPHA * case.logits, 1)
    logz = torch.logsumexp(ALPHA * logp, 1)
    entropy = -(logp.exp() * logp).sum(1)
    token = torch.multinomial(logq.exp(), 1)
    return token[:, 0], logp.gather(1, token)[:, 0], logz, entropy


def alternate(calls, cases, repeats):
    """Seconds of every call, (calls, repeats), each on another case; the first round warms up and is dropped."""
    times = [[] for _ in calls]
    rotation = itertools.cycle(cases)
    for _ in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            case = next(rotation)
            start = time.perf_counter()
            call(case)
            own.append(time.perf_counter() - start)
    return [own[1:] for own in times]


def ratio(a, b):
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


@pytest.fixture
def same_threads():
    """PyTorch on as many threads as our kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(_C.num_threads())
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows, vocab", [(16, 49152), (64, 151936)])
def test_statistics_and_a_draw_per_row(benchmark, same_threads, rows, vocab, dtype):
    size = rows * vocab * dtype.itemsize
    seeds = range(max(2, (MEGABYTES << 20) // size))
    cases = [make_case("model", rows, vocab, alpha=ALPHA, exponents=(ALPHA,), dtype=dtype, seed=s) for s in seeds]
    views = {id(case): case.logits.view(torch.uint8).numpy() for case in cases}
    ours, reading = alternate([lambda case: sample_tokens(*case), lambda case: read(views[id(case)])], cases, REPEATS)
    ours_too, torchs = alternate([lambda case: sample_tokens(*case), eager], cases, SLOW_REPEATS)
    benchmark.extra_info |= facts() | {
        "shape": f"({rows}, {vocab}) {str(dtype).removeprefix('torch.')}",
        "ours_us": round(1e6 * statistics.median(ours), 1),
        "read_us": round(1e6 * statistics.median(reading), 1),
        "torch_us": round(1e6 * statistics.median(torchs), 1),
        "gb_s": round(size / statistics.median(ours) / 1e9, 2),
        "of_read_bandwidth": round(ratio(reading, ours), 3),
        "speedup_over_torch": round(ratio(torchs, ours_too), 2),
    }
    rotation = itertools.cycle(cases)
    benchmark.pedantic(lambda: sample_tokens(*next(rotation)), rounds=REPEATS)


@pytest.mark.parametrize("rows", [1, 300])
def test_overhead_of_a_call_on_a_tiny_vocabulary(benchmark, rows):
    case = make_case("normal", rows, 4, alpha=ALPHA, exponents=(ALPHA,))
    benchmark.extra_info |= facts(bandwidth=False)
    benchmark(lambda: sample_tokens(*case))
