"""TBLOCK: the mappable file of one tensor, named by the root of its Merkle index.

There is exactly one file per (dtype, shape, data): every offset is computed from the
shape and compared, every unused byte is zero. docs/tile-layout.md section 1, FMT-01 to
FMT-05.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from blyan_proto import merkle
from blyan_proto.block.model import Dtype
from blyan_proto.constants import LEAF_BYTES, MAX_BLOB_BYTES
from blyan_proto.digest import Domain, digest, leaf_digest
from blyan_proto.errors import BadProof, DecodeError, LimitExceeded

if TYPE_CHECKING:
    import torch

MAGIC = b"TBLOCK01"
VERSION = 1
HEADER_BYTES = 128
DATA_ALIGNMENT = 4096  # a memory page, so that a mapping of the data is aligned
HASH_BYTES = 32
MAX_DIMENSIONS = 4

_HEADER = struct.Struct("<8sIIQQIIQQQ64s")
_RESERVED = struct.Struct("<IIQQQ32s")

# What a stored element looks like to numpy; bf16 and f8 have no type there.
_STORED: dict[Dtype, np.dtype[Any]] = {
    Dtype.F16: np.dtype("<f2"),
    Dtype.I8: np.dtype("i1"),
    Dtype.F8: np.dtype("u1"),
    Dtype.F32: np.dtype("<f4"),
    Dtype.BF16: np.dtype("<u2"),
    Dtype.U8: np.dtype("u1"),
}
_MEANT = {stored: dtype for dtype, stored in _STORED.items()}  # U8 wins over F8


@dataclass(frozen=True)
class _Fields:
    """What a header says."""

    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def data_bytes(self) -> int:
        return prod(self.shape) * self.dtype.bytes

    @property
    def data_offset(self) -> int:
        return DATA_ALIGNMENT

    @property
    def leaves_offset(self) -> int:
        return self.data_offset + -(-self.data_bytes // HASH_BYTES) * HASH_BYTES

    @property
    def leaf_count(self) -> int:
        return -(-self.data_bytes // LEAF_BYTES)

    @property
    def file_bytes(self) -> int:
        return self.leaves_offset + HASH_BYTES * self.leaf_count


def _pack(fields: _Fields) -> bytes:
    """Return the one header of `fields`. LimitExceeded, DecodeError if it has none."""
    dims = fields.shape
    if not 1 <= len(dims) <= MAX_DIMENSIONS:
        raise DecodeError(f"{len(dims)} dimensions, allowed 1..{MAX_DIMENSIONS}")
    if fields.data_bytes > MAX_BLOB_BYTES or max(dims) > MAX_BLOB_BYTES:
        raise LimitExceeded(f"a tensor of {dims}, at most {MAX_BLOB_BYTES} bytes")
    if len(dims) > 1 and min(dims) < 1:
        raise DecodeError("an empty tensor has one dimension")
    rows, columns, dim2, dim3 = (*dims, 1, 0, 0) if len(dims) == 1 else _padded(dims)
    reserved = _RESERVED.pack(
        len(dims), LEAF_BYTES, dim2, dim3, fields.data_bytes, bytes(32)
    )
    return _HEADER.pack(
        MAGIC,
        VERSION,
        fields.dtype,
        rows,
        columns,
        0,  # row-major
        0,  # not quantised
        0,  # hence no scales
        fields.data_offset,
        fields.leaves_offset,
        reserved,
    )


def _padded(dims: tuple[int, ...]) -> tuple[int, ...]:
    return dims + (0,) * (MAX_DIMENSIONS - len(dims))


def _parse(header: bytes) -> _Fields:
    """Return the fields of a header. DecodeError, LimitExceeded for any other bytes."""
    if len(header) != HEADER_BYTES:
        raise DecodeError(f"{len(header)} bytes of TBLOCK header, not {HEADER_BYTES}")
    magic, version, code, rows, columns, layout, quant, *_, rest = _HEADER.unpack(
        header
    )
    if magic != MAGIC or version != VERSION:
        raise DecodeError("not a TBLOCK of version 1")
    if code not in Dtype._value2member_map_:
        raise DecodeError(f"{code} is not a TBLOCK dtype")
    if layout or quant:
        raise DecodeError("only row-major, unquantised TBLOCKs are in this version")
    count, _, dim2, dim3, _, _ = _RESERVED.unpack(rest)
    if not 1 <= count <= MAX_DIMENSIONS:
        raise DecodeError(f"{count} dimensions, allowed 1..{MAX_DIMENSIONS}")
    fields = _Fields(Dtype(code), (rows, columns, dim2, dim3)[:count])
    if _pack(fields) != header:
        raise DecodeError("not the canonical TBLOCK header of its shape")
    return fields


@dataclass(frozen=True)
class Outline:
    """Everything of a TBLOCK but its data; valid by construction (ProtocolError)."""

    header: bytes  # 128 bytes
    quant: bytes  # empty in this version
    leaves: tuple[bytes, ...]  # one per 256 KiB of data

    def __post_init__(self) -> None:
        if self.quant:
            raise DecodeError("quantisation metadata is not in this version")
        if len(self.leaves) != self._fields.leaf_count:
            raise DecodeError(
                f"{len(self.leaves)} leaves, not {self._fields.leaf_count}"
            )
        if any(len(leaf) != HASH_BYTES for leaf in self.leaves):
            raise DecodeError(f"a leaf has {HASH_BYTES} bytes")

    @cached_property
    def _fields(self) -> _Fields:
        return _parse(self.header)

    @cached_property
    def root(self) -> bytes:
        """The BlobId."""
        return digest(Domain.TBLOCK, self.header, self.quant, merkle.root(self.leaves))

    @property
    def dtype(self) -> Dtype:
        return self._fields.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._fields.shape

    @property
    def data_bytes(self) -> int:
        return self._fields.data_bytes

    @property
    def data_offset(self) -> int:
        return self._fields.data_offset

    @property
    def leaves_offset(self) -> int:
        return self._fields.leaves_offset

    @property
    def file_bytes(self) -> int:
        return self._fields.file_bytes

    def leaf_span(self, index: int) -> tuple[int, int]:
        """Return (offset in the file, bytes) of the data under leaf `index`."""
        if not 0 <= index < len(self.leaves):
            raise IndexError(f"leaf {index} of {len(self.leaves)}")
        start = index * LEAF_BYTES
        return self.data_offset + start, min(LEAF_BYTES, self.data_bytes - start)

    def head_bytes(self) -> bytes:
        """Return what stands before the data in the file."""
        return self.header + bytes(self.data_offset - HEADER_BYTES)

    def tail_bytes(self) -> bytes:
        """Return what stands behind the data in the file."""
        padding = self.leaves_offset - self.data_offset - self.data_bytes
        return bytes(padding) + b"".join(self.leaves)


def parse_outline(
    header: bytes, quant: bytes = b"", leaves: tuple[bytes, ...] = ()
) -> Outline:
    """Return a foreign outline, checked; compare its root before believing it.

    Raises DecodeError and LimitExceeded.
    """
    return Outline(bytes(header), bytes(quant), tuple(leaves))


def check_leaf(outline: Outline, index: int, chunk: bytes | memoryview) -> None:
    """Raise BadProof unless `chunk` is the data under leaf `index`."""
    if not 0 <= index < len(outline.leaves):
        raise BadProof(f"leaf {index} of {len(outline.leaves)}")
    if len(chunk) != outline.leaf_span(index)[1]:
        raise BadProof(f"{len(chunk)} bytes for leaf {index}")
    if leaf_digest(chunk) != outline.leaves[index]:
        raise BadProof(f"the data under leaf {index} does not match it")


def bytes_array(raw: bytes) -> np.ndarray:
    """Return plain bytes as the (n,) uint8 tensor that a U8 TBLOCK holds; no copy."""
    return np.frombuffer(raw, np.uint8) if raw else np.empty(0, np.uint8)


def _data_of(array: np.ndarray, dtype: Dtype) -> memoryview:
    plain = np.ascontiguousarray(array, _STORED[dtype])
    return plain.reshape(-1).view(np.uint8).data


def _dtype_of(array: np.ndarray, dtype: Dtype | None) -> Dtype:
    meant = _MEANT.get(array.dtype) if dtype is None else dtype
    if meant is None or _STORED[meant] != array.dtype:
        raise ValueError(f"a TBLOCK cannot hold {array.dtype} as {dtype}")
    return meant


def outline_of(array: np.ndarray, dtype: Dtype | None = None) -> Outline:
    """Return the outline of `array` (1 to 4 dimensions; uint16 means bf16).

    `dtype` is only needed for f8, whose bytes look like u8. ValueError for an element
    type that no TBLOCK holds.
    """
    meant = _dtype_of(array, dtype)
    header = _pack(_Fields(meant, array.shape))
    data = _data_of(array, meant)
    leaves = tuple(
        leaf_digest(data[start : start + LEAF_BYTES])
        for start in range(0, len(data), LEAF_BYTES)
    )
    return Outline(header, b"", leaves)


def root_of(array: np.ndarray, dtype: Dtype | None = None) -> bytes:
    """Return the BlobId of `array`."""
    return outline_of(array, dtype).root


def to_bytes(array: np.ndarray, dtype: Dtype | None = None) -> bytes:
    """Return the whole TBLOCK file of `array`."""
    outline = outline_of(array, dtype)
    data = _data_of(array, outline.dtype)
    return b"".join((outline.head_bytes(), data, outline.tail_bytes()))


def read_outline(fd: int) -> Outline:
    """Return the outline of an open file after checking its size and its padding.

    Does not hash the data: see `verify_file`. DecodeError, LimitExceeded.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("a TBLOCK is a regular file")
    header = _read(fd, 0, HEADER_BYTES)
    fields = _parse(header)
    if status.st_size != fields.file_bytes:
        raise DecodeError(f"{status.st_size} bytes, not {fields.file_bytes}")
    end = fields.data_offset + fields.data_bytes
    for start, stop in (
        (HEADER_BYTES, fields.data_offset),
        (end, fields.leaves_offset),
    ):
        if any(_read(fd, start, stop - start)):
            raise DecodeError("padding is not zero")
    raw = _read(fd, fields.leaves_offset, HASH_BYTES * fields.leaf_count)
    return Outline(
        header,
        b"",
        tuple(raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)),
    )


