"""Does it fit? Bytes that a device has left, bytes that a model's files will need, and an error that names both."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpower.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

#: bytes of one element of safetensors' floating-point types, which loading converts
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available(device: torch.device | str = "cpu") -> int:
    """Bytes that can be allocated on ``device`` now.

    Of a GPU its free memory; of the CPU what the system calls available, or what is left below the limit of the
    container if that is less.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_system(), *_containers()])


def require(needed: int, what: str, remedy: str, device: torch.device | str = "cpu") -> None:
    """Refuse to go on where ``device`` has fewer than ``needed`` bytes left.

    Raises:
        OutOfMemory: It has.
    """
    left = available(device)
    if needed > left:
        raise OutOfMemory(f"{what} needs {gib(needed)}, and {gib(left)} are available on {device}: {remedy}")


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.1f} MiB"


def weights_bytes(location: Path, dtype: torch.dtype | None) -> int | None:
    """Bytes that the weights will take, from the headers of the files alone.

    Args:
        location: A folder with safetensors or .bin files, or a .gguf file (its numbers are unpacked to ``dtype``, or to
            float32).
        dtype: That they will have; None: as they are stored.

    Returns:
        None where the files cannot be understood: loading them will say what is wrong.
    """
    try:
        if location.is_file():
            return _gguf_elements(location) * (4 if dtype is None else dtype.itemsize)
        files = list(_weight_files(location))
        if not files:
            return None
        return sum(_safetensors(f, dtype) if f.suffix == ".safetensors" else f.stat().st_size for f in files)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def _system() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 8 << 30  # no way to ask on this system


def _containers() -> Iterator[int]:
    """What is left below the limits of control groups, version 2 and 1; cached files count as free."""
    for folder, limit, used, cached in (
        (_CGROUP, "memory.max", "memory.current", "inactive_file"),
        (_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            yield max(0, int(most) - now + int(facts.get(cached, 0)))


def _weight_files(folder: Path) -> Iterator[Path]:
    """The files that transformers would read, in its order of preference."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            yield folder / name
            return
        index = folder / f"{name}.index.json"
        if index.is_file():
            for shard in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
                yield folder / shard
            return


def _safetensors(file: Path, dtype: torch.dtype | None) -> int:
    with file.open("rb") as source:
        (size,) = struct.unpack("<Q", source.read(8))
        if size > file.stat().st_size:
            raise ValueError("not a safetensors file")
        header: dict[str, Any] = json.loads(source.read(size))
    total = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        converted = dtype is not None and tensor["dtype"] in _FLOATS
        total += math.prod(tensor["shape"]) * dtype.itemsize if converted and dtype is not None else end - begin
    return total


def _gguf_elements(file: Path) -> int:
    """Numbers in all tensors of a GGUF file."""
    from fastpower.models.gguf.header import GGUFFile

    with GGUFFile(file) as header:
        return sum(math.prod(entry.shape) for entry in header.tensors.values())
