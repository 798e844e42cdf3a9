"""Kernels that other files here leave out, on random shapes in buffers of exactly their size, for the sanitizer build.

NumPy's memory has red zones under AddressSanitizer, so that one number too far is an error.
"""

import numpy as np
import pytest

from fastpower import _C

ISAS = ["portable", "avx2", "avx512", "avx512_bf16", "amx"]
every_isa = pytest.mark.parametrize("isa", ISAS, indirect=True)
#: number in GGUF files, weights of a block, bytes of a block
FORMATS = {
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
}  # fmt: skip


@pytest.fixture(autouse=True)
def three_threads(threads):
    threads(3)


def address(array):
    return array.ctypes.data


def aligned(size):
    """(size,) bytes that begin at a cache line and end with their memory."""
    memory = np.empty(size + 64, np.uint8)
    shift = -address(memory) % 64
    return memory[shift : shift + size]


@every_isa
@pytest.mark.parametrize("scheme", range(4))
def test_resampling_stays_in_its_buffers(isa, scheme):
    rng = np.random.default_rng(scheme)
    for count in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 1000):
        sets = int(rng.integers(1, 4))
        weights = rng.standard_normal((sets, count)) * 3
        weights[rng.random((sets, count)) < 0.3] = -np.inf
        uniforms = rng.random((sets, 1 if scheme == 0 else count))
        index, ess, log_mean = np.empty((sets, count), np.int64), np.empty(sets), np.empty(sets)
        _C.resample(address(weights), address(uniforms), sets, count, scheme, *map(address, (index, ess, log_mean)))
        dead = np.isneginf(weights).all(1)
        assert (index[dead] == -1).all() and ((index[~dead] >= 0) & (index[~dead] < count)).all()
        assert ((ess >= 0) & (ess <= count * (1 + 1e-12))).all()


@every_isa
@pytest.mark.parametrize("format", FORMATS)
def test_quantised_products_stay_in_their_buffers(isa, format):
    """Packed, unpacked and multiplied: each row is what the unpacked weights give, whatever rows are beside it."""
    rng = np.random.default_rng(0)
    kind, block, size = FORMATS[format]
    for outputs, blocks, rows in [(1, 1, 1), (31, 2, 3), (32, 1, 13), (33, 3, 2), (65, 2, 30)]:
        inputs = blocks * block
        raw = rng.integers(0, 256, (outputs, blocks, size), dtype=np.uint8)
        for at in {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(format, (0,)):
            raw[:, :, at : at + 2] = rng.normal(0, 0.01, (outputs, blocks, 1)).astype(np.float16).view(np.uint8)
        starts = np.asarray(address(raw) + np.arange(outputs) * blocks * size, np.uint64)
        panels = aligned(_C.quantised_bytes(kind, inputs, outputs))
        _C.pack_quantised(kind, inputs, outputs, address(starts), address(panels))
        weight, plain = (np.empty((outputs, inputs), np.float32) for _ in range(2))
        _C.unpack_quantised(kind, inputs, outputs, address(panels), address(weight))
        _C.dequantise(kind, inputs, outputs, address(raw), address(plain))
        assert np.array_equal(weight, plain)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        bias, y = np.ones(outputs, np.float32), np.full((rows, outputs), np.nan, np.float32)
        _C.quantised_linear(kind, inputs, outputs, address(panels), address(bias), address(x), False, rows, inputs,
                            address(y), outputs, False)  # fmt: skip
        exact = x.astype(np.float64) @ weight.T.astype(np.float64) + 1
        assert np.abs(y - exact).max() < 2e-3 * (1 + np.abs(exact).max())


@every_isa
@pytest.mark.parametrize("dtype", [0, 1, 2])
def test_scores_stay_in_their_buffers(isa, dtype):
    rng = np.random.default_rng(dtype)
    for vocab in (1, 7, 8, 9, 15, 16, 17, 63, 65, 255, 257, 4095, 4097):
        rows, count = int(rng.integers(1, 4)), int(rng.integers(0, 4))
        logits = rng.standard_normal((rows, vocab)).astype(np.float32)
        given = (
            (logits.view(np.uint32) >> 16).astype(np.uint16)
            if dtype == 1
            else logits.astype([np.float32, 0, np.float16][dtype])
        )
        tokens, exponents = rng.integers(0, vocab, rows), np.full(count, 2.0, np.float32)
        logp, logz, entropy = (
            np.empty(rows, np.float32),
            np.empty((rows, count), np.float32),
            np.empty(rows, np.float32),
        )
        status = np.empty(rows, np.int32)
        _C.score_tokens(address(given), dtype, rows, vocab, vocab, address(tokens), address(exponents), count,
                        *map(address, (logp, logz, entropy, status)))  # fmt: skip
        assert not status.any() and (logp <= 1e-6).all() and (entropy >= -1e-6).all() and (logz <= 1e-6).all()


@pytest.mark.parametrize("bytes", [0, 1, 7, 8, 63, 64, 65, 4096, 100_001])
def test_a_checksum_reads_its_bytes_and_no_more(bytes):
    data = np.arange(bytes, dtype=np.uint8)
    assert _C.checksum(address(data), bytes) == _C.checksum(address(data.copy()), bytes)
