"""Whole numbers from callers: 2.9 is refused where NumPy's and C++'s conversions would make it 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpower.kernels.arguments import whole_number


def integers(name: str, values: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """``values`` as int64, none of them changed.

    Args:
        name: Of the argument, for the message.
        values: Whole numbers, any shape.

    Raises:
        TypeError: Something in it is no whole number (a float is none, whatever its value), or exceeds 64 bits.
    """
    array = values if isinstance(values, np.ndarray) else _listed(name, values)
    if array.dtype == np.int64 or array.size == 0:
        return array.astype(np.int64, copy=False)
    fits = array.dtype.kind == "i" or (array.dtype.kind == "u" and int(array.max()) < 2**63)
    if not fits:
        raise TypeError(f"{name} must hold whole numbers of 64 bits, got {array.dtype} ({_start(array)})")
    return array.astype(np.int64)


def _listed(name: str, values: Sequence[int]) -> NDArray[np.int64]:
    try:
        kinds = set(map(type, values))
    except TypeError:
        raise TypeError(f"{name} must be a sequence of whole numbers, got {type(values).__name__}") from None
    numbers = values
    if not kinds <= {int}:  # NumPy would take True for 1, and all of [1, 2.9] for floats without saying which one is
        numbers = [whole_number(f"{name}[{i}]", value) for i, value in enumerate(values)]
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        largest = max(numbers, key=abs)
        raise TypeError(f"{name} must hold whole numbers of 64 bits, got {largest}") from None


def _start(array: NDArray[Any]) -> str:
    shown = ", ".join(str(value) for value in array.reshape(-1)[:3])
    return shown + (", …" if array.size > 3 else "")
