"""A folder of safetensors files from elsewhere: every lie is refused before it is read.

Strategy. The folder is opened once; every file in it by its base name, never through a
link, and only if it is a regular file (DEC-C5). The header of each file must account for
every byte behind it: so a truncated, overlapping or padded file is found before a tensor
is. Data is read with pread, block by block, never mapped: a file that shrinks meanwhile
is an error here and no SIGBUS. The format: docs/models.md, "The files".
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from blake3 import blake3

from blyan_proto.block.model import Dtype
from blyan_proto.errors import DecodeError, LimitExceeded

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
MAX_SHARDS = 512  # each keeps one descriptor open
MAX_DIMENSIONS = 8
MAX_FILE_NAME_BYTES = 255
MAX_SHOWN = 120  # characters of a stranger's name in a sentence

_LENGTH = struct.Struct("<Q")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a pipe that stands in a file's place must not make us wait.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# Every element type of the format with its bytes; only those of `KEPT` are imported.
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
KEPT = {"F32": Dtype.F32, "F16": Dtype.F16, "BF16": Dtype.BF16}
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


def shown(name: str) -> str:
    """Return a stranger's name as a sentence may show it: quoted, printable, short."""
    return repr(name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "…")


@dataclass(frozen=True)
class Tensor:
    """Where one tensor stands."""

    file: str
    dtype: str  # as the format calls it: "F32", "BF16", …
    shape: tuple[int, ...]
    start: int  # from the start of the file

    @property
    def bytes(self) -> int:
        return prod(self.shape) * _BYTES[self.dtype]


