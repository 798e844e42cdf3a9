"""The Triton backend with the caller's outputs and working memory: the same bits, and it allocates nothing."""

from __future__ import annotations

import pytest
import torch
from fastpower.kernels.triton import paged_attention as attention

from fastpower import kernels
from tests.kernels.paging_inputs import make_case as make_paging
from tests.kernels.sampling_inputs import make_case


@pytest.fixture
def no_allocation(monkeypatch):
    """Switch it on, and a tensor that is allocated fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"allocated {args}, {kwargs}")

    def switch_on():
        for name in ("empty", "zeros", "full"):
            monkeypatch.setattr(torch, name, refuse)

    yield switch_on
    monkeypatch.undo()


def test_draws_and_statistics(no_allocation):
    case = make_case("normal", 2, 5000, draws=3)
    expected = kernels.sample_tokens(*case, backend="triton")
    size = kernels.sample_tokens_workspace(case.logits, case.exponents, backend="triton")
    small, room = torch.empty(size - 128, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    out = type(expected)(*(torch.zeros_like(x) for x in expected))
    with pytest.raises(ValueError, match=r"workspace has .* size it with sample_tokens_workspace"):
        kernels.sample_tokens(*case, out=out, workspace=small, backend="triton")
    assert not any(x.any() for x in out)
    no_allocation()
    kernels.sample_tokens(*case, out=out, workspace=room, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize("pieces", [1, 3], ids=["one launch", "several"])
@pytest.mark.parametrize("lengths", [[20, 5, 9], [20, 300, 9]], ids=["one split", "several splits"])
def test_attention(no_allocation, monkeypatch, lengths, pieces):
    queries = [1, 2, 1]
    case = make_paging(lengths, queries, q_heads=2, kv_heads=1)
    splits = -(-case.page_table.shape[1] * 16 // 256)
    monkeypatch.setattr(attention, "MAX_PARTIAL_BYTES", splits * 2 * 66 * 4 * (4 // pieces))
    expected = kernels.paged_attention(*case, backend="triton")
    size = kernels.paged_attention_workspace(case.query, case.k_cache, case.page_table, case.lengths, backend="triton")
    out, room = torch.zeros_like(expected), torch.empty(size, dtype=torch.uint8)
    no_allocation()
    kernels.paged_attention(*case, out=out, workspace=room, backend="triton")
    assert torch.equal(out, expected)
