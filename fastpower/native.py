"""Where the C interface of the kernels lies: header and shared libraries, for engines that link them.

    cc example.c $(python -m fastpower.native) -o example        # or: python -m fastpower.native cuda

Nothing here imports torch, or loads anything.
"""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_REMEDY = {
    "cpu": "`pip install .` builds it",
    "cuda": "reinstall with FASTPOWER_CUDA=1 pip install (needs nvcc, no GPU)",
}


def include_dir() -> Path:
    """The folder of ``fastpower.h``."""
    return _PACKAGE / "include"


def library(device: str = "cpu") -> Path:
    """The shared library with the functions of ``fastpower.h`` for a kind of device.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        ValueError: Another device.
        FileNotFoundError: It was not built; the error says how it is.
    """
    if device not in _REMEDY:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    path = _PACKAGE / f"libfastpower_{device}.so"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in {_PACKAGE}: {_REMEDY[device]}")
    return path


def flags(device: str = "cpu") -> list[str]:
    """What a C or C++ compiler needs to find header and library, at run time, too. Raises like ``library``."""
    path = library(device)
    return [f"-I{include_dir()}", f"-L{path.parent}", f"-Wl,-rpath,{path.parent}", f"-lfastpower_{device}"]


if __name__ == "__main__":
    try:
        print(*flags(*sys.argv[1:2]))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
