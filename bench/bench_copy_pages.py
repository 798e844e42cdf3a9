"""``copy_pages`` against a memcpy of as many bytes, and ``append_kv`` for a decode step.

python -m pytest bench/bench_copy_pages.py [-s]
"""

import statistics
import time

import numpy as np
import pytest
import torch

from bench import machine
from fastpower.kernels import append_kv, copy_pages

LAYERS, HEADS, DIM = 30, 3, 64  # SmolLM2-135M


def caches(pages, page_size, dtype):
    return tuple(torch.ones(LAYERS, pages, page_size, HEADS, DIM, dtype=dtype) for _ in range(2))


@pytest.mark.parametrize("page_size, forks", [(16, 64), (256, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copy_pages(benchmark, dtype, page_size, forks):
    """One page of each of ``forks`` sequences, in all layers; memcpy on the same threads alternates with it."""
    k_cache, v_cache = caches(4 * forks, page_size, dtype)
    order = torch.randperm(4 * forks, generator=torch.Generator().manual_seed(0))
    plan = order[:forks].clone(), order[forks : 2 * forks].clone(), torch.full((forks,), page_size)
    size = 2 * LAYERS * forks * page_size * HEADS * DIM * dtype.itemsize
    source, target = np.ones(size // 8), np.zeros(size // 8)

    def ours():
        copy_pages(k_cache, v_cache, *plan)

    def memcpy():
        machine.copy(target, source)

    ratios = []
    for _ in range(16):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        memcpy()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    benchmark(ours)
    benchmark.extra_info.update(
        machine.facts(bandwidth=False),
        megabytes=round(size / 1e6, 1),
        gb_s=round(2 * size / benchmark.stats["median"] / 1e9, 2),
        of_memcpy=round(statistics.median(ratios[1:]), 2),
    )
    print(f"\ncopy_pages {dtype}, {forks} pages of {page_size}: {benchmark.extra_info}")


@pytest.mark.parametrize("tokens", [1, 16, 512])
def test_append_kv(benchmark, tokens):
    """All layers of a step, against torch's index_put_."""
    k_cache, v_cache = caches(64, 16, torch.bfloat16)
    key, value = (torch.ones(tokens, HEADS, DIM, dtype=torch.bfloat16) for _ in range(2))
    slots = torch.randperm(64 * 16, generator=torch.Generator().manual_seed(0))[:tokens]

    def ours():
        for layer in range(LAYERS):
            append_kv(key, value, k_cache[layer], v_cache[layer], slots)

    def index_put():
        for layer in range(LAYERS):
            k_cache[layer].flatten(0, 1).index_put_((slots,), key)
            v_cache[layer].flatten(0, 1).index_put_((slots,), value)

    torch_time = machine.seconds(index_put)
    benchmark(ours)
    benchmark.extra_info.update(
        machine.facts(bandwidth=False), faster_than_index_put=round(torch_time / benchmark.stats["median"], 2)
    )
    print(f"\nappend_kv {tokens} tokens: {benchmark.extra_info}")
