"""The packed product without torch, for the sanitizer build: odd sizes, every instruction set, several threads."""

import numpy as np
import pytest

from fastpower import _C


def bfloat16(values):
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512_bf16", "amx"], indirect=True)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (13, 33, 63), (97, 70, 1100)])  # rows, out, in
def test_product_equals_numpy(isa, threads, pairs, shape):
    rows, out, inputs = shape
    rng = np.random.default_rng(3)
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    weight = rng.standard_normal((out, inputs), dtype=np.float32)
    bias = rng.standard_normal(out, dtype=np.float32)
    if pairs:
        x, weight = bfloat16(x), bfloat16(weight)
    threads(3)
    memory = np.full(_C.packed_linear_bytes(pairs, inputs, out) + 64, 0xFF, np.uint8)
    panels = memory[-memory.ctypes.data % 64 :]
    _C.pack_linear(pairs, inputs, out, weight.ctypes.data, inputs, panels.ctypes.data)
    back = np.zeros_like(weight)
    _C.unpack_linear(pairs, inputs, out, panels.ctypes.data, back.ctypes.data)
    assert np.array_equal(back, weight)
    y = np.full((rows, out), np.nan, np.float32)
    _C.linear(
        pairs,
        inputs,
        out,
        panels.ctypes.data,
        bias.ctypes.data,
        x.ctypes.data,
        rows,
        inputs,
        y.ctypes.data,
        out,
        False,
    )
    if pairs:
        x, weight = widened(x), widened(weight)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    np.testing.assert_allclose(y, exact, rtol=0, atol=2e-6 * inputs**0.5 * np.abs(exact).max())
