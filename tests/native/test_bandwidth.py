"""The yardstick of the benches reads and copies every byte."""

import numpy as np
import pytest

from fastpower import _C


@pytest.mark.parametrize("size", [0, 1, 511, 513, (1 << 18) + 7, 3 << 20])
def test_every_byte_is_read(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    before = _C.read_memory(data.ctypes.data, size)
    for i in {0, size // 2, size - 1} if size else ():
        data[i] ^= 0x5A
        assert _C.read_memory(data.ctypes.data, size) != before
        data[i] ^= 0x5A
    assert _C.read_memory(data.ctypes.data, size) == before


@pytest.mark.parametrize("size", [0, 1, (1 << 18) + 7])
def test_every_byte_is_copied_and_no_other(size):
    source = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    target = np.full(size + 2, 77, dtype=np.uint8)
    _C.copy_memory(target.ctypes.data + 1, source.ctypes.data, size)
    assert np.array_equal(target[1:-1], source) and target[0] == target[-1] == 77
