"""csrc/cuda/paged_copy.cu, run thread by thread on the CPU: every byte where it belongs, no other byte touched."""

import pytest
import torch

from fastpower.kernels.cuda.append_kv import append_kv
from fastpower.kernels.cuda.copy_pages import copy_pages

pytestmark = pytest.mark.usefixtures("emulated")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 6, 8, 64, 80])  # units of 2 to 16 bytes
def test_tokens_land_in_their_slots_and_nowhere_else(head_dim, dtype):
    heads, pages, page_size = 3, 7, 5
    caches = [numbers(pages, page_size, heads, head_dim, dtype=dtype, seed=s) for s in (1, 2)]
    slots = torch.tensor([34, 0, -1, 11, 35, 7])  # -1 is padding, 35 lies outside
    new = [numbers(len(slots), heads, head_dim, dtype=dtype, seed=s) for s in (3, 4)]
    expected = [cache.clone() for cache in caches]
    for cache, tokens in zip(expected, new, strict=True):
        for i in (0, 1, 3, 5):
            cache.view(-1, heads, head_dim)[slots[i]] = tokens[i]
    append_kv(*new, *caches, slots)
    for got, wanted in zip(caches, expected, strict=True):
        assert torch.equal(got, wanted)


def test_strided_tokens_go_to_a_layer_of_a_larger_cache():
    n, heads, dim = 9, 3, 40
    packed = numbers(n, 2, heads, dim)
    key, value = packed[:, 0], packed[:, 1].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert value.stride(2) != 1
    layers = torch.full((2, 4, 2, 5, heads, dim), torch.nan)
    slots = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:n]
    append_kv(key, value, layers[1, :, 0], layers[1, :, 1], slots)
    assert torch.equal(layers[1, :, 0].flatten(0, 1)[slots], key)
    assert torch.equal(layers[1, :, 1].flatten(0, 1)[slots], value)
    assert layers.isnan().sum() == layers.numel() - 2 * n * heads * dim


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size, head_dim", [(5, 1), (16, 6), (256, 80)])
def test_first_tokens_of_pages_are_copied_in_all_layers_and_nothing_else_changes(page_size, head_dim, dtype):
    layers, pages, heads = 2, 6, 3
    caches = [numbers(layers, pages, page_size, heads, head_dim, dtype=dtype, seed=s) for s in (1, 2)]
    source, target = torch.tensor([3, 3, 0, 9, 1]), torch.tensor([5, 1, 2, 4, -1])  # page 9 and target -1 do not exist
    tokens = torch.tensor([page_size, page_size - 2, 0, 3, 3])
    expected = [cache.clone() for cache in caches]
    for cache in expected:
        cache[:, 5] = cache[:, 3]
        cache[:, 1, : page_size - 2] = cache[:, 3, : page_size - 2]
    copy_pages(*caches, source, target, tokens)
    for got, wanted in zip(caches, expected, strict=True):
        assert torch.equal(got, wanted)


def test_copies_within_interleaved_caches():
    """K and V interleaved by page, an odd number of elements apart from alignment."""
    storage = numbers(2 * 3 * 2 * 4 * 1 * 6 + 1)[1:].view(2, 3, 2, 4, 1, 6)
    k_cache, v_cache = storage[:, :, 0], storage[:, :, 1]
    expected = storage.clone()
    expected[:, 2, :, :3] = expected[:, 0, :, :3]
    copy_pages(k_cache, v_cache, torch.tensor([0]), torch.tensor([2]), torch.tensor([3]))
    assert torch.equal(storage, expected)


def test_more_tokens_than_a_page_holds_are_cut_to_the_page():
    caches = [numbers(1, 3, 4, 1, 8, seed=s) for s in (1, 2)]
    expected = [cache.clone() for cache in caches]
    for cache in expected:
        cache[:, 1] = cache[:, 0]
    copy_pages(*caches, torch.tensor([0]), torch.tensor([1]), torch.tensor([99]))
    for got, wanted in zip(caches, expected, strict=True):
        assert torch.equal(got, wanted)


def test_empty_batches_do_nothing():
    caches = [numbers(2, 3, 4, 1, 8, seed=s) for s in (1, 2)]
    before = [cache.clone() for cache in caches]
    none = torch.empty(0, dtype=torch.int64)
    copy_pages(*caches, none, none, none)
    append_kv(numbers(0, 1, 8), numbers(0, 1, 8), caches[0][0], caches[1][0], none)
    for got, wanted in zip(caches, before, strict=True):
        assert torch.equal(got, wanted)
