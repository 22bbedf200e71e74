"""GGUF files: their metadata, and their tensors as stored or dequantized.

Little-endian versions 2 and 3 (ggml/docs/gguf.md), mapped into memory. The metadata is parsed here, because
`gguf.GGUFReader` makes a numpy view of every string and needs seconds for a vocabulary; block sizes and
dequantization are the gguf package's. What the metadata means to a model is gguf_config.py's.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.shared.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_LENGTH = struct.Struct("<Q")


def read_metadata(path: Path) -> dict[str, object]:
    """The key-value section, strings and arrays as str and list. Raises ModelError for a broken file."""
    with _map(path) as data:
        return _read_metadata(_open_reader(data, path))[0]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file and how it is stored."""

    kind: str  # the name of its ggml type: "F32", "Q4_1" …
    shape: tuple[int, ...]  # slowest dimension first, as torch has it
    start: int  # bytes from the front of the file
    num_bytes: int


class GgufFile:
    """A mapped file whose tensors all lie within it. Raises ModelError where that is not so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _map(path)
        reader = _open_reader(self._data, path)
        self.metadata, num_tensors = _read_metadata(reader)
        self.tensors = _read_tensors(reader, num_tensors, self.metadata.get("general.alignment", 32))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def stored(self, name: str) -> "npt.NDArray[np.uint8]":
        """The tensor's bytes as they lie in the file; writing to them does not change the file."""
        import numpy as np

        info = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, info.num_bytes, info.start)

    def tensor(self, name: str) -> "npt.NDArray[np.float32]":
        """The tensor dequantized, in its shape."""
        import gguf

        info = self.tensors[name]
        kind = gguf.GGMLQuantizationType[info.kind]
        rows = self.stored(name).reshape(*info.shape[:-1], -1)
        try:
            values: npt.NDArray[np.float32] = gguf.dequantize(rows, kind)
        except NotImplementedError as error:
            raise ModelError(f"{self.path.name}: {name} is {info.kind}, which is not supported") from error
        return values.reshape(info.shape)


class _Reader:
    """Takes little-endian values off the front of the data, never beyond its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.name = path.name
        self.position = 0

    def fail(self, problem: str) -> ModelError:
        return ModelError(f"{self.name} is not a usable GGUF file: {problem}")

    def take(self, num_bytes: int) -> int:
        """Steps over this many bytes and returns where they start."""
        start = self.position
        if start + num_bytes > len(self.data):
            raise self.fail(f"it ends after {len(self.data)} bytes, in the middle of its header")
        self.position = start + num_bytes
        return start

    def numbers(self, code: str, count: int) -> list[int | float | bool]:
        start = self.take(count * struct.calcsize(f"<{code}"))
        return list(struct.unpack_from(f"<{count}{code}", self.data, start))

    def integer(self, code: str) -> int:
        return int(self.numbers(code, 1)[0])

    def texts(self, count: int) -> list[str]:
        """`count` strings; a plain loop over locals, because vocabularies have 100,000 and more."""
        data, end, position = self.data, len(self.data), self.position
        unpack, found = _LENGTH.unpack_from, []
        for _ in range(count):
            start = position + 8
            if start > end:
                break
            position = start + unpack(data, position)[0]
            if position > end:
                break
            try:
                found.append(data[start:position].decode())
            except UnicodeDecodeError as error:
                raise self.fail(f"the text at byte {start} is not UTF-8") from error
        if len(found) < count:
            raise self.fail(f"it ends after {end} bytes, in the middle of its header")
        self.position = position
        return found

    def value(self, kind: int) -> object:
        if kind == _ARRAY:
            item_kind, count = self.integer("I"), self.integer("Q")
            return self.texts(count) if item_kind == _STRING else self.numbers(self.code(item_kind), count)
        return self.texts(1)[0] if kind == _STRING else self.numbers(self.code(kind), 1)[0]

    def code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.fail(f"it has a value of unknown type {kind} before byte {self.position}")
        return _SCALARS[kind]


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            # A private mapping: numpy and torch want memory that could be written to.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelError(f"cannot read {path}: {error}") from error


def _open_reader(data: mmap.mmap, path: Path) -> _Reader:
    reader = _Reader(data, path)
    if data[: len(_MAGIC)] != _MAGIC:
        raise reader.fail(f"it starts with {data[: len(_MAGIC)]!r}, not {_MAGIC!r}")
    reader.take(len(_MAGIC))
    version = reader.integer("I")
    if version not in _VERSIONS:
        raise reader.fail(f"its version is {version}; versions {_VERSIONS} can be read, little-endian")
    return reader


def _read_metadata(reader: _Reader) -> tuple[dict[str, object], int]:
    """The key-value section and the number of tensors; the reader is left at the first tensor's info."""
    num_tensors, num_values = reader.integer("Q"), reader.integer("Q")
    metadata: dict[str, object] = {}
    for _ in range(num_values):
        key = reader.texts(1)[0]
        metadata[key] = reader.value(reader.integer("I"))
    return metadata, num_tensors


def _read_tensors(reader: _Reader, num_tensors: int, alignment: object) -> dict[str, TensorInfo]:
    """The tensor infos, each checked to lie within the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise reader.fail(f"general.alignment is {alignment!r}, not a power of two")
    kinds = {kind.value: (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    infos: dict[str, TensorInfo] = {}
    for _ in range(num_tensors):
        name = reader.texts(1)[0]
        num_dimensions = reader.integer("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise reader.fail(f"{name} has {num_dimensions} dimensions, more than {_MAX_DIMENSIONS}")
        shape = tuple(int(size) for size in reversed(reader.numbers("Q", num_dimensions)))
        kind, offset = reader.integer("I"), reader.integer("Q")
        if kind not in kinds:
            raise reader.fail(f"{name} is of unknown type {kind}")
        kind_name, block_size, block_bytes = kinds[kind]
        if shape and shape[-1] % block_size:
            raise reader.fail(f"{name} has rows of {shape[-1]}, not a multiple of {kind_name}'s {block_size}")
        if name in infos:
            raise reader.fail(f"it has two tensors {name}")
        infos[name] = TensorInfo(kind_name, shape, offset, math.prod(shape) // block_size * block_bytes)
    return _place(reader, infos, alignment)


def _place(reader: _Reader, infos: dict[str, TensorInfo], alignment: int) -> dict[str, TensorInfo]:
    """Offsets from the data section, which starts at the next aligned byte, to offsets from the front."""
    base = -(-reader.position // alignment) * alignment
    placed = {}
    for name, info in infos.items():
        start = base + info.start
        stop = start + info.num_bytes
        if stop > len(reader.data):
            raise reader.fail(f"{name} ends at byte {stop}, the file at {len(reader.data)}: it is cut short")
        placed[name] = TensorInfo(info.kind, info.shape, start, info.num_bytes)
    return placed
