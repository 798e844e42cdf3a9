"""Where a model goes and in which numbers, where nobody has said: a GPU that fits the kernels, else the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: compute capability of the oldest GPUs that kernels are compiled and checked for
OLDEST = (8, 0)


def chosen_device(device: str | torch.device | None) -> torch.device | None:
    """The device that is meant.

    Args:
        device: "auto": the current CUDA device, if torch sees one that the kernels are made for, else the CPU. None:
            where transformers puts it. Anything else is taken at its word.

    Returns:
        None for the CPU by "auto" and for None.

    Raises:
        ValueError: No such device here, which torch would say later and longer.
    """
    import torch

    if device is None:
        return None
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if _usable() else None
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ValueError(f'device={device!r} is no device: give "auto", "cpu", "cuda" or "cuda:1"') from None
    if asked.type != "cuda":
        return asked
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or count == 0:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ValueError(
            f'device={str(device)!r}: torch, {built}, sees no CUDA device here: take device="cpu", or '
            "install a torch that is built for CUDA beside a driver"
        )
    if (asked.index or 0) >= count:
        raise ValueError(f"device={str(device)!r}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    capability = torch.cuda.get_device_capability(asked)
    if capability < OLDEST:
        raise ValueError(
            f"device={str(device)!r} has compute capability {_dotted(capability)}, and the kernels need "
            f'{_dotted(OLDEST)} or newer: take device="cpu"'
        )
    return asked


def chosen_dtype(dtype: str | torch.dtype | None, device: torch.device | None) -> str | torch.dtype:
    """The numbers that are meant: None is float32 on the CPU and bfloat16 elsewhere."""
    if dtype is not None:
        return dtype
    return "float32" if device is None or device.type == "cpu" else "bfloat16"


def _usable() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
