"""``paged_attention`` against torch's scaled_dot_product_attention on contiguous and on gathered K/V.

python -m pytest bench/bench_paged_attention.py [-s]

Decoding at the shapes of SmolLM2-135M (9 query heads, 3 key/value heads, head_dim 64). As many layers as a step has are
visited in turn (``LAYERS``), as in a real decode step, so that K/V come from where they would come from there. The
competitors alternate within one run; ratios are medians of the ratios of neighbouring passes.
"""

import statistics
import time

import pytest
import torch
import torch.nn.functional as nnf

from bench.machine import facts
from fastpower import _C
from fastpower.kernels import paged_attention
from tests.kernels.paging_inputs import gathered, make_case

DTYPES = (torch.float32, torch.bfloat16)
LAYERS = 12


def alternate(passes, repeats=9):
    """Seconds of each function of ``passes``, by repeat; one round warms up."""
    rounds = []
    for _ in range(repeats + 1):
        times = []
        for run in passes:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        rounds.append(times)
    return rounds[1:]


def ratio(rounds, i, j=0):
    """How many times as long pass i takes as pass j."""
    return statistics.median(times[i] / times[j] for times in rounds)


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(_C.num_threads())
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def copies(case, layers):
    """The case with K/V of its own for each layer."""
    return [case._replace(k_cache=case.k_cache.clone(), v_cache=case.v_cache.clone()) for _ in range(layers)]


@pytest.mark.parametrize("batch, context", [(1, 1024), (16, 1024), (16, 4096)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode(benchmark, dtype, batch, context):
    """Against SDPA on K/V that lie contiguously already, and on K/V gathered from the pages in each step."""
    layers = copies(make_case([context] * batch, dtype=dtype), LAYERS)
    table = layers[0].page_table[:, : context // 16].long()
    contiguous = []
    for case in layers:
        k, v = (torch.stack(x) for x in list(zip(*(gathered(case, s) for s in range(batch)), strict=True))[1:])
        contiguous.append((case.query.unsqueeze(2), k, v))

    def ours():
        for case in layers:
            paged_attention(*case)

    def sdpa():
        for q, k, v in contiguous:
            nnf.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def gather_and_sdpa():
        for case in layers:
            k, v = (cache[table].flatten(1, 2).transpose(1, 2) for cache in (case.k_cache, case.v_cache))
            nnf.scaled_dot_product_attention(case.query.unsqueeze(2), k, v, enable_gqa=True)

    rounds = alternate((ours, sdpa, gather_and_sdpa))
    benchmark(ours)
    size = 2 * batch * context * 3 * 64 * dtype.itemsize * LAYERS
    machine = facts()
    gb_s = size / benchmark.stats["median"] / 1e9
    benchmark.extra_info.update(
        machine,
        gb_s=round(gb_s, 2),
        of_read_bandwidth=round(gb_s / machine["read_gb_s"], 2),
        faster_than_sdpa=round(ratio(rounds, 1), 2),
        faster_than_gather_and_sdpa=round(ratio(rounds, 2), 2),
    )
    print(f"\ndecode {dtype} {batch} x {context}: {benchmark.extra_info}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_prefix(benchmark, dtype):
    """32 queries on a prefix of 512 tokens and 16 of their own: pages read once for all, against (a) the same pages
    without the hint, where the caches still share the bytes, and (b) 32 copies of the prefix, which is what decoding
    without prefix sharing does."""
    batch, prefix, own = 32, 512, 16
    together = copies(make_case([prefix + own] * batch, shared_tokens=prefix, dtype=dtype), LAYERS)
    apart = copies(make_case([prefix + own] * batch, dtype=dtype), LAYERS)
    shared = (torch.tensor([0, batch], dtype=torch.int32), torch.tensor([prefix // 16], dtype=torch.int32))

    def with_hint():
        for case in together:
            paged_attention(*case, shared=shared)

    def without_hint():
        for case in together:
            paged_attention(*case)

    def with_own_copies():
        for case in apart:
            paged_attention(*case)

    rounds = alternate((with_hint, without_hint, with_own_copies))
    benchmark(with_hint)
    benchmark.extra_info.update(
        facts(),
        faster_than_without_hint=round(ratio(rounds, 1), 2),
        faster_than_own_copies=round(ratio(rounds, 2), 2),
        bytes_read_of_own_copies=round((prefix + batch * own) / (batch * (prefix + own)), 3),
    )
    print(f"\nshared prefix {dtype}: {benchmark.extra_info}")


@pytest.mark.parametrize("tokens, before", [(512, 0), (128, 1024)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prefill(benchmark, dtype, tokens, before):
    """A chunk of a prompt, against causal SDPA on contiguous K/V."""
    case = make_case([before + tokens], [tokens], dtype=dtype)
    q, k, v = (x.unsqueeze(0) for x in gathered(case, 0))
    mask = torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before) if before else None

    def ours():
        paged_attention(*case)

    def sdpa():
        nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)

    rounds = alternate((ours, sdpa))
    benchmark(ours)
    seen = tokens * before + tokens * (tokens + 1) // 2
    benchmark.extra_info.update(
        facts(bandwidth=False),
        gflop_s=round(4 * seen * 9 * 64 / benchmark.stats["median"] / 1e9, 1),
        faster_than_sdpa=round(ratio(rounds, 1), 2),
    )
    print(f"\nprefill {dtype} {tokens} after {before}: {benchmark.extra_info}")
