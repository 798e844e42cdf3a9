"""``append_kv``: every token lands in its slot and nothing else changes."""

import pytest
import torch

from fastpower.kernels import append_kv

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def caches(pages=7, page_size=16, heads=3, dim=40, dtype=torch.float32):
    return tuple(torch.full((pages, page_size, heads, dim), torch.nan, dtype=dtype) for _ in range(2))


def tokens(n, heads=3, dim=40, dtype=torch.float32):
    g = torch.Generator().manual_seed(n)
    return tuple(torch.randn(n, heads, dim, generator=g).to(dtype) for _ in range(2))


def some_slots(n, limit=7 * 16):
    return torch.randperm(limit, generator=torch.Generator().manual_seed(5))[:n]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 61])
def test_tokens_land_in_their_slots_and_nowhere_else(backend, dtype, n):
    k_cache, v_cache = caches(dtype=dtype)
    key, value = tokens(n, dtype=dtype)
    slots = some_slots(n)
    append_kv(key, value, k_cache, v_cache, slots, backend=backend)
    for cache, new in ((k_cache, key), (v_cache, value)):
        rows = cache.flatten(0, 1)
        assert torch.equal(rows[slots], new)
        untouched = torch.ones(len(rows), dtype=torch.bool)
        untouched[slots] = False
        assert rows[untouched].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_slot_minus_one_drops_its_token(backend):
    k_cache, v_cache = caches()
    key, value = tokens(4)
    append_kv(key, value, k_cache, v_cache, torch.tensor([-1, 17, -1, 0]), backend=backend)
    assert torch.equal(k_cache[1, 1], key[1]) and torch.equal(v_cache[0, 0], value[3])
    assert k_cache.isnan().sum() == (7 * 16 - 2) * 3 * 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_input_and_layer_of_a_larger_cache(backend):
    """Projections come as slices of one (N, heads * D) product or transposed; a layer is a slice of all layers."""
    n, slots = 33, some_slots(33)
    packed = torch.randn(n, 2, 3, 40, generator=torch.Generator().manual_seed(1))
    key, value = packed[:, 0], packed[:, 1].transpose(0, 1).contiguous().transpose(0, 1)
    layers = torch.full((2, 7, 2, 16, 3, 40), torch.nan)
    append_kv(key, value, layers[1, :, 0], layers[1, :, 1], slots, backend=backend)
    assert torch.equal(layers[1, :, 0].flatten(0, 1)[slots], key)
    assert torch.equal(layers[1, :, 1].flatten(0, 1)[slots], value)
    assert layers[0].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_tokens_over_several_threads(backend):
    n = 3001
    k_cache, v_cache = caches(pages=200)
    key, value = tokens(n)
    slots = some_slots(n, 3200)
    append_kv(key, value, k_cache, v_cache, slots, backend=backend)
    assert torch.equal(k_cache.flatten(0, 1)[slots], key) and torch.equal(v_cache.flatten(0, 1)[slots], value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "slots, error, message",
    [
        ([3, 112], IndexError, r"slots\[1\] is 112, but the cache has slots 0 to 111"),
        ([-2, 5], IndexError, r"slots\[0\] is -2"),
        ([9, 9], ValueError, r"slots\[1\] is 9, as is an earlier entry"),
    ],
)
def test_bad_slots_are_named_and_nothing_is_written(backend, slots, error, message):
    k_cache, v_cache = caches()
    with pytest.raises(error, match=message):
        append_kv(*tokens(2), k_cache, v_cache, torch.tensor(slots), backend=backend)
    assert k_cache.isnan().all() and v_cache.isnan().all()
    append_kv(*tokens(2), k_cache, v_cache, torch.tensor([9, 3]), backend=backend)  # no trace of the failed call


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"key": torch.zeros(2, 3, 40, dtype=torch.float64)}, TypeError, "key must be float32 or bfloat16"),
        ({"value": torch.zeros(2, 3, 40, dtype=torch.float16)}, TypeError, "value must be float32"),
        ({"value": torch.zeros(3, 3, 40)}, ValueError, r"value must have shape \(2, 3, 40\)"),
        ({"k_cache": torch.zeros(7, 16, 4, 40)}, ValueError, r"k_cache must have shape \(pages, page_size, 3, 40\)"),
        ({"v_cache": torch.zeros(6, 16, 3, 40)}, ValueError, r"v_cache must have shape \(7, 16, 3, 40\)"),
        ({"v_cache": torch.zeros(7, 3, 16, 40).transpose(1, 2)}, ValueError, "v_cache needs contiguous pages"),
        ({"slots": torch.zeros(2, dtype=torch.int32)}, TypeError, "slots must be int64"),
        ({"slots": torch.zeros(3, dtype=torch.int64)}, ValueError, r"slots must have shape \(2,\)"),
        ({"slots": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "slots is on meta"),
    ],
)
def test_wrong_dtype_shape_layout_or_device_is_named(backend, change, error, message):
    k_cache, v_cache = caches()
    key, value = tokens(2)
    arguments = {"key": key, "value": value, "k_cache": k_cache, "v_cache": v_cache, "slots": torch.tensor([0, 1])}
    with pytest.raises(error, match=message):
        append_kv(**{**arguments, **change}, backend=backend)
    assert k_cache.isnan().all() and v_cache.isnan().all()


def test_operator_passes_opcheck():
    k_cache, v_cache = caches()
    torch.library.opcheck(torch.ops.fastpower.append_kv.default, (*tokens(5), k_cache, v_cache, some_slots(5), "cpu"))


def test_compiles_without_graph_break():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(key, value, k_cache, v_cache, slots):
        append_kv(2 * key, value, k_cache, v_cache, slots)
        return k_cache.sum(dim=(0, 1)).isnan().any()

    k_cache, v_cache = (torch.zeros(7, 16, 3, 40) for _ in range(2))
    key, value = tokens(5)
    assert not step(key, value, k_cache, v_cache, some_slots(5))
    assert torch.equal(k_cache.flatten(0, 1)[some_slots(5)], 2 * key)
