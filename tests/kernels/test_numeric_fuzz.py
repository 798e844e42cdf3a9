"""Random numbers of every kind through every operator on every instruction set, against the reference.

Each case is drawn from a seed: sizes around the borders of vectors and blocks, magnitudes from denormal to near
overflow, −0, ±inf and NaN, strides and dtypes. An error may be twice that of torch computing in the case's own dtype
(``twice``), or none at all where the operator moves or counts. The number of cases is a parameter of each test; there
are some 3,800 on a machine with AVX-512.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastpower import kernels
from fastpower.kernels.quantised import FORMATS
from tests.kernels.paging_inputs import make_case
from tests.kernels.quantised_inputs import random_blocks
from tests.kernels.test_paged_attention import eager

ISAS = ["portable", "avx2", "avx512", "avx512_bf16", "amx"]
every_isa = pytest.mark.parametrize("isa", ISAS, indirect=True)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
CASES = 60
#: widths of vectors, blocks and panels, with one less and one more
BORDERS = sorted({max(1, n + d) for n in (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096) for d in (-1, 0, 1)})


def numbers(rng: np.random.Generator, *shape: int, dtype: torch.dtype, special: float = 0.3, most: float = 1e4):
    """Normals of a random magnitude at most ``most``; sometimes −0 and denormals among them."""
    scale = 10.0 ** rng.uniform(-6, np.log10(most))
    values = rng.standard_normal(shape) * scale
    if rng.random() < special:
        tiny = torch.finfo(dtype).tiny
        some = rng.random(shape) < 0.2
        values = np.where(some, rng.choice([-0.0, 0.0, tiny / 2, -tiny / 4, tiny], size=shape), values)
    limit = torch.finfo(dtype).max
    return torch.from_numpy(np.clip(values, -limit, limit)).to(dtype)


def broken(rng: np.random.Generator, tensor: torch.Tensor, values=(np.nan, np.inf, -np.inf)) -> torch.Tensor:
    """A copy with one to three entries that are not finite."""
    tensor = tensor.clone()
    for _ in range(rng.integers(1, 4)):
        tensor.view(-1)[rng.integers(tensor.numel())] = rng.choice(values)
    return tensor


def strided(rng: np.random.Generator, tensor: torch.Tensor) -> torch.Tensor:
    """Equal values, now and then in rows that lie apart and begin anywhere."""
    if rng.random() < 0.5:
        return tensor
    rows, width = tensor.shape[0], tensor[0].numel()
    gap, shift = int(rng.integers(0, 9)), int(rng.integers(0, 5))
    room = torch.full((shift + rows * (width + gap) + 1,), torch.nan, dtype=tensor.dtype)
    view = room[shift : shift + rows * (width + gap)].view(rows, width + gap)[:, :width]
    view.copy_(tensor.reshape(rows, width))
    return view.unflatten(1, tensor.shape[1:])


def twice(ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, slack: float | torch.Tensor = 0.0) -> None:
    """At most twice the largest error of torch where the exact result is finite, and not finite where it is not."""
    good = exact.isfinite()
    fits = good & (exact.abs() < torch.finfo(ours.dtype).max * 0.999)
    assert (ours.isfinite() | ~fits).all(), "not finite where the exact result is"
    assert (~ours.isfinite() | good).all(), "finite where the exact result is not"
    if fits.any():
        error = (ours.double() - exact)[fits].abs()
        theirs = (torchs.double() - exact)[fits].abs().nan_to_num(nan=0.0, posinf=0.0)
        slack = slack[fits] if isinstance(slack, torch.Tensor) else slack
        assert (error <= 2 * theirs.max() + slack).all(), (error.max(), theirs.max())


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("cases", [CASES])
def test_sampling_and_scoring(isa, dtype, cases):
    rng = np.random.default_rng(1)
    for _ in range(cases):
        rows, vocab = int(rng.integers(1, 5)), int(rng.choice(BORDERS))
        logits = numbers(rng, rows, vocab, dtype=dtype, most=float(rng.choice([5.0, 50.0, 1e4])))
        kind = rng.random()
        if kind < 0.3:
            logits[torch.from_numpy(rng.random((rows, vocab)) < rng.random())] = -torch.inf
        elif kind < 0.4:
            logits = broken(rng, logits)
        logits = strided(rng, logits)
        draws = int(rng.integers(0, 7))

        def pick(high, low=0, draws=draws):
            return torch.from_numpy(rng.integers(low, high, draws))

        given = {
            "logits": logits,
            "alpha": torch.from_numpy(rng.choice([0.25, 1.0, 1.5, 4.0, 16.0], rows)).float(),
            "exponents": torch.tensor(rng.choice([0.25, 1.0, 3.0, 4.0, 16.0], rng.integers(0, 4)), dtype=torch.float32),
            "rows": pick(rows),
            "keys": pick(2**62, -(2**62)),
            "positions": pick(2**31),
            "exclude": pick(vocab, -1),
        }
        ours, exact = (kernels.sample_tokens(**given, backend=backend) for backend in ("cpu", "reference"))
        assert torch.equal(ours.status, exact.status)
        tokens = torch.from_numpy(rng.integers(0, vocab, rows))
        scored = [kernels.score_tokens(logits, tokens, given["exponents"], backend=b) for b in ("cpu", "reference")]
        assert torch.equal(scored[0].status, scored[1].status)
        close = {"atol": 2e-5, "rtol": 2.0**-23, "equal_nan": True}
        for name in ("logz", "entropy"):
            torch.testing.assert_close(getattr(ours, name), getattr(exact, name), **close)
            torch.testing.assert_close(getattr(scored[0], name), getattr(scored[1], name), **close)
        torch.testing.assert_close(scored[0].logp, scored[1].logp, **close)
        # where two tokens are nearly as good, float32 may order them otherwise: then they are as likely
        same = ours.token == exact.token
        assert ((ours.token >= 0) == (exact.token >= 0)).all()
        assert same.float().mean() > 0.8 or draws < 5
        torch.testing.assert_close(ours.logp[same], exact.logp[same], **close)


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("cases", [CASES // 2])
def test_attention(isa, dtype, cases):
    rng = np.random.default_rng(2)
    for _ in range(cases):
        heads = int(rng.choice([1, 2, 3]))
        lengths = rng.choice([1, 2, 7, 15, 16, 17, 31, 33, 64, 65, 130], rng.integers(1, 4)).tolist()
        case = make_case(
            lengths,
            [int(rng.integers(1, min(n, 20) + 1)) for n in lengths],
            q_heads=heads * int(rng.choice([1, 2, 4, 7])),
            kv_heads=heads,
            head_dim=int(rng.choice([8, 16, 24, 40, 64, 72, 128, 200, 256])),
            page_size=int(rng.choice([1, 3, 8, 16, 32])),
            dtype=dtype,
            seed=int(rng.integers(10**6)),
        )
        factor = 10.0 ** rng.uniform(-3, 1)
        case = case._replace(query=(case.query.float() * factor).to(dtype))
        if rng.random() < 0.3:
            dull = torch.from_numpy(rng.choice([-0.0, torch.finfo(dtype).tiny / 2], case.query.shape)).to(dtype)
            case = case._replace(query=torch.where(torch.rand(case.query.shape) < 0.3, dull, case.query))
        options = {"window": int(rng.choice([0, 0, 1, 5, 40])), "softcap": float(rng.choice([0.0, 0.0, 2.0, 50.0]))}
        exact = reference_double(case, options)
        ours = kernels.paged_attention(*case, **options, backend="cpu")
        step = torch.finfo(dtype).eps * 4  # a row of one key: torch's error is that of rounding alone
        twice(ours, eager(case, **options), exact, slack=step * exact.abs().nan_to_num() + 1e-6)


def reference_double(case, options):
    from fastpower.kernels.reference.paged_attention import paged_attention

    return paged_attention(*(t.double() if t.is_floating_point() else t for t in case), **options)


@every_isa
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["query", "k_cache", "v_cache"])
def test_attention_over_what_is_not_finite(isa, where, bad):
    """Whoever sees it says so, and nobody else: rows that are finite in the reference have its values."""
    rng = np.random.default_rng(3)
    for _ in range(12):
        case = make_case([20, 33], [4, 9], q_heads=4, kv_heads=2, head_dim=int(rng.choice([8, 40, 64])),
                         page_size=8, seed=int(rng.integers(10**6)))  # fmt: skip
        if where == "query":
            case.query.view(-1)[rng.integers(case.query.numel())] = bad
        else:
            token = int(rng.integers(17))  # which all four queries see; the reference multiplies unseen ones by 0
            page = int(case.page_table[0, token // 8])
            getattr(case, where)[page, token % 8, rng.integers(2), rng.integers(case.query.shape[2])] = bad
        exact = reference_double(case, {})
        ours = kernels.paged_attention(*case, backend="cpu")
        assert torch.equal(ours.isfinite(), exact.isfinite())
        good = exact.isfinite()
        torch.testing.assert_close(ours[good].double(), exact[good], rtol=1e-5, atol=1e-5)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cases", [CASES])
def test_products(isa, dtype, cases):
    rng = np.random.default_rng(4)
    sizes = [n for n in BORDERS if n <= 257]
    for i in range(cases):
        rows, inputs, outputs = int(rng.choice([1, 2, 3, 5, 8, 17, 33])), *(int(n) for n in rng.choice(sizes, 2))
        x = numbers(rng, rows, inputs, dtype=dtype)
        weight = numbers(rng, outputs, inputs, dtype=dtype)
        bias = numbers(rng, outputs, dtype=torch.float32) if rng.random() < 0.5 else None
        if i % 4 == 3:
            x = broken(rng, x)
        x, weight = strided(rng, x), strided(rng, weight)
        exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        torchs = torch.nn.functional.linear(x, weight, None if bias is None else bias.to(dtype))
        out_dtype = [torch.float32, torch.bfloat16][rng.integers(2)]
        ours = kernels.linear(x, kernels.pack_linear(weight, bias), out_dtype=out_dtype, backend="cpu")
        size = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
        # a sum of n roundings of float32, and one of the result
        slack = (
            2.0**-23 * (inputs + 2) * size.nan_to_num(posinf=0) + torch.finfo(out_dtype).eps * exact.abs().nan_to_num()
        )
        twice(ours, torchs, exact, slack=slack + torch.finfo(torch.float32).tiny * inputs)


@every_isa
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("cases", [CASES // 4])
def test_products_with_quantised_weights(isa, format, cases):
    rng = np.random.default_rng(5)
    block = FORMATS[format].block
    for i in range(cases):
        outputs, blocks = int(rng.choice([1, 2, 31, 32, 33, 63, 65])), int(rng.integers(1, 6))
        weight = random_blocks(format, outputs, blocks * block, seed=int(rng.integers(10**6)))
        dtype = [torch.float32, torch.bfloat16][rng.integers(2)]
        x = numbers(rng, int(rng.choice([1, 2, 3, 4, 5, 12, 13, 33])), blocks * block, dtype=dtype)
        bias = numbers(rng, outputs, dtype=torch.float32) if rng.random() < 0.5 else None
        bad = i % 5 == 4
        if bad:
            x = broken(rng, x)
        x = strided(rng, x)
        ours = kernels.linear(x, kernels.pack_linear(weight, bias), out_dtype=torch.float32, backend="cpu").double()
        full = weight.dequantise().double()
        exact = x.double() @ full.T + (0 if bias is None else bias.double())
        finite = x.isfinite().all(1)
        assert ours[~finite].isnan().all() if bad else True
        largest = x.double().abs().reshape(len(x), -1, 32).amax(2, keepdim=True).expand(-1, -1, 32).reshape(x.shape)
        size = x.double().abs() @ full.abs().T + (0 if bias is None else bias.double().abs())
        bound = 1.001 * 2.0**-16 * (largest @ full.abs().T) + 2.0**-24 * (32 + 2 * blocks * block / 32) * size
        bound += 2.0**-24 * 16 * (largest @ full.abs().T)  # mins are subtracted from sums larger than the values
        assert ((ours - exact).abs()[finite] <= bound[finite] + 1e-30).all()


@every_isa
@pytest.mark.parametrize("cases", [CASES])
def test_resampling(isa, cases):
    rng = np.random.default_rng(6)
    for _ in range(cases):
        count, sets = int(rng.choice([n for n in BORDERS if n <= 1025])), int(rng.integers(1, 4))
        weights = rng.standard_normal((sets, count)) * 10.0 ** rng.uniform(-3, 3)
        weights[rng.random((sets, count)) < rng.choice([0.0, 0.3, 0.97])] = -np.inf
        for scheme in ("systematic", "stratified", "multinomial", "residual"):
            uniforms = torch.from_numpy(rng.random((sets, 1 if scheme == "systematic" else count)))
            given = torch.from_numpy(weights)
            ours, exact = (kernels.resample(given, uniforms, scheme=scheme, backend=b) for b in ("cpu", "reference"))
            assert torch.equal(ours.index, exact.index)
            torch.testing.assert_close(ours.ess, exact.ess, rtol=1e-12, atol=0)
            torch.testing.assert_close(ours.log_mean, exact.log_mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("cases", [CASES])
def test_bytes_that_are_moved(dtype, cases):
    """Every bit pattern, NaN payloads included; what was not named stays as it was."""
    rng = np.random.default_rng(7)
    integer = torch.int32 if dtype == torch.float32 else torch.int16

    def bits(*shape):
        raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
        return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)

    for _ in range(cases):
        pages, page_size, heads, dim = (int(rng.integers(1, n)) for n in (7, 9, 5, 40))
        tokens = int(rng.integers(0, pages * page_size + 1))
        slots = torch.from_numpy(rng.permutation(pages * page_size)[:tokens].copy())
        slots[torch.from_numpy(rng.random(tokens) < 0.2)] = -1
        key, value = bits(tokens, heads, dim), bits(tokens, heads, dim)
        caches = [bits(pages, page_size, heads, dim) for _ in "kv"]
        expected = [c.clone() for c in caches]
        kernels.append_kv(key, value, *caches, slots, backend="cpu")
        for cache, rows in zip(expected, (key, value), strict=True):
            cache.view(integer).flatten(0, 1)[slots[slots >= 0]] = rows.view(integer)[slots >= 0]
        assert all(torch.equal(a.view(integer), b.view(integer)) for a, b in zip(caches, expected, strict=True))
        layers, half = int(rng.integers(1, 4)), pages // 2
        caches = [bits(layers, pages, page_size, heads, dim) for _ in "kv"]
        expected = [c.clone() for c in caches]
        order = torch.from_numpy(rng.permutation(pages).copy())
        source, target = order[:half], order[half : 2 * half]
        count = torch.from_numpy(rng.integers(0, page_size + 1, half))
        kernels.copy_pages(*caches, source, target, count, backend="cpu")
        for cache in expected:
            for s, t, n in zip(source.tolist(), target.tolist(), count.tolist(), strict=True):
                cache.view(integer)[:, t, :n] = cache.view(integer)[:, s, :n]
        assert all(torch.equal(a.view(integer), b.view(integer)) for a, b in zip(caches, expected, strict=True))
