"""The only place where a tensor's or an array's address is taken for C++: whoever asks says which dtype lies there.

C++ gets a number and believes it. A buffer that was made with torch's default dtype, a tensor without memory behind it
or a view whose sign is only noted down would be read as something that it is not; each of them ends here instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensor


def address(tensor: torch.Tensor, *dtypes: torch.dtype) -> int:
    """Where the first entry of a CPU tensor lies; 0 only for one without entries.

    Args:
        tensor: Strided, on the CPU, of one of ``dtypes``.
        dtypes: What the C++ side reads there.

    Raises:
        TypeError: Another dtype.
        ValueError: Another device or layout, a negated or conjugated view, no memory or less than the shape needs.
    """
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"a tensor of {wanted} was to be read, got {str(tensor.dtype).removeprefix('torch.')}")
    if not tensor.is_cpu or tensor.layout is not torch.strided:
        raise ValueError(f"a dense tensor on the CPU was to be read, got {tensor.layout} on {tensor.device}")
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError("a negated or conjugated view has no memory of its own: use resolve_neg() and resolve_conj()")
    check_memory("reading a tensor", "it", tensor)
    return tensor.data_ptr()


def check_memory(op: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor, dense, that has less memory than its shape says.

    That is so for storage that was resized afterwards (sharded training does that), for fake tensors and for those of
    ``torch.func.functionalize``.

    Raises:
        ValueError: ``tensor`` is one.
    """
    if tensor.numel() == 0 or tensor.layout is not torch.strided:
        return
    if _stands_for_another(tensor):
        raise ValueError(
            f"{op}: {name} has shape {tuple(tensor.shape)} but no memory: its storage was resized to nothing, or it "
            "only stands for a tensor (fake, functional); gather or materialise it first"
        )
    needed = (tensor.storage_offset() + _last(tensor) + 1) * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if needed > held:
        raise ValueError(
            f"{op}: {name} has shape {tuple(tensor.shape)}, which needs {needed} bytes, "
            f"but its storage was resized to {held}; gather it first"
        )


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte of a dense tensor and the one behind its last; (0, 0) for one without memory.

    These are compared, nothing is read there, so that tensors of any device will do.
    """
    if tensor.numel() == 0 or tensor.layout is not torch.strided or _stands_for_another(tensor):
        return 0, 0
    begin = tensor.data_ptr()
    return begin, begin + (_last(tensor) + 1) * tensor.element_size()


def aligned_part(memory: torch.Tensor, alignment: int) -> torch.Tensor:
    """(n,) uint8 from its first byte on whose address is a multiple of ``alignment``."""
    return memory[-memory.data_ptr() % alignment :]


def _last(tensor: torch.Tensor) -> int:
    """The last entry of a tensor that has some, counted from its first in entries of the storage."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _stands_for_another(tensor: torch.Tensor) -> bool:
    # A fake tensor warns when it is asked for its address, and will raise.
    return isinstance(tensor, FakeTensor) or tensor.data_ptr() == 0


def array_address(array: NDArray[Any], dtype: type) -> int:
    """``address`` of a NumPy array.

    Raises:
        TypeError: Another dtype, or an array that is not contiguous.
    """
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(
            f"expected a contiguous {np.dtype(dtype)} array, got {array.dtype} with strides {array.strides}"
        )
    pointer: int = array.ctypes.data
    return pointer
