"""``copy_pages``: all layers, the first tokens only, and plans that overlap are refused."""

import pytest
import torch

from fastpower.kernels import copy_pages

BACKENDS = ("reference", "cpu")
PAGES, LAYERS = 11, 5


def caches(page_size=16, heads=3, dim=24, dtype=torch.float32):
    g = torch.Generator().manual_seed(page_size)
    return tuple(torch.randn(LAYERS, PAGES, page_size, heads, dim, generator=g).to(dtype) for _ in range(2))


def plan(*copies):
    return tuple(torch.tensor([c[i] for c in copies], dtype=torch.int64) for i in range(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("page_size", [16, 256])
def test_first_tokens_are_copied_in_all_layers_and_nothing_else_changes(backend, dtype, page_size):
    k_cache, v_cache = caches(page_size, dtype=dtype)
    before = k_cache.clone(), v_cache.clone()
    copies = [(2, 7, 5), (2, 0, page_size), (10, 4, page_size - 1), (3, 9, 0)]
    copy_pages(k_cache, v_cache, *plan(*copies), backend=backend)
    for cache, old in zip((k_cache, v_cache), before, strict=True):
        expected = old.clone()
        for source, target, n in copies:
            expected[:, target, :n] = old[:, source, :n]
        assert torch.equal(cache, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_plan_changes_nothing(backend):
    k_cache, v_cache = caches()
    before = k_cache.clone()
    copy_pages(k_cache, v_cache, *(torch.empty(0, dtype=torch.int64) for _ in range(3)), backend=backend)
    assert torch.equal(k_cache, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_and_values_interleaved_in_one_tensor(backend):
    both = torch.randn(LAYERS, PAGES, 2, 16, 3, 24, generator=torch.Generator().manual_seed(0))
    before = both.clone()
    copy_pages(both[:, :, 0], both[:, :, 1], *plan((1, 8, 9)), backend=backend)
    before[:, 8, :, :9] = before[:, 1, :, :9]
    assert torch.equal(both, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "copies, error, message",
    [
        ([(0, 1, 3), (2, 1, 3)], ValueError, r"target\[2\] is 1, as is an earlier entry"),
        ([(0, 1, 3), (1, 2, 3)], ValueError, r"source\[2\] is 1 is a target too"),
        ([(5, 5, 3)], ValueError, r"source\[1\] is 5 is a target too"),
        ([(0, 11, 3)], IndexError, r"target\[1\] is 11, but the cache has pages 0 to 10"),
        ([(-1, 1, 3)], IndexError, r"source\[1\] is -1"),
        ([(0, 1, 17)], IndexError, r"tokens\[1\] is 17, but a page holds 0 to 16"),
        ([(0, 1, -1)], IndexError, r"tokens\[1\] is -1"),
    ],
)
def test_bad_plans_are_named_and_nothing_is_written(backend, copies, error, message):
    k_cache, v_cache = caches()
    before = k_cache.clone(), v_cache.clone()
    with pytest.raises(error, match=message):
        copy_pages(k_cache, v_cache, *plan((3, 4, 16), *copies), backend=backend)
    assert torch.equal(k_cache, before[0]) and torch.equal(v_cache, before[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"k_cache": torch.zeros(5, 11, 16, 3, 24, dtype=torch.int32)}, TypeError, "k_cache must be float32"),
        ({"k_cache": torch.zeros(11, 16, 3, 24)}, ValueError, r"k_cache must have shape \(layers, pages"),
        ({"v_cache": torch.zeros(5, 11, 16, 3, 24, dtype=torch.bfloat16)}, TypeError, "v_cache must be float32"),
        ({"v_cache": torch.zeros(4, 11, 16, 3, 24)}, ValueError, r"v_cache must have shape \(5, 11, 16, 3, 24\)"),
        ({"target": torch.zeros(1, dtype=torch.int32)}, TypeError, "target must be int64"),
        ({"tokens": torch.zeros(2, dtype=torch.int64)}, ValueError, r"tokens must have shape \(1,\)"),
        ({"source": torch.zeros(1, dtype=torch.int64, device="meta")}, ValueError, "source is on meta"),
    ],
)
def test_wrong_dtype_shape_or_device_is_named(backend, change, error, message):
    k_cache, v_cache = caches()
    source, target, tokens = plan((0, 1, 3))
    arguments = {"k_cache": k_cache, "v_cache": v_cache, "source": source, "target": target, "tokens": tokens}
    with pytest.raises(error, match=message):
        copy_pages(**{**arguments, **change}, backend=backend)


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.fastpower.copy_pages.default, (*caches(), *plan((0, 1, 3), (0, 2, 16)), "cpu"))


def test_compiles_without_graph_break():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(k_cache, v_cache, source, target, tokens):
        copy_pages(k_cache, v_cache, source, target, tokens)
        return k_cache[:, 1, :3] - k_cache[:, 0, :3]

    assert not step(*caches(), *plan((0, 1, 3))).any()
