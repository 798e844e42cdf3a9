"""``append_kv`` of the Triton backend, interpreted: bit for bit the reference."""

import pytest
import torch

from fastpower.kernels import append_kv


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 80), (9, 128), (1, 8)], ids=str)
def test_caches_are_those_of_the_reference(dtype, shape):
    """Strided key and value, a skipped token, a cache that is one layer of many."""
    heads, dim = shape
    g = torch.Generator().manual_seed(3)
    packed = torch.randn(5, 2 * heads, dim, generator=g).to(dtype)
    key, value = packed.chunk(2, dim=1)
    slots = torch.tensor([40, 3, -1, 17, 0])
    caches = torch.randn(2, 2, 4, 16, heads, dim, generator=g).to(dtype)
    results = []
    for backend in ("triton", "reference"):
        k, v = caches.clone()
        append_kv(key, value, k[1], v[1], slots, backend=backend)
        results.append((k, v))
    for mine, right, before in zip(*results, caches, strict=True):
        assert torch.equal(mine, right) and not torch.equal(mine, before)


def test_keys_with_any_strides_are_read_right():
    key = torch.randn(2, 8, 3).transpose(1, 2)
    k, v = torch.zeros(2, 3, 4, 3, 8)
    append_kv(key, key, k, v, torch.tensor([5, 1]), backend="triton")
    assert torch.equal(k[1, 1], key[0]) and torch.equal(v[0, 1], key[1])
    assert k.count_nonzero() == key.numel()
