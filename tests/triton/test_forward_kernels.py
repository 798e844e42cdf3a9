"""The pieces of a decoder's forward on the Triton backend, interpreted, against their float64 specification."""

import pytest
import torch
from fastpower.kernels.reference import add_rms_norm as reference_norm
from fastpower.kernels.reference import gated_activation as reference_gate
from fastpower.kernels.reference import rotary_append as reference_rotary
from fastpower.kernels.triton.add_rms_norm import add_rms_norm
from fastpower.kernels.triton.gated_activation import gated_activation
from fastpower.kernels.triton.rotary_append import rotary_append

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within_one_rounding(value, expected):
    """At most a unit in the last place of their dtype apart: float32 inside, rounded once."""
    assert value.dtype == expected.dtype
    ulp = torch.finfo(value.dtype).eps
    torch.testing.assert_close(value, expected, rtol=max(ulp, 1e-6), atol=1e-6 + ulp * 1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 80, 896, 1030])
@pytest.mark.parametrize("inner", [False, True], ids=["plain", "inner norm"])
def test_residual_and_norm_are_those_of_the_reference(inner, width, dtype):
    residual, x = 3 * normal(3, width), normal(3, width, seed=1, dtype=dtype)
    weight, own = normal(width, seed=2), normal(width, seed=3)
    streams = residual.clone(), residual.clone()
    options = dict(eps=1e-5, dtype=dtype, inner=own if inner else None)
    value = add_rms_norm(streams[0], x, weight, **options)
    expected = reference_norm.add_rms_norm(streams[1], x, weight, **options)
    torch.testing.assert_close(*streams, rtol=1e-6, atol=1e-6)
    assert_within_one_rounding(value, expected)
    assert not torch.equal(streams[0], residual)


def test_without_a_layers_output_the_stream_stays():
    residual = normal(2, 64)
    before = residual.clone()
    value = add_rms_norm(residual, None, torch.ones(64), eps=0.0, dtype=torch.float32)
    assert torch.equal(residual, before)
    torch.testing.assert_close(value.square().mean(1), torch.ones(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [8, 64, 80])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "head norm"])
def test_rotated_queries_and_the_cache_are_those_of_the_reference(norm, head_dim, dtype):
    heads, kv_heads, tokens = 6, 2, 4
    qkv = normal(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    angle = torch.arange(50.0)[:, None] * 100.0 ** -torch.arange(0, 1, 2 / head_dim)
    positions, slots = torch.tensor([0, 3, 49, 7]), torch.tensor([30, 1, -1, 16])
    norms = dict(q_norm=normal(head_dim, seed=4), k_norm=normal(head_dim, seed=5), eps=1e-6) if norm else {}
    tables = angle.cos().contiguous(), angle.sin().contiguous()
    results = []
    for run in (rotary_append, reference_rotary.rotary_append):
        k, v = normal(2, 4, 16, kv_heads, head_dim, seed=6, dtype=dtype)
        query = run(qkv, *tables, positions, slots, k, v, heads=heads, **norms)
        results.append((query, k, v))
    for mine, right in zip(*results, strict=True):
        assert_within_one_rounding(mine, right)
    assert torch.equal(results[0][2], results[1][2])  # values are copied


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gelu", [False, True], ids=["silu", "gelu"])
@pytest.mark.parametrize("width", [1, 48, 1025])
def test_gated_activation_is_that_of_the_reference(width, gelu, dtype):
    x = 4 * normal(3, 2 * width, dtype=dtype)
    x[0, 0], x[1, 0] = 100.0, -100.0
    assert_within_one_rounding(gated_activation(x, gelu=gelu), reference_gate.gated_activation(x, gelu=gelu))


def test_no_rows_are_fine():
    assert gated_activation(torch.empty(0, 8)).shape == (0, 4)
    assert add_rms_norm(torch.empty(0, 8), None, torch.ones(8), eps=0.0, dtype=torch.float32).shape == (0, 8)