def parse_header(raw: bytes, file: str, file_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a file by name, from its header of JSON.

    DecodeError and LimitExceeded name the file, and the tensor if it is one's fault:
    the tensors' bytes must follow one another from the header to the end of the file.
    """
    data = _LENGTH.size + len(raw)
    found = {
        name: _tensor(name, told, file, data, file_bytes)
        for name, told in _object(raw, f"the header of {file}").items()
        if name != "__metadata__"
    }
    filled = (one for one in found.items() if one[1].bytes)
    at = data
    for name, tensor in sorted(filled, key=lambda one: one[1].start):
        if tensor.start != at:
            what = "overlaps another" if tensor.start < at else "leaves a gap before it"
            raise DecodeError(f"{file}: tensor {shown(name)} {what}")
        at += tensor.bytes
    if at != file_bytes:
        raise DecodeError(
            f"{file} has {file_bytes - at} bytes that no tensor accounts for"
        )
    return found


def _tensor(name: str, told: Any, file: str, data: int, file_bytes: int) -> Tensor:
    where = f"{file}: tensor {shown(name)}"
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise DecodeError(f"{where} has no dtype, shape and data_offsets, or more")
    dtype, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise DecodeError(f"{where} has an unknown dtype")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise DecodeError(f"{where} has no sound shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise DecodeError(f"{where} has no sound data_offsets")
    tensor = Tensor(file, dtype, tuple(shape), data + offsets[0])
    if offsets[1] - offsets[0] != tensor.bytes:
        raise DecodeError(
            f"{where} takes {offsets[1] - offsets[0]} bytes, its shape and dtype "
            f"{tensor.bytes}"
        )
    if data + offsets[1] > file_bytes:
        raise DecodeError(
            f"{where} ends at byte {data + offsets[1]}, but the file at {file_bytes}: "
            "it is truncated, copy it again"
        )
    return tensor


def parse_index(raw: bytes) -> dict[str, str]:
    """Return the file of each tensor from an index. DecodeError, LimitExceeded."""
    placed = _object(raw, INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise DecodeError(f"{INDEX} has no weight_map")
    for name, file in placed.items():
        if not isinstance(file, str) or not is_base_name(file):
            raise DecodeError(f"{INDEX} places {shown(name)} outside the folder")
    if len(set(placed.values())) > MAX_SHARDS:
        raise LimitExceeded(f"{INDEX} names more than {MAX_SHARDS} files")
    return placed


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**48 for value in values
    )


def _object(raw: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object of a stranger, at any depth without a name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise DecodeError(f"{what} has a name twice")
        return found

    try:
        value = json.loads(raw.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise DecodeError(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise DecodeError(f"{what} is not a JSON object")
    return value


class Checkpoint:
    """The tensors of an opened folder, by name. Made by `open_checkpoint`."""

    def __init__(self, folder: int, files: ExitStack) -> None:
        self._folder = folder
        self._files = files
        self._shards: dict[str, int] = {}  # file -> descriptor
        self._seen = blake3()  # what `fingerprint` is made of
        self._tensors: dict[str, Tensor] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by name; empty before `find_tensors`."""
        return self._tensors

    def small(self, name: str, limit: int) -> bytes | None:
        """Return a whole small file, None when there is none. LimitExceeded."""
        fd = self._open(name)
        if fd is None:
            return None
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise LimitExceeded(f"{name} has {size} bytes, at most {limit}")
            return self._read(fd, 0, size, name)
        finally:
            os.close(fd)

    def find_tensors(self) -> None:
        """Read every header. DecodeError, LimitExceeded: the folder is not sound."""
        if self._add(SINGLE, is_named=False):
            return
        raw = self.small(INDEX, MAX_HEADER_BYTES)
        if raw is None:
            raise DecodeError(f"there is neither {SINGLE} nor {INDEX} in the folder")
        placed = parse_index(raw)
        for file in sorted(set(placed.values())):
            self._add(file, is_named=True)
        for name, file in placed.items():
            tensor = self._tensors.get(name)
            if tensor is None or tensor.file != file:
                raise DecodeError(
                    f"{file} has no tensor {shown(name)}, {INDEX} says so"
                )
        for name, tensor in self._tensors.items():
            if name not in placed:
                raise DecodeError(f"{tensor.file}: {INDEX} does not name {shown(name)}")

    @property
    def fingerprint(self) -> bytes:
        """32 bytes: the same folder again, as far as headers, sizes and times tell."""
        return self._seen.digest()

    def block(
        self, name: str, row0: int, row1: int, col0: int, col1: int
    ) -> np.ndarray:
        """Return a block of a matrix, a copy as stored (bf16 as uint16).

        A vector is a matrix of one column. DecodeError when the file has shrunk.
        """
        tensor = self._tensors[name]
        element = _NUMPY[tensor.dtype]
        columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
        fd, size = self._shards[tensor.file], element.itemsize
        taken: np.ndarray = np.empty((row1 - row0, col1 - col0), element)
        rows = taken.reshape(1, -1) if col1 - col0 == columns else taken
        for index, row in enumerate(rows):
            offset = tensor.start + size * ((row0 + index) * columns + col0)
            _read_into(fd, offset, row.view(np.uint8).data, tensor.file)
        return taken

    def _add(self, file: str, *, is_named: bool) -> bool:
        """Read the header of one file; False when it is not there, and need not be."""
        fd = self._open(file)
        if fd is None:
            if is_named:
                raise DecodeError(f"{INDEX} names {file}, but it is not in the folder")
            return False
        self._files.callback(os.close, fd)
        self._shards[file] = fd
        status = os.fstat(fd)
        length = self._header_bytes(fd, file, status.st_size)
        raw = self._read(fd, _LENGTH.size, length, file)
        for told in (file.encode(), raw):
            self._seen.update(_LENGTH.pack(len(told)) + told)
        self._seen.update(struct.pack("<QQ", status.st_size, status.st_mtime_ns))
        found = parse_header(raw, file, status.st_size)
        if twice := found.keys() & self._tensors.keys():
            name = min(twice)
            other = self._tensors[name].file
            raise DecodeError(f"tensor {shown(name)} is in both {other} and {file}")
        self._tensors |= found
        return True

    def _header_bytes(self, fd: int, file: str, file_bytes: int) -> int:
        if file_bytes < _LENGTH.size:
            raise DecodeError(f"{file} has {file_bytes} bytes: it is truncated")
        (length,) = _LENGTH.unpack(self._read(fd, 0, _LENGTH.size, file))
        if length > MAX_HEADER_BYTES:
            raise LimitExceeded(
                f"{file} claims a header of {length} bytes, at most {MAX_HEADER_BYTES}"
            )
        if length > file_bytes - _LENGTH.size:
            raise DecodeError(f"{file} ends within its header: it is truncated")
        return int(length)

    def _open(self, name: str) -> int | None:
        """Return a descriptor of a regular file of the folder, None when it has none."""
        try:
            fd = os.open(name, _FILE, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            why = "is a link" if error.errno == errno.ELOOP else f"({error.strerror})"
            raise DecodeError(f"{name} cannot be read: it {why}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise DecodeError(f"{name} is not a regular file")
        return fd

    def _read(self, fd: int, offset: int, size: int, file: str) -> bytes:
        room = bytearray(size)
        _read_into(fd, offset, memoryview(room), file)
        return bytes(room)


def _read_into(fd: int, offset: int, room: memoryview, file: str) -> None:
    while room:
        try:
            count = os.preadv(fd, [room], offset)
        except OSError as error:
            raise DecodeError(f"{file} cannot be read ({error.strerror})") from None
        if not count:
            raise DecodeError(f"{file} ends early: it was changed while it was read")
        room, offset = room[count:], offset + count


def is_base_name(file: str) -> bool:
    """True for the name of a safetensors file in the folder itself."""
    return (
        file.endswith(".safetensors")
        and file.isprintable()
        and not {"/", "\\", "\0"} & set(file)
        and not file.startswith(".")
        and len(file.encode()) <= MAX_FILE_NAME_BYTES
    )


@contextmanager
def open_checkpoint(directory: str) -> Iterator[Checkpoint]:
    """Open a folder, once. DecodeError when it cannot be listed or is none.

    The folder itself may be reached through a link: the operator named it.
    """
    try:
        folder = os.open(directory, _FOLDER)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DecodeError(f"the folder cannot be opened: {why}") from None
    with ExitStack() as files:
        files.callback(os.close, folder)
        yield Checkpoint(folder, files)


def is_finite(array: np.ndarray) -> bool:
    """True when no stored float of `array` is NaN or infinite (bf16 as uint16)."""
    if array.dtype == np.uint16:
        return bool(((array & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(array).all())
