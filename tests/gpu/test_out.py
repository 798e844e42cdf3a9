"""Outputs and working memory of the caller on a GPU: same bits, nothing allocated, and calls that a graph captures."""

import pytest
import torch

from fastpower import kernels
from tests.kernels.paging_inputs import make_case as make_paged
from tests.kernels.sampling_inputs import make_case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BACKENDS = [name for name in ("triton", "cuda") if kernels.backends()[name] is None]


def to_gpu(case):
    return type(case)(*(None if x is None else x.cuda() for x in case))


def allocations():
    return torch.cuda.memory_stats()["allocation.all.allocated"]


def check(call, expected, out):
    """``call()`` writes ``out``, allocates nothing, and does the same from a graph."""
    call()  # compiles
    torch.cuda.synchronize()
    for x in out:
        x.fill_(-7)
    before = allocations()
    call()
    assert allocations() == before
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for x in out:
        x.fill_(-7)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_draws_and_statistics(backend, dtype):
    case = to_gpu(make_case("normal", rows=4, vocab=49152, draws=9, dtype=dtype))
    expected = kernels.sample_tokens(*case, backend=backend)
    size = kernels.sample_tokens_workspace(case.logits, case.exponents, backend=backend)
    out, room = expected._make(x.clone() for x in expected), torch.empty(size, dtype=torch.uint8, device="cuda")
    check(lambda: kernels.sample_tokens(*case, out=out, workspace=room, backend=backend), expected, out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(backend):
    case = to_gpu(make_paged([40, 700, 33], [1, 3, 1], dtype=torch.bfloat16))
    expected = kernels.paged_attention(*case, backend=backend)
    shapes = (case.query, case.k_cache, case.page_table, case.lengths)
    room = torch.empty(kernels.paged_attention_workspace(*shapes, backend=backend), dtype=torch.uint8, device="cuda")
    out = torch.empty_like(expected)
    call = lambda: kernels.paged_attention(*case, out=out, workspace=room, backend=backend)  # noqa: E731
    check(call, [expected], [out])
