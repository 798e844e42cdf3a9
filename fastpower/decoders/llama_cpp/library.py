"""llama-cpp-python's low-level functions, checked by name, and batches for them."""

from __future__ import annotations

import ctypes
import importlib
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from fastpower.errors import BackendUnavailable
from fastpower.interfaces import INTERFACES, require

BATCH = 512  #: tokens of one llama_decode, and of its compute buffers
_said: deque[str] = deque(maxlen=8)  # what llama.cpp logs, for errors


def said() -> str:
    """What llama.cpp said last."""
    return " ".join(_said)[-300:]


@cache
def library() -> Any:
    """llama-cpp-python's low-level module, every name of it that is used here checked, its logging kept quiet.

    Raises:
        BackendUnavailable: It is not installed.
        InterfaceChanged: A release has renamed something.
    """
    try:
        api: Any = importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:  # the package raises what its loader says
        raise BackendUnavailable(
            f"llama.cpp cannot be used ({error}); `pip install '.[llama-cpp]'` in fastpower's checkout builds it in "
            "some ten minutes"
        ) from error
    for entry in INTERFACES:
        if entry.library == "llama_cpp":
            require(api, entry.name.removeprefix("llama_cpp."), "llama_cpp")

    def note(level: int, text: bytes, _: Any) -> None:
        _said.append(text.decode(errors="replace").strip())

    callback = api.llama_log_callback(note)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    api.fastpower_log = callback  # the library keeps its address only
    api.llama_backend_init()
    return api


class Batch:
    """llama_batch over arrays of ours: filling it takes no call per token."""

    def __init__(self, api: Any) -> None:
        self._int = [np.empty(BATCH, np.int32) for _ in range(4)]
        self._wanted = np.empty(BATCH, np.int8)
        sequences = self._int[3]
        sequences_at = sequences.ctypes.data + 4 * np.arange(BATCH, dtype=np.uintp)
        token, pos, count, _ = (a.ctypes.data_as(ctypes.POINTER(ctypes.c_int)) for a in self._int)
        self._int[2][:] = 1
        self._pointers = sequences_at
        self._batch = api.llama_batch(
            token=token,
            pos=pos,
            n_seq_id=count,
            seq_id=sequences_at.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_byte)),
        )

    def of(self, part: Sequence[tuple[int, int, int]], outputs: Sequence[bool]) -> Any:
        """The batch of these (token, position, slot), and whether their logits are wanted."""
        n = len(part)
        self._int[0][:n], self._int[1][:n], self._int[3][:n] = zip(*part, strict=True)
        self._wanted[:n] = outputs
        self._batch.n_tokens = n
        return self._batch