def _read(fd: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            raise DecodeError("the file ends early")
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def verify_file(fd: int, root: bytes | None = None) -> Outline:
    """Return the outline of an open file after hashing all of it.

    BadProof if the data does not match the leaves, or the whole not the `root` that the
    caller expects; DecodeError, LimitExceeded as `read_outline`.
    """
    outline = read_outline(fd)
    if root is not None and outline.root != root:
        raise BadProof("the file has another root")
    if outline.leaves:
        with mmap.mmap(fd, outline.file_bytes, prot=mmap.PROT_READ) as mapped:
            with memoryview(mapped) as view:
                for index in range(len(outline.leaves)):
                    start, length = outline.leaf_span(index)
                    with view[start : start + length] as chunk:
                        check_leaf(outline, index, chunk)
    return outline


def open_array(fd: int) -> np.ndarray:
    """Return the tensor of an open file as a read-only view over a shared mapping.

    No copy; the mapping lives as long as the array, `fd` may be closed at once. bf16
    comes as uint16. The data is not hashed: verify once, when the file arrives.
    """
    outline = read_outline(fd)
    stored = _STORED[outline.dtype]
    if not outline.data_bytes:
        return np.empty(outline.shape, stored)
    mapped = mmap.mmap(
        fd, outline.file_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ
    )
    flat = np.frombuffer(mapped, stored, prod(outline.shape), outline.data_offset)
    return flat.reshape(outline.shape)


def widened(array: np.ndarray) -> np.ndarray:
    """Return stored floats (f16, bf16 as uint16, f32) as float32, exactly (DEC-B2)."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if array.dtype not in (np.float16, np.float32):
        raise ValueError(f"{array.dtype} is not a stored float")
    return array.astype(np.float32, copy=False)


def to_torch(array: np.ndarray, dtype: Dtype) -> torch.Tensor:
    """Return `array` as a torch tensor over the same memory; never write to it."""
    import torch

    _allow_read_only()
    tensor = torch.from_numpy(array)
    views = {Dtype.BF16: torch.bfloat16, Dtype.F8: torch.float8_e4m3fn}
    return tensor.view(views[dtype]) if dtype in views else tensor


@cache
def _allow_read_only() -> None:
    # torch has no read-only tensors and says so for every mapped file
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
