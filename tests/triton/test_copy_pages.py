"""``copy_pages`` of the Triton backend, interpreted: bit for bit the reference."""

import pytest
import torch
from fastpower.kernels.triton import copy_pages as kernels

from fastpower.kernels import copy_pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(16, 3, 80), (5, 1, 8), (4, 3, 5)], ids=str)
def test_caches_are_those_of_the_reference(dtype, shape):
    """All bit patterns, NaNs included; whole, partial and empty copies."""
    g = torch.Generator().manual_seed(4)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    info = torch.iinfo(bits)
    before = torch.randint(info.min, info.max, (2, 2, 7, *shape), generator=g, dtype=bits)
    source, target = torch.tensor([3, 0, 3, 6]), torch.tensor([1, 5, 2, 4])
    tokens = torch.tensor([shape[0], 1, 3, 0])
    results = []
    for backend in ("triton", "reference"):
        caches = before.clone().view(dtype)
        copy_pages(*caches, source, target, tokens, backend=backend)
        results.append(caches.view(bits))
    assert torch.equal(*results) and not torch.equal(results[0], before)


def test_negative_pages_copy_nothing():
    """A fixed-size plan of a captured graph may be partly empty (the façade, for plans of the host, refuses these)."""
    before = torch.randn(2, 1, 3, 4, 2, 8)
    k, v = before.clone()
    kernels.copy_pages(k, v, torch.tensor([-1, 0]), torch.tensor([1, -1]), torch.tensor([4, 4]))
    assert torch.equal(torch.stack([k, v]), before)
