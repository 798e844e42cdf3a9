"""The shared library of ``csrc/cuda``: loading it, and calling its C functions with tensors.

The library links the CUDA runtime statically and knows nothing of torch, so it loads, and its functions are found, on
a machine without a GPU or a driver. Signatures are those of the ``FASTPOWER_API`` functions in ``csrc/cuda``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).resolve().parents[2] / "libfastpower_cuda.so"
INTERFACE = 1  #: fastpower_interface_version() that this file was written for
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_pointer, _int, _int64, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_row_arguments = [_pointer, _int, _int64, _int64, _int64]  # logits, dtype, rows, vocab, row stride
_tail = [_int, _pointer]  # device, stream
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "fastpower_interface_version": (_int, []),
    "fastpower_error_string": (ctypes.c_char_p, [_int]),
    "fastpower_sample_scratch": (_int64, [_int64] * 3),
    "fastpower_sample_tokens": (
        _int,
        [*_row_arguments, _pointer, _pointer, _int, *[_pointer] * 4, _int64, *[_pointer] * 6, *_tail],
    ),
    "fastpower_score_tokens": (_int, [*_row_arguments, _pointer, _pointer, _int, *[_pointer] * 5, *_tail]),
    "fastpower_paged_attention": (
        _int,
        [
            *[_pointer] * 4,
            _int,
            *[_int64] * 8,
            *[_pointer] * 3,
            *[_int64] * 2,
            _float,
            _int64,
            _float,
            _pointer,
            *_tail,
        ],
    ),
    "fastpower_append_kv": (_int, [*[_pointer] * 5, *[_int64] * 11, *_tail]),
    "fastpower_copy_pages": (_int, [*[_pointer] * 5, *[_int64] * 9, *_tail]),
}


def load() -> ctypes.CDLL:
    """The library at ``PATH``, its functions typed.

    Raises:
        OSError: It is not there, cannot be loaded, or belongs to another version; the remedy is in the message.
    """
    return _load(PATH)


@cache
def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise OSError(f"{path.name} was not built; reinstall with FASTPOWER_CUDA=1 pip install (needs nvcc, no GPU)")
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise OSError(f"{path} lacks {name}: it belongs to another version of fastpower; rebuild it")
        function.restype, function.argtypes = result, arguments
    version = library.fastpower_interface_version()
    if version != INTERFACE:
        raise OSError(f"{path} has interface {version}, this fastpower needs {INTERFACE}; rebuild it")
    return library


def call(name: str, device: torch.device, *arguments: Any) -> None:
    """Run a launcher on the current stream of ``device``.

    Args:
        name: The launcher.
        device: A CUDA device.
        *arguments: Numbers and tensors; tensors are passed by address, None as null.

    Raises:
        RuntimeError: The launch failed, with CUDA's own words (kernel faults show at the next synchronisation, as
            always).
    """
    values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
    library = load()
    error = getattr(library, name)(*values, device.index or 0, stream(device))
    if error:
        message = library.fastpower_error_string(error).decode()
        raise RuntimeError(
            f"{name}: CUDA error {error} ({message}) on {device}; if it says that no kernel image is "
            "available for the device, rebuild with its compute capability in FASTPOWER_CUDA_ARCHS"
        )


def floats_of(op: str, workspace: torch.Tensor, floats: int) -> torch.Tensor:
    """The caller's working memory as float32.

    Raises:
        ValueError: It is too small.
    """
    if workspace.numel() < 4 * floats:
        raise ValueError(
            f"{op}: workspace has {workspace.numel()} bytes, this call needs {4 * floats}; size it with {op}_workspace"
        )
    return workspace[: 4 * floats].view(torch.float32)


def stream(device: torch.device) -> int:
    """The handle of torch's current stream on ``device``."""
    return torch.cuda.current_stream(device).cuda_stream
