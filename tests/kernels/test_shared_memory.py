"""Memory that is not there, and memory that two arguments share: refused before anything is read or written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastpower import kernels
from fastpower.kernels.caches import meet

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FLOAT = [torch.float32]


def arguments(op: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Good ones; every tensor has storage of its own."""
    generator = torch.Generator().manual_seed(0)

    def floats(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator).to(dtype)

    def ints(*values, dtype=torch.int64):
        return torch.tensor(values, dtype=dtype)

    match op:
        case "sample_tokens":
            return {
                "logits": floats(3, 50), "alpha": torch.ones(3), "exponents": torch.tensor([2.0, 4.0]),
                "rows": ints(0, 1), "keys": ints(5, 6), "positions": ints(1, 2), "exclude": ints(3, -1),
            }  # fmt: skip
        case "score_tokens":
            return {"logits": floats(3, 50), "tokens": ints(0, 1, 2), "exponents": torch.tensor([2.0, 4.0])}
        case "append_kv":
            return {
                "key": floats(3, 2, 8), "value": floats(3, 2, 8), "k_cache": floats(4, 4, 2, 8),
                "v_cache": floats(4, 4, 2, 8), "slots": ints(0, 5, 9),
            }  # fmt: skip
        case "copy_pages":
            return {
                "k_cache": floats(2, 4, 4, 2, 8), "v_cache": floats(2, 4, 4, 2, 8),
                "source": ints(0, 1), "target": ints(2, 3), "tokens": ints(4, 2),
            }  # fmt: skip
        case "paged_attention":
            i32 = torch.int32
            return {
                "query": floats(3, 4, 8), "k_cache": floats(4, 4, 2, 8), "v_cache": floats(4, 4, 2, 8),
                "page_table": ints(0, 1, 2, 3, dtype=i32).reshape(2, 2),
                "query_starts": ints(0, 1, 3, dtype=i32), "lengths": ints(4, 7, dtype=i32),
            }  # fmt: skip
        case "resample":
            return {
                "log_weights": floats(2, 5, dtype=torch.float64),
                "uniforms": torch.rand(2, 1, generator=generator).double(),
            }
        case "linear":
            return {"x": floats(3, 16)}
        case "pack_linear":
            return {"weight": floats(40, 16), "bias": floats(40)}
        case "quantise":
            return {"weight": floats(4, 32)}
    raise AssertionError(op)


def run(op: str, given: dict[str, torch.Tensor], backend: str = "auto"):
    match op:
        case "linear":
            packed = kernels.pack_linear(torch.ones(40, 16, dtype=given["x"].dtype))
            return kernels.linear(given["x"], packed, backend=backend)
        case "pack_linear" | "quantise":
            return getattr(kernels, op)(*given.values(), *(["Q8_0"] if op == "quantise" else []))
    return getattr(kernels, op)(**given, backend=backend)


KINDS = {"sample_tokens": DTYPES, "score_tokens": DTYPES, "append_kv": DTYPES, "copy_pages": DTYPES,
         "paged_attention": DTYPES, "resample": FLOAT, "linear": [torch.float32, torch.bfloat16],
         "pack_linear": [torch.float32, torch.bfloat16], "quantise": DTYPES}  # fmt: skip
CASES = [(op, dtype) for op, dtypes in KINDS.items() for dtype in dtypes]


