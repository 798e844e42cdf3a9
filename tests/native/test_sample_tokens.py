"""The C++ kernels of the statistics and draws without torch: for builds with sanitizers. Arrays end where the kernel
must stop reading; outputs are guarded on both sides and poisoned."""

import numpy as np
import pytest

from fastpower import _C

VOCABS = [1, 2, 7, 16, 17, 64, 65, 127, 4095, 4096, 4097, 12_345]


class Output:
    """An array between two guards."""

    def __init__(self, shape, dtype):
        self.guard = 77
        size = int(np.prod(shape))
        self.memory = np.full(size + 16, self.guard, dtype)
        self.array = self.memory[8 : 8 + size].reshape(shape)
        self.array[...] = np.nan if np.issubdtype(dtype, np.floating) else -99

    def checked(self):
        assert (self.memory[:8] == self.guard).all() and (self.memory[-8:] == self.guard).all()
        return self.array


def address(array):
    return 0 if array is None else array.ctypes.data


def as_dtype(z, dtype):
    """(array, code, the values as float32)."""
    if dtype == "bfloat16":
        bits = (z.view(np.uint32) >> 16).astype(np.uint16)
        return bits, 1, (bits.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float16":
        half = z.astype(np.float16)
        return half, 2, half.astype(np.float32)
    return z, 0, z


def run(z, alpha, exponents, rows, keys, positions, exclude=None, code=0):
    batch, vocab = z.shape
    draws, count = len(rows), len(exponents)
    token, logp = Output(draws, np.int64), Output(draws, np.float32)
    logz, entropy, status = Output((batch, count), np.float32), Output(batch, np.float32), Output(batch, np.int32)
    _C.sample_tokens(
        *(address(z), code, batch, vocab, z.strides[0] // z.itemsize, address(alpha), address(exponents), count, draws),
        *(address(rows), address(keys), address(positions), address(exclude)),
        *(address(x.array) for x in (token, logp, logz, entropy, status)),
    )
    return [x.checked() for x in (token, logp, logz, entropy, status)]


def score(z, tokens, exponents, code=0):
    batch, vocab = z.shape
    logp, logz = Output(batch, np.float32), Output((batch, len(exponents)), np.float32)
    entropy, status = Output(batch, np.float32), Output(batch, np.int32)
    _C.score_tokens(
        *(address(z), code, batch, vocab, z.strides[0] // z.itemsize, address(tokens), address(exponents)),
        *(len(exponents), *(address(x.array) for x in (logp, logz, entropy, status))),
    )
    return [x.checked() for x in (logp, logz, entropy, status)]


def statistics(z, exponents):
    """(log p (B, V), logz, entropy) in float64."""
    z = z.astype(np.float64)
    top = z.max(1, keepdims=True)
    logp = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
    p = np.exp(logp)
    logz = np.stack([np.log((p ** float(e)).sum(1)) for e in exponents], 1)
    return logp, logz, -np.sum(p * np.where(p > 0, logp, 0), 1)


def make_rows(batch, vocab, seed):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((batch, vocab), dtype=np.float32) * 2
    z[0, rng.random(vocab) < 0.4] = -np.inf
    z[0, vocab - 1] = 0.5
    return z


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("vocab", VOCABS)
def test_statistics_equal_numpy_and_tokens_have_mass(isa, vocab, dtype):
    z, code, wide = as_dtype(make_rows(3, vocab, seed=vocab), dtype)
    rng = np.random.default_rng(1)
    exponents = np.array([1.0, 4.0, 1.5, 16.0], np.float32)
    rows = rng.integers(0, 3, 40)
    keys, positions = rng.integers(-(2**62), 2**62, 40), rng.integers(0, 2**31, 40)
    exclude = np.where(np.arange(40) % 2 == 0, -1, rng.integers(0, vocab, 40))
    alpha = np.array([1.0, 1.5, 4.0], np.float32)
    token, logp, logz, entropy, status = run(z, alpha, exponents, rows, keys, positions, exclude, code)
    right_logp, right_logz, right_entropy = statistics(wide, exponents)
    np.testing.assert_allclose(logz, right_logz, atol=2e-5, rtol=1e-6)
    np.testing.assert_allclose(entropy, right_entropy, atol=2e-5)
    drawn = token >= 0
    assert drawn.all() or vocab < 8  # short rows can be exhausted
    np.testing.assert_allclose(logp[drawn], right_logp[rows, token][drawn], atol=2e-5)
    assert np.isnan(logp[~drawn]).all() and np.isfinite(logp[drawn]).all()
    assert (token != exclude)[drawn].all()
    assert set(np.flatnonzero(status)) == set(rows[~drawn])
    some = np.array([vocab - 1, 0, vocab // 2])
    scored = score(z, some, exponents, code)
    np.testing.assert_allclose(scored[0], right_logp[np.arange(3), some], atol=2e-5)
    assert np.array_equal(scored[1], logz) and np.array_equal(scored[2], entropy)


@pytest.mark.parametrize("vocab", [3, 70, 9001])
def test_broken_rows_set_their_status(isa, vocab):
    z = make_rows(5, vocab, seed=2)
    z[1], z[2, -1], z[3, 0], z[4] = -np.inf, np.nan, np.inf, np.nan
    ones, index = np.ones(5, np.float32), np.arange(5)
    token, logp, logz, entropy, status = run(z, ones, ones[:2], index, index, index)
    assert status.tolist() == [0, 2, 1, 1, 1] and token[1:].tolist() == [-1] * 4 and token[0] >= 0
    assert np.isnan(logp[1:]).all() and np.isnan(logz[1:]).all() and np.isnan(entropy[1:]).all()


def test_exhausted_draws_set_their_status(isa):
    z = np.full((1, 5000), -np.inf, np.float32)
    z[0, 4500] = 1
    zero = np.zeros(2, np.int64)
    token, logp, _, entropy, status = run(z, np.ones(1, np.float32), z[0, :0], zero, zero, zero, np.array([4500, -1]))
    assert token.tolist() == [-1, 4500] and np.isnan(logp[0]) and logp[1] == 0 and entropy[0] == 0 and status[0] == 4


@pytest.mark.parametrize("shape", [(1, 70_000), (3, 20_000), (300, 300), (0, 50)])
def test_threads_do_not_change_a_bit(isa, threads, shape):
    z = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    index = np.arange(shape[0])
    arguments = z, np.full(shape[0], 1.5, np.float32), np.array([4.0], np.float32), index, index * 7, index
    threads(1)
    alone = run(*arguments)
    for n in (2, 5):
        threads(n)
        assert all(np.array_equal(a, b) for a, b in zip(alone, run(*arguments), strict=True))


def test_rows_may_overlap_and_need_no_alignment(isa):
    flat = np.random.default_rng(4).standard_normal(3000, dtype=np.float32)[1:]
    z = np.lib.stride_tricks.as_strided(flat, (6, 999), (4 * 333, 4))
    index, ones = np.arange(6), np.ones(6, np.float32)
    strided, compact = (run(rows, ones, ones[:1], index, index, index) for rows in (z, np.ascontiguousarray(z)))
    assert all(np.array_equal(a, b) for a, b in zip(strided, compact, strict=True))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("alpha", np.array([1, np.nan], np.float32), r"alpha\[1\] must be finite and > 0, got nan"),
        ("exponents", np.array([0], np.float32), r"exponents\[0\] must be finite and > 0, got 0"),
        ("rows", np.array([0, 2]), r"rows\[1\] must be in \[0, 2\), got 2"),
        ("exclude", np.array([9, -1]), r"exclude\[0\] must be in \[-1, 9\), got 9"),
    ],
)
def test_values_out_of_range_are_refused(name, value, message):
    ones, index = np.ones(2, np.float32), np.arange(2)
    arguments = dict(alpha=ones, exponents=ones, rows=index, keys=index, positions=index, exclude=index - 1)
    with pytest.raises(ValueError, match=message):
        run(np.zeros((2, 9), np.float32), **(arguments | {name: value}))


def test_tokens_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"tokens\[1\] must be in \[0, 9\), got -1"):
        score(np.zeros((2, 9), np.float32), np.array([0, -1]), np.ones(1, np.float32))


@pytest.mark.parametrize("scheme", range(4))
@pytest.mark.parametrize("count", [1, 2, 33])
def test_ancestors_have_weight(scheme, count):
    rng = np.random.default_rng(count)
    log_weights = rng.standard_normal((3, count))
    log_weights[0, 1::2] = -np.inf
    log_weights[1] = -np.inf
    u = rng.random((3, 1 if scheme == 0 else count))
    index, ess, log_mean = Output((3, count), np.int64), Output(3, np.float64), Output(3, np.float64)
    _C.resample(
        *(address(log_weights), address(u), 3, count, scheme),
        *(address(x.array) for x in (index, ess, log_mean)),
    )
    index, ess, log_mean = index.checked(), ess.checked(), log_mean.checked()
    assert np.isfinite(np.take_along_axis(log_weights, index, 1)[[0, 2]]).all()
    assert (index[1] == -1).all() and ess[1] == 0 and log_mean[1] == -np.inf
    weight = np.exp(log_weights[[0, 2]])
    np.testing.assert_allclose(ess[[0, 2]], weight.sum(1) ** 2 / (weight**2).sum(1))
    np.testing.assert_allclose(log_mean[[0, 2]], np.log(weight.mean(1)), atol=1e-12)


@pytest.mark.parametrize("name, bad", [("log_weights", np.nan), ("log_weights", np.inf), ("uniforms", 1.0)])
def test_bad_weights_and_uniforms_are_refused(name, bad):
    given = {"log_weights": np.zeros((1, 3)), "uniforms": np.full((1, 1), 0.5)}
    given[name][0, 0] = bad
    out = np.zeros(9)
    with pytest.raises(ValueError, match=rf"resample: {name}\[0, 0\] must be"):
        _C.resample(*(address(x) for x in given.values()), 1, 3, 0, *([address(out)] * 3))
