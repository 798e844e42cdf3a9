"""Argument checks of the façade. The good case costs one expression; messages are built only on failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(
    op: str,
    name: str,
    value: torch.Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | str],
    device: torch.device | None = None,
) -> None:
    """Refuse what does not fit, naming it.

    Args:
        op: The operator, for the message.
        name: The argument, for the message.
        value: What was given.
        dtypes: Those it may have.
        shape: Sizes, or names such as "B" for sizes that are free.
        device: Where it must be; None: anywhere.

    Raises:
        TypeError: The value is not a tensor or has another dtype.
        ValueError: Another shape or device.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    sizes = value.shape
    if value.dtype in dtypes and sizes == shape and (device is None or value.device == device):
        return
    if value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be {wanted}, got {got}; convert it with {name}.to(...)")
    if len(sizes) != len(shape) or any(
        wanted != got for wanted, got in zip(shape, sizes, strict=True) if not isinstance(wanted, str)
    ):
        wanted_shape = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{op}: {name} must have shape ({wanted_shape}), got {tuple(sizes)}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} is on {value.device}, the other tensors on {device}; move it there")


def whole_number(name: str, value: Any) -> int:
    """``value`` as an int: an int or an integer of NumPy.

    A float would be cut off, True would count as 1, and a tensor of one entry is a number by accident (and may be on
    a device that would have to be waited for): these are refused, whatever their value.

    Raises:
        TypeError: It is none; the argument is named.
    """
    if type(value) is int:
        return value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"{name} must be a whole number (an int), got {_shown(value)}")


def real_number(name: str, value: Any) -> float:
    """``value`` as a float: a number of Python or NumPy that is no bool.

    Raises:
        TypeError: It is none; the argument is named.
    """
    if isinstance(value, (float, int, np.floating, np.integer)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    raise TypeError(f"{name} must be a number (a float), got {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value) if len(repr(value)) <= 60 else repr(value)[:60] + "…"
    return f"{text} ({type(value).__name__})"
