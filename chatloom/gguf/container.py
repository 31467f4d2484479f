"""The bytes of a GGUF file: metadata and tensors, with every count and offset checked before it is believed.

* A header is a few numbers that say how much follows. Each is compared with what is left of the file before anything
  is made from it, so that a damaged or hostile file is a ValueError and costs no more memory than its own size.
* Tensors may not overlap: otherwise a small file could claim the same bytes a thousand times.
* Strings are read in one pass (the `gguf` package's reader makes several arrays a string: 2 s for a vocabulary of
  49,152, and 0.1 s here).

Specification: the GGUF page of the ggml project, version 3 (2023).
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_AXES = 4
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 13, 24  # bytes of a metadata entry and of a tensor's description
_LONGEST_NAME = 65_535


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file. `shape` is in our order, the axis of the inputs last."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    data: NDArray[np.uint8]  # (rows, bytes of a row)


@dataclass(frozen=True)
class Container:
    """An opened file: metadata by key (numbers, texts, lists of texts, arrays of numbers), tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_container(path: Path) -> Container:
    """Open a GGUF file; tensors stay on the disk until they are used. Raises ValueError for a damaged one."""
    size = path.stat().st_size
    if size < 24:
        raise ValueError(f"{path} is no GGUF file: it has {size} bytes; download or copy it again")
    with path.open("rb") as file:
        # Copy on write: torch wants memory that it may write to, and the file never changes.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return _Reader(path, data, size).read()


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size = path, data, size
        self.position = 0

    def read(self) -> Container:
        if self.data[:4] != MAGIC:
            raise ValueError(f"{self.path} is no GGUF file: it begins with {self.data[:4]!r}, not {MAGIC!r}")
        self.position = 4
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            self.fail(f"it is of version {version}{' (big-endian)' if swapped else ''}; known: 2 and 3, little-endian")
        num_tensors, num_entries = self.number("Q"), self.number("Q")
        self.room(num_tensors * _SMALLEST_TENSOR + num_entries * _SMALLEST_ENTRY, "the header's counts")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self.text(_LONGEST_NAME)
            if key in metadata:
                self.fail(f"the key {key} stands there twice")
            metadata[key] = self.value(self.number("I"))
        return Container(self.path, metadata, self.tensors(num_tensors, metadata.get("general.alignment", 32)))

    def tensors(self, count: int, alignment: Any) -> dict[str, StoredTensor]:
        if not isinstance(alignment, int) or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r}; it must be a power of two")
        described = [self.description() for _ in range(count)]
        start = -(-self.position // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        end_of_last = 0
        for name, shape, kind, offset in sorted(described, key=lambda each: each[3]):
            block, block_bytes = GGML_QUANT_SIZES[kind]
            rows, row_bytes = _product(shape[:-1]), shape[-1] // block * block_bytes
            num_bytes = rows * row_bytes
            if name in tensors:
                self.fail(f"the tensor {name} stands there twice")
            if shape[-1] % block:
                self.fail(f"rows of {name} are {shape[-1]} long, which is no multiple of {kind.name}'s block {block}")
            if offset % alignment or offset < end_of_last:
                self.fail(f"the tensor {name} begins at {offset}, inside another or out of line")
            if start + offset + num_bytes > self.size:
                self.fail(f"the tensor {name} ends at byte {start + offset + num_bytes:,} of {self.size:,}")
            end_of_last = offset + num_bytes
            data = np.frombuffer(self.data, np.uint8, num_bytes, start + offset).reshape(rows, row_bytes)
            tensors[name] = StoredTensor(name, shape, kind, data)
        return tensors

    def description(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        """Name, shape, kind and offset of the next tensor."""
        name = self.text(_LONGEST_NAME)
        num_axes = self.number("I")
        if not 1 <= num_axes <= _MOST_AXES:
            self.fail(f"the tensor {name} has {num_axes} axes")
        shape = tuple(self.number("Q") for _ in range(num_axes))[::-1]
        number, offset = self.number("I"), self.number("Q")
        if not all(0 < length < 2**40 for length in shape):
            self.fail(f"the tensor {name} has the shape {shape}")
        try:
            return name, shape, GGMLQuantizationType(number), offset
        except ValueError:
            self.fail(f"the tensor {name} is of type {number}, which is unknown")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            self.fail(f"a metadata value is of type {kind}, which is unknown")
        item, count = self.number("I"), self.number("Q")
        if item == _STRING:
            self.room(count * 8, "a list of texts")
            return [self.text() for _ in range(count)]
        if item not in _SCALARS:
            self.fail(f"a list of metadata is of type {item}, which is unknown")
        dtype = np.dtype(_SCALARS[item]).newbyteorder("<")
        self.room(count * dtype.itemsize, "a list of numbers")
        values = np.frombuffer(self.data, dtype, count, self.position).copy()
        self.position += count * dtype.itemsize
        return values

    def number(self, code: str) -> Any:
        length = struct.calcsize("<" + code)
        self.room(length, "a number")
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += length
        return value

    def text(self, longest: int | None = None) -> str:
        length = self.number("Q")
        self.room(length, "a text")
        if longest is not None and length > longest:
            self.fail(f"a name is {length} bytes long")
        start = self.position
        self.position += length
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"a text at byte {start} is not UTF-8 ({error.reason})")

    def room(self, num_bytes: int, what: str) -> None:
        """Refuse what would reach past the end of the file."""
        if num_bytes > self.size - self.position:
            self.fail(f"{what} at byte {self.position} asks for {num_bytes:,} bytes, and the file has {self.size:,}")

    def fail(self, problem: str) -> NoReturn:
        raise ValueError(f"{self.path} is damaged or not whole: {problem}; download or copy it again")


def _product(lengths: tuple[int, ...]) -> int:
    product = 1
    for length in lengths:
        product *= length
    return product
