"""Payloads of chain D: datasets and votes on them. docs/block-format.md section 5."""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.codec import U8, U32, U64, Size, message
from blyan_proto.constants import MIB
from blyan_proto.types import BlobId, BlockId, Hash, Name, Text


class Tier(enum.IntEnum):
    """Standing of a dataset; governance moves it."""

    PENDING = 0
    EXPERIMENTAL = 1
    SILVER = 2
    GOLD = 3
    REJECTED = 4


@message
class Dataset:
    """Text that runs may learn from. The split is whole files by hash of path (DEC-B17)."""

    version: U8
    name: Name
    blob: BlobId  # the archive: docs/block-format.md, "dataset archive"
    bytes: U64
    files: U32
    held_out_ppm: U32
    license: Text
    source: Text
    near_duplicates: U32  # files dropped from the training side
    parent: BlockId | None  # an earlier dataset that this one replaces


@message
class DatasetVote:
    """One operator's verdict on a dataset."""

    version: U8
    dataset: BlockId
    tier: Tier
    reason: Text
    report: Hash | None


MAX_INDEX_BYTES = 64 * MIB


@message
class ArchiveFile:
    """One file of a dataset archive: its path and where its bytes stand."""

    path: Annotated[str, Size(1, 512)]
    offset: U64  # from the first byte of the first file
    bytes: U32
    held_out: bool

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in self.path:
            raise ValueError("not a plain relative path")


@message
class ArchiveIndex:
    """The index at the head of a dataset archive."""

    version: U8
    files: Annotated[tuple[ArchiveFile, ...], Size(0, 100_000)]  # by path, ascending

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        if any(left >= right for left, right in zip(paths, paths[1:])):
            raise ValueError("paths are not ascending and distinct")
        offset = 0
        for file in self.files:
            if file.offset != offset:
                raise ValueError("files do not stand one after the other")
            offset += file.bytes
