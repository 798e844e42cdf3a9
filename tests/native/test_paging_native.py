"""append_kv, copy_pages and paged_attention without torch, for the sanitizer build.

Caches are as small as they may be and held in buffers of their own, so that a read or write past a page, a row or the
page table is one past a buffer.
"""

import numpy as np
import pytest

from fastpower import _C


@pytest.fixture(autouse=True)
def three_threads(threads):
    threads(3)


def address(array):
    return array.ctypes.data


def append(key, value, k_cache, v_cache, slots):
    pages, page_size, heads, dim = k_cache.shape
    size = key.itemsize
    _C.append_kv(
        key=address(key),
        value=address(value),
        key_token_stride=key.strides[0],
        key_head_stride=key.strides[1],
        value_token_stride=value.strides[0],
        value_head_stride=value.strides[1],
        k_cache=address(k_cache),
        v_cache=address(v_cache),
        k_page_stride=k_cache.strides[0],
        v_page_stride=v_cache.strides[0],
        num_pages=pages,
        page_size=page_size,
        heads=heads,
        head_bytes=dim * size,
        slots=address(slots),
        tokens=len(slots),
    )


def copy(k_cache, v_cache, source, target, tokens):
    layers, pages, page_size, heads, dim = k_cache.shape
    _C.copy_pages(
        k_cache=address(k_cache),
        v_cache=address(v_cache),
        k_layer_stride=k_cache.strides[0],
        k_page_stride=k_cache.strides[1],
        v_layer_stride=v_cache.strides[0],
        v_page_stride=v_cache.strides[1],
        layers=layers,
        num_pages=pages,
        page_size=page_size,
        token_bytes=heads * dim * k_cache.itemsize,
        source=address(source),
        target=address(target),
        tokens=address(tokens),
        copies=len(source),
    )


def attend(query, k_cache, v_cache, table, starts, lengths, *, window=0, softcap=0.0, shared=None, dtype="float32"):
    pages, page_size, kv_heads, dim = k_cache.shape
    out = np.full_like(query, np.nan) if dtype == "float32" else np.full_like(query, 0x7FC0)
    shared_starts, shared_pages = shared if shared else (np.zeros(1, np.int32), np.zeros(0, np.int32))
    _C.paged_attention(
        query=address(query),
        k_cache=address(k_cache),
        v_cache=address(v_cache),
        out=address(out),
        dtype=dtype,
        query_token_stride=query.shape[1] * dim,
        query_head_stride=dim,
        k_page_stride=page_size * kv_heads * dim,
        v_page_stride=page_size * kv_heads * dim,
        tokens=len(query),
        q_heads=query.shape[1],
        kv_heads=kv_heads,
        head_dim=dim,
        num_pages=pages,
        page_size=page_size,
        page_table=address(table),
        sequences=len(lengths),
        max_pages=table.shape[1],
        table_stride=table.shape[1],
        query_starts=address(starts),
        lengths=address(lengths),
        shared_starts=address(shared_starts),
        shared_pages=address(shared_pages),
        groups=len(shared_pages),
        scale=dim**-0.5,
        window=window,
        softcap=softcap,
    )
    return out


