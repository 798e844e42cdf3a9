"""The few kilobytes that go to a device and come back in every forward: one copy each way.

A copy to or from a GPU costs about ten microseconds whatever its size, and a decode step needs some fourteen small
arrays there; so they travel in one buffer. On the CPU nothing is copied at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16  # bytes; kernels may load vectors from the start of an array
_DTYPES = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
}


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """``arrays`` (contiguous; float32, int32 or int64) as tensors on ``device``, queued, not waited for."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    # A fresh pinned buffer each time (torch caches them): the last one may still be on its way.
    staging = torch.empty(places(arrays)[-1], dtype=torch.uint8, pin_memory=device.type == "cuda", device="cpu")
    fill(staging, arrays)
    return views(staging.to(device, non_blocking=True), arrays)


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """``tensors`` (contiguous; float32, int32 or int64) as arrays on the host; waits for the device once."""
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    return split(join(tensors).cpu().numpy(), tensors)


def places(arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Where each array starts in the buffer, and the buffer's size."""
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT)
    return starts


def fill(staging: Tensor, arrays: Sequence[NDArray[Any]]) -> None:
    buffer = staging.numpy()
    for start, array in zip(places(arrays), arrays, strict=False):
        buffer[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)


def views(buffer: Tensor, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    return [
        buffer[start : start + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
        for start, array in zip(places(arrays), arrays, strict=False)
    ]


def join(tensors: Sequence[Tensor]) -> Tensor:
    # (an empty tensor cannot be viewed as bytes)
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors if tensor.numel()])


def split(flat: NDArray[np.uint8], like: Sequence[Tensor]) -> list[NDArray[Any]]:
    arrays, start = [], 0
    for tensor in like:
        end = start + tensor.numel() * tensor.element_size()
        # copied: a slice of the buffer may start where its dtype cannot be read
        array = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").numpy()
        array.reshape(-1).view(np.uint8)[:] = flat[start:end]
        arrays.append(array)
        start = end
    return arrays