def shrunk(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """``tensor`` with less memory than it needs, in one of several ways that torch lets happen."""
    entries, size = tensor.numel(), tensor.element_size()
    if how == "last entry":
        tensor.untyped_storage().resize_(entries * size - 1)
        return tensor
    if how == "half":
        tensor.untyped_storage().resize_(entries * size // 2)
        return tensor
    # a view that begins later: its own bytes would fit, behind its offset they do not
    base = torch.zeros(entries + 64, dtype=tensor.dtype)
    base[64:] = tensor.reshape(-1)
    view = base[64:].view(tensor.shape)
    base.untyped_storage().resize_(entries * size + 16)
    return view


@pytest.mark.parametrize("how", ["last entry", "half", "view"])
@pytest.mark.parametrize("op, dtype", CASES, ids=lambda x: str(x).removeprefix("torch."))
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_storage_that_was_resized_to_a_part_is_an_error_as_any_argument(op, dtype, how, backend):
    for name in arguments(op, dtype):
        given = arguments(op, dtype)
        run(op, given, backend)
        given[name] = shrunk(given[name].clone(), how)  # a tensor that NumPy has seen cannot be resized
        before = {other: t.clone() for other, t in given.items() if other != name}
        with pytest.raises(ValueError, match=rf"{name if name != 'x' else 'x'} has shape .*resized to \d+; gather"):
            run(op, given, backend)
        assert all(torch.equal(given[other], was) for other, was in before.items())


def test_blocks_and_panels_of_the_wrong_size_are_refused():
    packed = kernels.pack_linear(torch.ones(40, 16))
    for panels, message in [
        (packed.panels[:-64], "panels must have shape"),
        (torch.zeros(packed.panels.numel() + 1, dtype=torch.uint8)[1:], "multiple of 64"),
        (packed.panels.float(), "panels must be uint8"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            kernels.PackedLinear(panels, None, 16, 40, torch.float32)
    with pytest.raises(ValueError, match="bias must have shape"):
        kernels.PackedLinear(packed.panels, torch.ones(39), 16, 40, torch.float32)
    with pytest.raises((TypeError, ValueError, RuntimeError), match="panels must have shape"):
        torch.ops.fastpower.linear(torch.ones(2, 16), packed.panels, None, 4000, torch.float32, torch.float32, None)


def same(given):
    return given["k_cache"], given["k_cache"]


def shifted(given):
    """By one token: every page overlaps its neighbour of the other cache."""
    *outer, page, heads, dim = given["k_cache"].shape
    entries = given["k_cache"].numel()
    base = torch.zeros(entries + heads * dim, dtype=given["k_cache"].dtype)
    return base[:entries].view(*outer, page, heads, dim), base[heads * dim :].view(*outer, page, heads, dim)


def turned(given):
    return given["k_cache"], given["k_cache"].flip(0)[0:].clone().set_(given["k_cache"])


@pytest.mark.parametrize("make", [same, shifted, turned])
@pytest.mark.parametrize("op", ["append_kv", "copy_pages"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_two_caches_that_share_memory_are_not_written(op, make, backend):
    given = arguments(op, torch.float32)
    given["k_cache"], given["v_cache"] = make(given)
    before = given["k_cache"].clone()
    with pytest.raises(ValueError, match="share memory"):
        run(op, given, backend)
    assert torch.equal(given["k_cache"], before)


@pytest.mark.parametrize("cache", ["k_cache", "v_cache"])
@pytest.mark.parametrize("name", ["key", "value", "slots", "source", "target", "tokens"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_argument_that_lies_in_a_cache_is_refused(name, cache, backend):
    op = "append_kv" if name in ("key", "value", "slots") else "copy_pages"
    given = arguments(op, torch.float32)
    inside = given[cache].view(-1)[64 : 64 + given[name].numel() * given[name].element_size() // 4]
    flat = inside.view(given[name].dtype)
    flat.copy_(given[name].reshape(-1))
    given[name] = flat.view(given[name].shape)
    with pytest.raises(ValueError, match=f"{cache} and {name} share memory.*clone"):
        run(op, given, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0, 1, 40])
def test_caches_that_lie_between_each_other_are_written_each_its_own(dtype, gap):
    """One tensor (pages, 2, …) for both, as other engines have it, with or without room between."""
    base = torch.zeros(4, 2 * 64 + gap, dtype=dtype)
    caches = [base[:, i * 64 : (i + 1) * 64].unflatten(1, (4, 2, 8)) for i in range(2)]
    given = arguments("append_kv", dtype)
    kernels.append_kv(given["key"], given["value"], *caches, given["slots"])
    expected = [torch.zeros(4, 4, 2, 8, dtype=dtype) for _ in range(2)]
    kernels.append_kv(given["key"], given["value"], *expected, given["slots"], backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(caches, expected, strict=True))
    layered = [cache.unflatten(0, (2, 2)) for cache in caches]
    one = torch.zeros(1, dtype=torch.int64)
    kernels.copy_pages(*layered, one, one + 1, one + 4)
    assert torch.equal(layered[0][:, 1], layered[0][:, 0])


def test_bytes_that_two_tensors_have_in_common_are_found_exactly():
    """Against sets of byte numbers, for random views of one piece of memory."""
    random = np.random.default_rng(0)
    base = torch.zeros(240, dtype=torch.uint8)
    found = 0
    for _ in range(600):
        views, bytes_of = [], []
        for _ in range(2):
            dtype = [torch.uint8, torch.int16, torch.float32][random.integers(3)]
            flat = base.view(dtype)
            shape = random.integers(1, 4, size=3)
            stride = random.integers(0, 12, size=3)
            reach = int(((shape - 1) * stride).sum())
            offset = int(random.integers(0, flat.numel() - reach))
            views.append(torch.as_strided(flat, shape.tolist(), stride.tolist(), offset))
            entries = [offset + int(np.dot(at, stride)) for at in itertools.product(*map(range, shape))]
            size = dtype.itemsize
            bytes_of.append({entry * size + i for entry in entries for i in range(size)})
        expected = bool(bytes_of[0] & bytes_of[1])
        assert meet(*views) == expected
        found += expected
    assert 100 < found < 500


@pytest.mark.parametrize("value", [2.5, 2.0, True, "2", None, np.float32(2), torch.tensor(2), torch.tensor([2])])
def test_a_window_that_is_no_whole_number_is_named(value):
    given = arguments("paged_attention", torch.float32)
    with pytest.raises(TypeError, match="paged_attention: window must be a whole number"):
        kernels.paged_attention(**given, window=value)


@pytest.mark.parametrize("name", ["scale", "softcap"])
@pytest.mark.parametrize("value", ["1", True, torch.tensor(1.0), [1.0], 1j])
def test_a_factor_that_is_no_number_is_named(name, value):
    given = arguments("paged_attention", torch.float32)
    with pytest.raises(TypeError, match=f"paged_attention: {name} must be a number"):
        kernels.paged_attention(**given, **{name: value})


@pytest.mark.parametrize("value", [np.int32(2), np.int64(2), np.uint8(2)])
def test_numpys_integers_are_whole_numbers(value):
    given = arguments("paged_attention", torch.float32)
    assert torch.equal(kernels.paged_attention(**given, window=value), kernels.paged_attention(**given, window=2))


@pytest.mark.parametrize("change", [{"query": 3}, {"query": None}, {"query": torch.ones(())}, {"shared": (1,)},
                                    {"shared": torch.ones(2)}, {"shared": 5}])  # fmt: skip
def test_what_is_no_tensor_at_all_is_named(change):
    with pytest.raises((TypeError, ValueError), match=rf"paged_attention: {next(iter(change))} must"):
        kernels.paged_attention(**(arguments("paged_attention", torch.float32) | change))
