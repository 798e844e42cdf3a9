"""Quantised weights: their values are the file's, and a product's bits depend on the row and the weights alone."""

import numpy as np
import pytest
import torch
from fastpower.kernels.reference.quantised import dequantise

from fastpower.kernels import QuantisedBlocks, linear, pack_linear, quantise
from fastpower.kernels.quantised import FORMATS
from tests.kernels.quantised_inputs import random_blocks

gguf = pytest.importorskip("gguf")
from gguf import quants  # noqa: E402

every_format = pytest.mark.parametrize("format", FORMATS)
every_isa = pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512_bf16", "amx"], indirect=True)
#: out features that are one less and one more than panels of 32, inputs that are odd multiples of a block
SHAPES = ((1, 1), (31, 3), (65, 5))


def weights(format, out, blocks, seed=0):
    return random_blocks(format, out, blocks * FORMATS[format].block, seed)


def rows(count, inputs, dtype=torch.float32, seed=1):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


def equal_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@every_format
def test_formats_are_those_of_the_gguf_library(format):
    type = gguf.GGMLQuantizationType[format]
    assert (FORMATS[format].type, *gguf.GGML_QUANT_SIZES[type]) == (int(type), *FORMATS[format][2:])


@every_format
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_gguf_library_bit_for_bit(format, shape):
    weight = weights(format, *shape)
    expected = torch.from_numpy(quants.dequantize(weight.blocks.numpy(), gguf.GGMLQuantizationType[format]))
    assert equal_bits(weight.dequantise(), expected)
    assert equal_bits(dequantise(weight.blocks, format), expected)
    assert equal_bits(pack_linear(weight).weight(), expected)


@every_isa
@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_at_most_twice_that_of_torch_in_bfloat16(isa, format, dtype):
    """A stricter twin: at most 2⁻¹⁶ of the largest of each 32 inputs, and float32 rounding."""
    weight, bias = weights(format, 65, 5), rows(1, 65)[0]
    exact_weight = weight.dequantise().double()
    x = rows(7, weight.in_features, dtype)
    exact = x.double() @ exact_weight.T + bias.double()
    ours = (linear(x, pack_linear(weight, bias), out_dtype=torch.float32).double() - exact).abs()
    narrow = torch.nn.functional.linear(x.bfloat16(), exact_weight.bfloat16(), bias.bfloat16())
    torchs = (narrow.double() - exact).abs()
    assert ours.amax() <= 2 * torchs.amax() and ours.mean() <= 2 * torchs.mean()
    largest = x.double().abs().reshape(7, -1, 32).amax(2, keepdim=True).expand(-1, -1, 32).reshape(x.shape)
    size = x.double().abs() @ exact_weight.abs().T + bias.double().abs()
    # float32: the scaled sum of a block and the subtraction of its min, each a rounding of numbers above the values
    assert (ours <= 1.001 * 2.0**-16 * (largest @ exact_weight.abs().T) + 32 * 2.0**-24 * size + 1e-4).all()


@every_isa
@every_format
def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(isa, format):
    weight = weights(format, 37, 3)
    packed = pack_linear(weight)
    x = rows(203, weight.in_features)
    alone = torch.cat([linear(x[i : i + 1], packed) for i in range(30)])
    for count in (2, 3, 4, 5, 8, 12, 13, 25, 30):
        assert equal_bits(linear(x[:count], packed), alone[:count]), count
        assert equal_bits(linear(x[30 - count : 30], packed), alone[30 - count :]), count
    assert equal_bits(linear(x, packed)[:30], alone)


@every_format
def test_bits_do_not_depend_on_the_threads(format, threads):
    weight = weights(format, 577, 2)
    packed, x = pack_linear(weight), rows(130, weight.in_features)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(torch.cat([linear(x, packed), linear(x[:3], packed)]))
    assert equal_bits(results[0], results[1]) and equal_bits(results[0], results[2])


@every_format
def test_vector_instruction_sets_agree_bit_for_bit(format):
    from fastpower import _C

    weight = weights(format, 33, 3)
    packed, x, before = pack_linear(weight), rows(6, weight.in_features), _C.isa()
    results = {}
    try:
        for isa in ("avx2", "avx512", "avx512_bf16", "amx"):
            try:
                _C.set_isa(isa)
            except ValueError:
                continue
            results[isa] = torch.cat([linear(x, packed), linear(x[:2], packed)])
    finally:
        _C.set_isa(before)
    if len(results) < 2:
        pytest.skip("this machine has one vector instruction set at most")
    first = next(iter(results.values()))
    assert all(equal_bits(result, first) for result in results.values()), list(results)