def exact(query, k_cache, v_cache, table, starts, lengths, *, window=0, softcap=0.0):
    """The definition, in float64."""
    page_size, kv_heads, dim = k_cache.shape[1:]
    group = query.shape[1] // kv_heads
    out = np.empty(query.shape)
    for s, length in enumerate(lengths):
        new = starts[s + 1] - starts[s]
        used = table[s, : -(-length // page_size)]
        k, v = (cache[used].reshape(-1, kv_heads, dim)[:length].astype(np.float64) for cache in (k_cache, v_cache))
        for i in range(new):
            own = length - new + i
            first = max(0, own - window + 1) if window else 0
            for h in range(query.shape[1]):
                score = k[first : own + 1, h // group] @ query[starts[s] + i, h].astype(np.float64) * dim**-0.5
                if softcap:
                    score = softcap * np.tanh(score / softcap)
                p = np.exp(score - score.max())
                out[starts[s] + i, h] = p @ v[first : own + 1, h // group] / p.sum()
    return out


def make(lengths, queries, q_heads, kv_heads, dim, page_size, shared_pages=0, seed=0):
    rng = np.random.default_rng(seed)
    own = [-(-n // page_size) - shared_pages for n in lengths]
    table = np.zeros((len(lengths), shared_pages + max(own)), np.int32)
    table[:] = -1
    order = rng.permutation(shared_pages + sum(own)).astype(np.int32)
    at = shared_pages
    for s, n in enumerate(own):
        table[s, :shared_pages] = order[:shared_pages]
        table[s, shared_pages : shared_pages + n] = order[at : at + n]
        at += n
    shape = (len(order), page_size, kv_heads, dim)
    k_cache, v_cache = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    query = rng.standard_normal((sum(queries), q_heads, dim), dtype=np.float32)
    starts = np.cumsum([0, *queries]).astype(np.int32)
    return query, k_cache, v_cache, table, starts, np.array(lengths, np.int32)


@pytest.mark.parametrize("options", [{}, {"window": 70}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("shape", [(9, 3, 64, 16), (5, 5, 8, 7), (4, 1, 72, 1), (2, 2, 256, 48)], ids=str)
def test_attention_equals_the_definition(isa, shape, options):
    case = make([1, 65, 200, 64], [1, 30, 2, 1], *shape)
    np.testing.assert_allclose(attend(*case, **options), exact(*case, **options), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sharing_changes_no_bit(isa, dtype):
    query, k_cache, v_cache, *rest = make([140, 150, 133], [1, 2, 1], 6, 2, 40, 16, shared_pages=8)
    if dtype == "bfloat16":
        query, k_cache, v_cache = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (query, k_cache, v_cache))
    elif dtype == "float16":
        query, k_cache, v_cache = (x.astype(np.float16).view(np.uint16) for x in (query, k_cache, v_cache))
    shared = np.array([0, 3], np.int32), np.array([8], np.int32)
    apart = attend(query, k_cache, v_cache, *rest, dtype=dtype)
    assert np.array_equal(attend(query, k_cache, v_cache, *rest, dtype=dtype, shared=shared), apart)
    assert len(np.unique(apart)) > apart.size // 20


def test_bad_sequences_are_refused_before_anything_is_read():
    query, k_cache, v_cache, table, starts, lengths = make([20, 30], [1, 1], 2, 2, 8, 16)
    for bad in (np.array([20, 33], np.int32), np.array([0, 30], np.int32)):
        with pytest.raises(ValueError, match="paged_attention: lengths"):
            attend(query, k_cache, v_cache, table, starts, bad)
    for page in (-1, len(k_cache)):
        wrong = table.copy()
        wrong[1, 1] = page
        with pytest.raises(IndexError, match=r"paged_attention: page_table\[1\]\[1\]"):
            attend(query, k_cache, v_cache, wrong, starts, lengths)
    with pytest.raises(ValueError, match="query_starts must go from 0"):
        attend(query, k_cache, v_cache, table, np.array([0, 1, 3], np.int32), lengths)


def test_appended_and_copied_tokens_are_where_they_belong():
    rng = np.random.default_rng(1)
    layers = [np.full((2, 9, 16, 3, 24), np.nan, np.float32) for _ in range(2)]
    key, value = (rng.standard_normal((2, 61, 3, 24), dtype=np.float32) for _ in range(2))
    slots = rng.permutation(8 * 16)[:61]
    slots[5] = -1
    for layer in range(2):
        append(key[layer], value[layer], layers[0][layer], layers[1][layer], slots)
    kept = slots >= 0
    for cache, new in zip(layers, (key, value), strict=True):
        assert np.array_equal(cache.reshape(2, -1, 3, 24)[:, slots[kept]], new[:, kept])
        assert np.isnan(cache).sum() == cache.size - new[:, kept].size
    before = [cache.copy() for cache in layers]
    source, target, tokens = np.array([3, 3]), np.array([8, 5]), np.array([16, 7])
    copy(*layers, source, target, tokens)
    for cache, old in zip(layers, before, strict=True):
        assert np.array_equal(cache[:, 8], old[:, 3], equal_nan=True)
        assert np.array_equal(cache[:, 5, :7], old[:, 3, :7], equal_nan=True)
        assert np.array_equal(cache[:, 5, 7:], old[:, 5, 7:], equal_nan=True)


@pytest.mark.parametrize("slots", [[16, 0], [-2, 0], [3, 3]])
def test_bad_slots_write_nothing(slots):
    caches = [np.zeros((1, 16, 2, 8), np.float32) for _ in range(2)]
    new = np.ones((2, 2, 8), np.float32)
    with pytest.raises((IndexError, ValueError), match=r"append_kv: slots\["):
        append(new, new, *caches, np.array(slots))
    assert not caches[0].any() and not caches[1].any()


@pytest.mark.parametrize("plan", [([0, 1], [2, 2]), ([0, 2], [2, 3]), ([0, 4], [1, 2]), ([0, 1], [2, -1])])
def test_overlapping_or_missing_pages_copy_nothing(plan):
    caches = [np.arange(4 * 16 * 8, dtype=np.float32).reshape(1, 4, 16, 1, 8) for _ in range(2)]
    with pytest.raises((IndexError, ValueError), match=r"copy_pages: (source|target)"):
        copy(*caches, np.array(plan[0]), np.array(plan[1]), np.array([16, 16]))
    assert np.array_equal(caches[0].ravel(), np.arange(4 * 16 * 8))
