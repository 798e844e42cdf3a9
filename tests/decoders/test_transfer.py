"""Small arrays to a device and back in one copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastpower.decoders import transfer

ARRAYS = [
    np.arange(5, dtype=np.int64) - (1 << 40),
    np.array([[1.5, -2.5, 3.0]], np.float32),
    np.empty(0, np.int64),
    np.arange(21, dtype=np.int32).reshape(3, 7),
    np.array([7], np.int64),
]


def assert_same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


def test_cpu_tensors_share_memory_with_the_arrays():
    tensors = transfer.to_device(ARRAYS, torch.device("cpu"))
    for tensor, array in zip(tensors, ARRAYS, strict=True):
        assert array.size == 0 or tensor.data_ptr() == array.ctypes.data
    assert_same(transfer.to_host(tensors), ARRAYS)


def test_one_buffer_holds_every_array_at_an_aligned_place():
    staging = torch.full((transfer.places(ARRAYS)[-1],), 255, dtype=torch.uint8)
    transfer.fill(staging, ARRAYS)
    views = transfer.views(staging, ARRAYS)
    assert_same([view.numpy() for view in views], ARRAYS)
    assert all((view.data_ptr() - staging.data_ptr()) % 16 == 0 for view in views if view.numel())


def test_joined_results_come_apart_again():
    tensors = [torch.from_numpy(array) for array in ARRAYS[1:2] + ARRAYS]  # int64 behind 12 bytes: not aligned
    assert_same(transfer.split(transfer.join(tensors).numpy(), tensors), ARRAYS[1:2] + ARRAYS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device")
def test_there_and_back_again():
    tensors = transfer.to_device(ARRAYS, torch.device("cuda"))
    assert all(tensor.is_cuda for tensor in tensors)
    assert_same(transfer.to_host(tensors), ARRAYS)