@every_isa
def test_rows_of_any_size_keep_their_precision(isa):
    """Blocks of zeros, of huge, tiny and mixed numbers; the largest integers there are."""
    weight = weights("Q8_0", 33, 4)
    x = rows(9, 128)
    x[0] = 0
    x[1] *= 1e30
    x[2] *= 1e-25
    x[3, ::2] *= 1e4
    x[4] = 32639.499  # rounds to the largest integer that two signed digits hold
    x[5] = -32639.501
    x[6] = torch.where(torch.arange(128) % 2 == 0, 32767.0, -32767.0)
    x[7, 64:] = 0
    exact = x.double() @ weight.dequantise().double().T
    packed = pack_linear(weight)
    largest = x.double().abs().reshape(9, 4, 32).amax(2, keepdim=True).expand(9, 4, 32).reshape(9, 128)
    bound = 2.0**-15 * (largest @ weight.dequantise().double().abs().T)
    for part in (slice(0, 4), slice(4, 8), slice(0, 9)):
        y = linear(x[part].contiguous(), packed).double()
        assert ((y - exact[part]).abs() <= bound[part] + 1e-30).all()


@every_isa
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_gives_nan_and_leaves_the_others_alone(isa, bad):
    weight = weights("Q4_K", 40, 2)
    packed, x = pack_linear(weight), rows(7, 512)
    clean = linear(x, packed)
    x[2, 300] = bad
    for part in (slice(1, 4), slice(0, 7)):
        y = linear(x[part].contiguous(), packed)
        hit = torch.arange(7)[part] == 2
        assert y[hit].isnan().all() and equal_bits(y[~hit], clean[part][~hit])


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
def test_quantise_rounds_as_the_gguf_library_does(format):
    weight = rows(41, 96, seed=5) * 0.05
    weight[3] = 0
    weight[4, 7] = -3.0
    ours = quantise(weight, format)
    theirs = quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[format])
    assert np.array_equal(ours.blocks.numpy(), theirs)
    error = (ours.dequantise() - weight).abs().reshape(41, -1, 32).amax(2)
    largest = weight.abs().reshape(41, -1, 32).amax(2)
    assert (error <= (0.0045 if format == "Q8_0" else 0.127) * largest).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="format='Q3_K' is not one of Q4_0"):
        QuantisedBlocks(torch.zeros(2, 34, dtype=torch.uint8), "Q3_K")
    with pytest.raises(ValueError, match=r"\(out, n · 34\) for Q8_0, n ≥ 1, got \(2, 35\)"):
        QuantisedBlocks(torch.zeros(2, 35, dtype=torch.uint8), "Q8_0")
    with pytest.raises(TypeError, match="blocks must be uint8, got float32"):
        QuantisedBlocks(torch.zeros(2, 34), "Q8_0")
    weight = weights("Q8_0", 3, 1)
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\)"):
        pack_linear(weight, torch.zeros(4))
    with pytest.raises(TypeError, match="x must be float32 or bfloat16, got float64"):
        linear(torch.zeros(1, 32, dtype=torch.float64), pack_linear(weight))
    with pytest.raises(ValueError, match="33 inputs; Q8_0 takes multiples of 32"):
        quantise(torch.zeros(1, 33), "Q8_0")
    with pytest.raises(ValueError, match="not finite"):
        quantise(torch.full((1, 32), float("inf")), "Q4_0")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((9, 32, 1), "type 9 is not one of Q4_0"),
        ((8, 33, 1), "in must be a positive multiple of 32 for type 8, got 33"),
        ((12, 32, 1), "in must be a positive multiple of 256 for type 12, got 32"),
        ((8, 0, 1), "in must be a positive"),
        ((8, 32, 0), "out must be at least 1, got 0"),
        ((8, 2**40, 2**40), "its sizes overflow"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_the_extension(arguments, match):
    from fastpower import _C

    with pytest.raises((ValueError, OverflowError), match=match):
        _C.quantised_bytes(*arguments)


def test_out_dtype_follows_the_rows():
    weight = weights("Q4_0", 3, 2)
    packed, x = pack_linear(weight), rows(2, 64)
    assert linear(x, packed).dtype == torch.float32
    assert linear(x.bfloat16(), packed).dtype == torch.bfloat16
    assert torch.equal(linear(x, packed, out_dtype=torch.bfloat16), linear(x, packed).bfloat16())
    torch.testing.assert_close(linear(x, packed), linear(x, packed, backend="reference"), rtol=0, atol=1e-4)
