"""csrc/cuda/paged_attention.cu, run thread by thread on the CPU, against the float64 reference."""

import pytest
import torch
from fastpower.kernels.reference.paged_attention import paged_attention as reference

from fastpower.kernels.cuda import paged_attention as backend
from fastpower.kernels.cuda.paged_attention import paged_attention
from tests.kernels.paging_inputs import make_case

pytestmark = pytest.mark.usefixtures("emulated")
# Rounding of the output, and of the float32 sums in it.
TOLERANCE = {torch.float32: (2e-6, 2e-6), torch.bfloat16: (2**-8, 2**-14), torch.float16: (2**-11, 2**-15)}


def check(case, **options):
    exact = case._replace(**{name: getattr(case, name).double() for name in ("query", "k_cache", "v_cache")})
    rtol, atol = TOLERANCE[case.query.dtype]
    out = paged_attention(*case, **options)
    torch.testing.assert_close(out.double(), reference(*exact, **options), rtol=rtol, atol=atol)


@pytest.fixture
def spread(monkeypatch):
    """Choose whether splits are spread over the grid (they are in small batches)."""
    return lambda yes: monkeypatch.setattr(backend, "ENOUGH", 1 << 40 if yes else 0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads, head_dim", [((3, 3), 64), ((9, 3), 80), ((5, 1), 256), ((2, 2), 8)], ids=str)
def test_decode_and_prefill_in_one_batch(heads, head_dim, dtype):
    case = make_case(
        [1, 300, 40], [1, 1, 4], q_heads=heads[0], kv_heads=heads[1], head_dim=head_dim, page_size=7, dtype=dtype
    )
    check(case)


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 260}, {"softcap": 2.0}, {"scale": 0.3}], ids=str)
def test_window_softcap_and_scale(options):
    check(make_case([600, 40, 513], [2, 3, 1], q_heads=4, kv_heads=2, head_dim=16), **options)


def test_window_that_begins_with_a_split_and_one_that_ends_before_it():
    case = make_case([512, 513, 257], q_heads=2, kv_heads=1, head_dim=16)
    for window in (256, 255, 257):
        check(case, window=window)


@pytest.mark.parametrize("order", [1, 7])
def test_no_result_depends_on_the_order_in_which_threads_run(order, emulated):
    case = make_case([300, 5], q_heads=5, kv_heads=1, head_dim=40)
    emulated(0)
    ascending = paged_attention(*case)
    emulated(order)
    assert torch.equal(paged_attention(*case), ascending)


@pytest.mark.parametrize("window", [0, 300])
def test_row_has_the_same_bits_whether_its_splits_are_spread_over_the_grid_or_not(window, spread):
    case = make_case([700, 30], [2, 1], q_heads=6, kv_heads=1, head_dim=24, dtype=torch.float16)
    spread(True)
    expected = paged_attention(*case, window=window)
    spread(False)
    check(case, window=window)
    assert torch.equal(paged_attention(*case, window=window), expected)


def test_query_of_a_prefill_has_the_bits_of_a_decode_step():
    chunk = make_case([290], [3], q_heads=3, kv_heads=1, head_dim=24)
    step = make_case([290], [1], q_heads=3, kv_heads=1, head_dim=24)
    assert torch.equal(chunk.query[2:], step.query)
    assert torch.equal(paged_attention(*chunk)[2:], paged_attention(*step))


def test_unaligned_pages_have_the_bits_of_aligned_ones():
    case = make_case([40], [1], q_heads=2, kv_heads=1, head_dim=16, dtype=torch.bfloat16)
    pages, size = case.k_cache.shape[0], case.k_cache[0].numel()
    storage = torch.zeros(pages, size + 1, dtype=torch.bfloat16)  # an odd page stride
    storage[:, :size] = case.k_cache.flatten(1)
    moved = storage[:, :size].unflatten(1, case.k_cache.shape[1:])
    assert moved.stride(0) * 2 % 16 != 0
    assert torch.equal(paged_attention(*case._replace(k_cache=moved)), paged_attention(*case))


def test_page_outside_the_cache_makes_its_rows_nan_and_no_others():
    case = make_case([40, 20], [1, 1], q_heads=2, kv_heads=1, head_dim=16)
    expected = paged_attention(*case)
    case.page_table[0, 1] = len(case.k_cache)
    got = paged_attention(*case)
    assert got[0].isnan().all()
    assert torch.equal(got[1], expected[1])


def test_empty_batch():
    case = make_case([5], [1], q_heads=2, kv_heads=1, head_dim=16)
    none = case._replace(query=case.query[:0], query_starts=torch.zeros(2, dtype=torch.int32))
    assert paged_attention(*none).shape == (0, 2, 16)
