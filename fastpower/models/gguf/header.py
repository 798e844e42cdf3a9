"""The header of a GGUF file (versions 2 and 3), checked to the last byte, and its tensors in the mapped file.

``gguf.GGUFReader`` makes several numpy arrays of every string, 7 s for a vocabulary of 150,000, and believes what a
file says of its sizes; so the header is read here, with the library's tables of types. Everything that a count or an
offset says is compared with the size of the file before it is used.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastpower.errors import InvalidModelFile, ModelNotFound

#: struct formats of metadata types; 8 is a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PIECE = 256 << 20  #: bytes of one read
_AGAIN = "it is truncated or still being written; download or copy it again"


class TensorEntry(NamedTuple):
    """Where a tensor stands in the file."""

    name: str
    type: str  #: as gguf.GGMLQuantizationType names it: "F32", "Q4_K", …
    shape: tuple[int, ...]  #: rows first, as in torch
    offset: int  #: from the beginning of the file
    nbytes: int


class GGUFFile:
    """An open file, or several parts of one read into memory. A context manager; ``close`` unmaps it.

    Raises:
        ModelNotFound: The gguf library is not installed.
        InvalidModelFile: Wrong magic or version, sizes that the file does not have, types that are unknown, tensors
            that overlap the header or end behind the file. File, tensor and remedy are named; nothing stays mapped.

    Examples:
        The model's kind, and one tensor as it lies in the file:

            with GGUFFile("model.gguf") as file:
                file.metadata["general.architecture"]
                file.blocks("output.weight")
    """

    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        _require_library()
        self.path = Path(paths[0])
        self._source: int | None = None  # of one file, what its tensors are read from
        if len(paths) == 1:
            self._map, self._source = _mapped(self.path)
        else:
            self._map = _joined([Path(path) for path in paths])
        try:
            reader = _Reader(self._map, self.path)
            #: keys and values; arrays are lists
            self.metadata: dict[str, Any] = reader.metadata
            #: by name
            self.tensors: dict[str, TensorEntry] = reader.tensors
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._map)

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, (rows, bytes of a row) for a matrix.

        They are read, not mapped: a file that somebody shortens meanwhile is an error then, where touching a page
        behind its new end would be the end of the process.

        Raises:
            InvalidModelFile: The file has become shorter, or cannot be read.
        """
        entry = self._entry(name)
        if self._source is None:
            flat = np.frombuffer(self._map, np.uint8, entry.nbytes, entry.offset)
        else:
            flat = np.empty(entry.nbytes, np.uint8)
            self._read(flat.data, entry.offset, name)
        return flat.reshape(entry.shape[0], -1) if len(entry.shape) == 2 else flat

    def _read(self, target: memoryview, offset: int, name: str) -> None:
        assert self._source is not None
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._source, [target[done : done + _PIECE]], offset + done)
            except OSError as error:
                raise InvalidModelFile(f"model file {str(self.path)!r}: cannot be read: {error.strerror}") from None
            if count == 0:
                raise InvalidModelFile(
                    f"model file {str(self.path)!r}: tensor {name!r} ends behind the file, which has become shorter "
                    f"since it was opened: {_AGAIN}"
                )
            done += count

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor of type F32, F16 or BF16 as float32, copied.

        Raises:
            InvalidModelFile: It has another type.
        """
        entry, raw = self._entry(name), self.data(name)
        if entry.type == "F32":
            values = raw.view("<f4").copy()
        elif entry.type == "F16":
            values = raw.view("<f2").astype(np.float32)
        elif entry.type == "BF16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            raise InvalidModelFile(f"{self.path}: tensor {name!r} is {entry.type}; F32, F16 or BF16 is wanted there")
        return values.reshape(entry.shape)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's bytes back to the system, for a file in parts: they are gone then."""
        if self._source is not None:
            return  # arrays of ``data`` own theirs
        entry = self._entry(name)
        page = mmap.PAGESIZE
        begin, end = -(-entry.offset // page) * page, (entry.offset + entry.nbytes) // page * page
        if end > begin and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def close(self) -> None:
        """Unmap the file. Arrays of ``data`` must be gone; if one is not, the map goes with it."""
        with contextlib.suppress(BufferError):  # an array of `data` lives, say in the traceback of an error
            self._map.close()
        if self._source is not None:
            os.close(self._source)
            self._source = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.tensors[name]
        except KeyError:
            raise InvalidModelFile(
                f"{self.path}: tensor {name!r} is missing; the file is incomplete, convert or download it again"
            ) from None


class _Reader:
    """Reads a header from its first byte on."""

    def __init__(self, source: mmap.mmap, path: Path) -> None:
        self._source, self._path, self._at, self._size = source, path, 0, len(source)
        tensors, pairs = self._counts()
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string("a metadata key")
            self.metadata[key] = self._value(self._number("I", key), key)
        parts = self.metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise self._error(f"holds one of {parts} parts of a model; merge them with llama.cpp's gguf-split --merge")
        infos = [self._info() for _ in range(tensors)]
        self.tensors = self._entries(infos, self._data_start())

    def _counts(self) -> tuple[int, int]:
        magic = self._source[:4]
        if magic != b"GGUF":
            found = "is empty" if not magic else f"begins with {magic!r}, not b'GGUF'"
            raise self._error(f"{found}: not a GGUF file; give the path of one")
        self._at = 4
        version = self._number("I", "the version")
        if version & 0xFFFF == 0:
            raise self._error("is big-endian; convert it with gguf-py's gguf-convert-endian")
        if version not in (2, 3):
            raise self._error(f"is GGUF version {version}; versions 2 and 3 can be read, convert it again")
        tensors, pairs = self._number("Q", "the number of tensors"), self._number("Q", "the number of metadata")
        # a tensor's entry takes 24 bytes at least, a pair 13
        if 24 * tensors + 13 * pairs > self._size:
            raise self._error(f"claims {tensors} tensors and {pairs} metadata in {self._size} bytes; {_AGAIN}")
        return tensors, pairs

    def _info(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string("a tensor's name")
        dimensions = self._number("I", name)
        if not 1 <= dimensions <= 4:
            raise self._error(f"tensor {name!r} has {dimensions} dimensions, 1 to 4 are possible; {_AGAIN}")
        shape = tuple(self._number("Q", name) for _ in range(dimensions))
        return name, self._number("I", name), shape[::-1], self._number("Q", name)

    def _data_start(self) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"general.alignment is {alignment!r}, a power of two is wanted; convert it again")
        return -(-self._at // alignment) * alignment

    def _entries(self, infos: Sequence[tuple[str, int, tuple[int, ...], int]], start: int) -> dict[str, TensorEntry]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        entries: dict[str, TensorEntry] = {}
        for name, number, shape, offset in infos:
            try:
                kind = GGMLQuantizationType(number)
                block, block_bytes = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise self._error(
                    f"tensor {name!r} has the unknown type {number}; update the library that names types: "
                    "pip install -U gguf, or take another quantisation of the model"
                ) from None
            elements = math.prod(shape)
            if elements == 0 or elements >= 2**48:
                raise self._error(f"tensor {name!r} has the shape {shape}; {_AGAIN}")
            if shape[-1] % block:
                raise self._error(
                    f"tensor {name!r} has rows of {shape[-1]}, no multiple of {kind.name}'s {block}; convert it again"
                )
            size = elements // block * block_bytes
            if start + offset + size > self._size:
                raise self._error(
                    f"tensor {name!r} ends at byte {start + offset + size}, the file has {self._size}: {_AGAIN}"
                )
            if name in entries:
                raise self._error(f"tensor {name!r} occurs twice; convert it again")
            entries[name] = TensorEntry(name, kind.name, shape, start + offset, size)
        return entries

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], key)
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY:
            raise self._error(f"metadata {key!r} has the unknown type {kind}; {_AGAIN}")
        inner, count = self._number("I", key), self._number("Q", key)
        if inner in _SCALARS:
            width = struct.calcsize(_SCALARS[inner])
            self._need(count * width, key)
            values = list(struct.unpack_from(f"<{count}{_SCALARS[inner]}", self._source, self._at))
            self._at += count * width
            return values
        if inner == _STRING:
            self._need(8 * count, key)
            return self._strings(count, key)
        raise self._error(f"metadata {key!r} is an array of type {inner}, which is unknown; {_AGAIN}")

    def _strings(self, count: int, key: str) -> list[str]:
        """A vocabulary: the one loop of a header that must be quick."""
        source, at, size, length_at = self._source, self._at, self._size, struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            if at + 8 > size:
                self._need(size, key)
            begin = at + 8
            at = begin + length_at(source, at)[0]
            if at > size:
                self._need(at, key)
            values.append(source[begin:at].decode("utf-8", "replace"))
        self._at = at
        return values

    def _string(self, what: str) -> str:
        length = self._number("Q", what)
        self._need(length, what)
        self._at += length
        return self._source[self._at - length : self._at].decode("utf-8", "replace")

    def _number(self, form: str, what: str) -> Any:
        width = struct.calcsize(form)
        self._need(width, what)
        self._at += width
        return struct.unpack_from(f"<{form}", self._source, self._at - width)[0]

    def _need(self, size: int, what: str) -> None:
        if self._at + size > self._size:
            raise self._error(f"{what} would need {size} bytes at {self._at}, the file has {self._size}: {_AGAIN}")

    def _error(self, text: str) -> InvalidModelFile:
        return InvalidModelFile(f"model file {str(self._path)!r}: {text}")


def _mapped(path: Path) -> tuple[mmap.mmap, int]:
    try:
        with path.open("rb") as source:
            if os.fstat(source.fileno()).st_size == 0:
                raise InvalidModelFile(f"model file {str(path)!r}: is empty: not a GGUF file; give the path of one")
            return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ), os.dup(source.fileno())
    except IsADirectoryError:
        raise InvalidModelFile(f"model file {str(path)!r}: is a folder; give the path of a .gguf file") from None
    except FileNotFoundError:
        raise ModelNotFound(f"model {str(path)!r}: no such file or folder") from None


def _joined(paths: list[Path]) -> mmap.mmap:
    memory = mmap.mmap(-1, sum(path.stat().st_size for path in paths))
    view = memoryview(memory)
    at = 0
    for path in paths:
        with path.open("rb") as source:
            at += source.readinto(view[at:])
    view.release()
    return memory


def _require_library() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelNotFound("GGUF files are read with a package that is missing: pip install gguf") from None
