"""linear: accuracy against float64, and the promise that a row's bits depend on the row and the weights alone."""

import pytest
import torch

from fastpower.kernels import linear, pack_linear

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((1, 1), (1, 7), (33, 64), (65, 63), (96, 1025), (577, 301))  # (out, in)
every_isa = pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512_bf16", "amx"], indirect=True)


def weights(out_features, in_features, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    return weight, torch.randn(out_features, generator=generator)


def rows(count, in_features, dtype, seed=1):
    return torch.randn(count, in_features, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_loses_nothing(shape, dtype):
    weight, _ = weights(*shape, dtype)
    assert torch.equal(pack_linear(weight).weight(), weight)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_at_most_twice_that_of_torch_in_the_same_precision(isa, shape, dtype):
    weight, bias = weights(*shape, dtype)
    x = rows(19, shape[1], dtype)
    exact = x.double() @ weight.double().T + bias.double()
    ours = (linear(x, pack_linear(weight, bias)).double() - exact).abs()
    torchs = (torch.nn.functional.linear(x, weight, bias.to(dtype)).double() - exact).abs()
    # A sum of few terms can come out exact in one order and not in another: allow the rounding of one float32 sum.
    slack = 1e-6 * (x.double().abs() @ weight.double().abs().T).amax()
    assert ours.amax() <= 2 * torchs.amax() + slack
    assert ours.mean() <= 2 * torchs.mean() + slack


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_out_keeps_the_accumulator(isa, dtype):
    weight, bias = weights(70, 129, dtype)
    x = rows(5, 129, dtype)
    packed = pack_linear(weight, bias)
    wide = linear(x, packed, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, linear(x, packed, out_dtype=torch.float32, backend="reference"), rtol=0, atol=2e-4)
    assert torch.equal(wide.to(torch.bfloat16), linear(x, packed, out_dtype=torch.bfloat16))


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [63, 1300])  # below and above one K block
def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(isa, dtype, in_features):
    weight, bias = weights(101, in_features, dtype)
    packed = pack_linear(weight, bias)
    x = rows(300, in_features, dtype)
    alone = torch.cat([linear(x[i : i + 1], packed, out_dtype=torch.float32) for i in range(66)])
    for count in range(1, 66):
        assert torch.equal(linear(x[:count], packed, out_dtype=torch.float32), alone[:count]), count
        assert torch.equal(linear(x[66 - count : 66], packed, out_dtype=torch.float32), alone[66 - count :]), count
    assert torch.equal(linear(x, packed, out_dtype=torch.float32)[:66], alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_threads(dtype, threads):
    weight, bias = weights(577, 301, dtype)
    packed = pack_linear(weight, bias)
    x = rows(130, 301, dtype)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(linear(x, packed, out_dtype=torch.float32))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_rows_and_leading_dimensions(isa, dtype):
    weight, bias = weights(40, 51, dtype)
    packed = pack_linear(weight, bias)
    wide = rows(6, 80, dtype)
    x = wide[:, 3:54]
    assert torch.equal(linear(x, packed), linear(x.contiguous(), packed))
    assert torch.equal(linear(x.reshape(2, 3, 51), packed), linear(x, packed).reshape(2, 3, 40))
    assert torch.equal(linear(x[0], packed), linear(x, packed)[0])
    assert torch.equal(linear(x.T.contiguous().T, packed), linear(x, packed))
    assert linear(x[:0], packed).shape == (0, 40)


def test_packing_a_transposed_weight():
    weight, _ = weights(40, 51, torch.float32)
    assert torch.equal(pack_linear(weight.T.contiguous().T).weight(), weight)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nans_stay_in_their_row_and_column(isa, dtype):
    weight, _ = weights(33, 21, dtype)
    x = rows(4, 21, dtype)
    clean = linear(x, pack_linear(weight))
    x[1, 20] = float("nan")
    weight[32, 20] = float("inf")
    y = linear(x, pack_linear(weight))
    assert y[1].isnan().all() and y[[0, 2, 3], 32].isinf().all()
    assert torch.equal(y[[0, 2, 3], :32], clean[[0, 2, 3], :32])


def test_registered_operator_passes_opcheck():
    weight, bias = weights(40, 51, torch.bfloat16)
    packed = pack_linear(weight, bias)
    x = rows(3, 51, torch.bfloat16)
    arguments = (x, packed.panels, packed.bias, 40, torch.bfloat16, torch.float32)
    torch.library.opcheck(torch.ops.fastpower.linear.default, arguments)
    assert torch.equal(torch.ops.fastpower.linear(*arguments), linear(x, packed, out_dtype=torch.float32))


def test_bad_input_is_named():
    weight, bias = weights(8, 5, torch.float32)
    packed = pack_linear(weight, bias)
    with pytest.raises(TypeError, match="weight must be float32 or bfloat16, got float16"):
        pack_linear(weight.half())
    with pytest.raises(ValueError, match=r"weight must have shape \(out, in\)"):
        pack_linear(weight[0])
    with pytest.raises(ValueError, match="must not be empty"):
        pack_linear(weight[:0])
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\), got \(5,\)"):
        pack_linear(weight, bias[:5])
    with pytest.raises(ValueError, match=r"x must have shape \(rows, 5\), got \(2, 4\)"):
        linear(torch.zeros(2, 4), packed)
    with pytest.raises(TypeError, match="x must be float32, got bfloat16"):
        linear(torch.zeros(2, 5, dtype=torch.bfloat16), packed)
    with pytest.raises(TypeError, match="out_dtype must be float32 or bfloat16"):
        linear(torch.zeros(2, 5), packed, out_dtype=torch.float16)
    with pytest.raises(TypeError, match="must come from pack_linear"):
        linear(torch.zeros(2, 5), weight)
