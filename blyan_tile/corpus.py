"""Dataset archives: text files in one blob, split by whole files (DEC-B17).

An archive is a U8 TBLOCK: u32 LE length of the index, the canonical ArchiveIndex, then
the files' bytes in the order of their paths. docs/block-format.md, "dataset archive".
"""

from __future__ import annotations

import os
import struct
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

import numpy as np
from blake3 import blake3

from blyan_proto.block.data import MAX_INDEX_BYTES, ArchiveFile, ArchiveIndex
from blyan_proto.codec import U32, U64, Range, Size, decode, encode, message
from blyan_proto.constants import FORMAT_VERSION, MAX_BLOB_BYTES, PPM
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.types import BlobId
from blyan_tile import tblock
from blyan_tile.duplicates import near_duplicates
from blyan_tile.jobs import Progress

MAX_FILES = 100_000
MAX_FILE_BYTES = 8 << 20  # a larger text file is data, not prose or code
SUFFIXES = frozenset(
    ".py .pyi .txt .md .rst .c .h .cc .cpp .hpp .rs .go .js .ts .java .sh .json .toml "
    ".pod .pm .pl .adoc .org .man .yaml .yml .cfg .ini .tex .html .css .sql .csv .xml".split()
)
_SKIPPED = frozenset(
    "site-packages dist-packages __pycache__ test tests idle_test node_modules "
    "lib2to3".split()
)
_HEAD = struct.Struct("<I")


@message
class ArchiveJob:
    """Make an archive of a directory's text, or of Python's own library."""

    directory: Annotated[str, Size(0, 4096)]  # empty: the standard library
    out: Annotated[str, Size(1, 4096)]  # the file to write
    max_bytes: Annotated[int, Range(1, MAX_BLOB_BYTES // 2)]
    held_out_ppm: Annotated[int, Range(0, PPM)]


@message
class ArchiveResult:
    """What was written."""

    blob: BlobId
    bytes: U64  # of the archive
    train_bytes: U64
    held_out_bytes: U64
    files: U32
    held_out_files: U32
    near_duplicates: U32  # files dropped from the training side


class Archive:
    """A checked archive. The sides are lists of views, so nothing is copied."""

    def __init__(self, array: np.ndarray) -> None:
        """Check the index of a stranger's archive, an (n,) uint8 array.

        DecodeError and LimitExceeded.
        """
        if array.dtype != np.uint8 or array.ndim != 1:
            raise DecodeError("an archive is plain bytes")
        if len(array) < _HEAD.size:
            raise DecodeError("an archive without an index")
        (length,) = _HEAD.unpack(array[: _HEAD.size].tobytes())
        if length > MAX_INDEX_BYTES:
            raise LimitExceeded(f"an index of {length} bytes")
        start = _HEAD.size + length
        if start > len(array):
            raise DecodeError("the index is longer than the archive")
        raw = array[_HEAD.size : start].tobytes()
        self.index = decode(ArchiveIndex, raw, MAX_INDEX_BYTES)
        if self.index.version != FORMAT_VERSION:
            raise DecodeError(f"an archive of version {self.index.version}")
        self._body = array[start:]  # (n,)
        # order, paths and gaplessness are the index's own invariants
        if sum(file.bytes for file in self.index.files) != len(self._body):
            raise DecodeError("the index does not describe the bytes behind it")
        self.train = self._side(held_out=False)
        self.held_out = self._side(held_out=True)

    def _side(self, held_out: bool) -> list[np.ndarray]:
        """Return one side as views (n,) uint8, neighbouring files as one."""
        views = []
        for side, files in groupby(self.index.files, lambda file: file.held_out):
            run = list(files)
            start, end = run[0].offset, run[-1].offset + run[-1].bytes
            if side == held_out and end > start:
                views.append(self._body[start:end])
        return views

    def content(self, file: ArchiveFile) -> np.ndarray:
        """Return one file's bytes, (n,) uint8."""
        return self._body[file.offset : file.offset + file.bytes]


def joined(views: list[np.ndarray]) -> np.ndarray:
    """Return a side as one array (n,) uint8: a copy unless it is one view."""
    if len(views) == 1:
        return views[0]
    return np.concatenate(views) if views else np.empty(0, np.uint8)


@dataclass(frozen=True)
class _Source:
    path: str  # relative, with "/"
    raw: bytes
    held_out: bool


def build(job: ArchiveJob, report: Callable[[Progress], None]) -> ArchiveResult:
    """Write the archive of a directory; the same text gives the same bytes.

    LimitExceeded when there is nothing to learn from. OSError from the file system.
    """
    texts = list(_collect(job, report))
    judging = held_out_of([path for path, _ in texts], job.held_out_ppm)
    sources = [_Source(path, raw, path in judging) for path, raw in texts]
    kept, dropped = _without_near_duplicates(sources)
    if not any(not source.held_out for source in kept):
        raise LimitExceeded("there is no text to learn from here")
    raw = pack([(source.path, source.raw, source.held_out) for source in kept])
    array = tblock.bytes_array(raw)
    out = Path(job.out)
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(tblock.to_bytes(array))
    os.replace(partial, out)
    archive = Archive(array)
    return ArchiveResult(
        tblock.root_of(array),
        len(raw),
        sum(len(view) for view in archive.train),
        sum(len(view) for view in archive.held_out),
        len(kept),
        sum(source.held_out for source in kept),
        dropped,
    )


def pack(files: list[tuple[str, bytes, bool]]) -> bytes:
    """Return the bytes of an archive of (path, content, held out), in any order."""
    entries, bodies, offset = [], [], 0
    for path, raw, held_out in sorted(files):
        entries.append(ArchiveFile(path, offset, len(raw), held_out))
        bodies.append(raw)
        offset += len(raw)
    index = encode(ArchiveIndex(FORMAT_VERSION, tuple(entries)))
    if len(index) > MAX_INDEX_BYTES:
        raise LimitExceeded(f"an index of {len(index)} bytes")
    return b"".join((_HEAD.pack(len(index)), index, *bodies))


def held_out_of(paths: Sequence[str], ppm: int) -> frozenset[str]:
    """Return the paths whose files are kept for judging: those with a low hash.

    At least one of two or more files is kept, unless `ppm` is 0.
    """
    draws = {path: _draw(path) for path in paths}
    kept = frozenset(path for path, draw in draws.items() if draw < ppm)
    if not kept and ppm and len(draws) > 1:
        return frozenset([min(draws, key=lambda path: (draws[path], path))])
    return kept


def _draw(path: str) -> int:
    drawn = digest(Domain.SEED, b"held-out", path.encode())
    return int.from_bytes(drawn[:8], "little") % PPM


def _collect(
    job: ArchiveJob, report: Callable[[Progress], None]
) -> Iterator[tuple[str, bytes]]:
    """Yield text files in the order of their paths until the size is reached."""
    library = not job.directory
    root = Path(sysconfig.get_path("stdlib") if library else job.directory)
    total = count = 0
    seen: set[bytes] = set()
    for path in _paths(root, frozenset({".py"}) if library else SUFFIXES):
        raw = _text(root / path)
        if raw is None or blake3(raw).digest() in seen:
            continue
        if total + len(raw) > job.max_bytes or count == MAX_FILES:
            return
        seen.add(blake3(raw).digest())
        total, count = total + len(raw), count + 1
        if count % 256 == 0:
            report(Progress(total >> 10, job.max_bytes >> 10, "reading, KiB"))
        yield path, raw


def _paths(root: Path, suffixes: frozenset[str]) -> list[str]:
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [
            name for name in folders if name not in _SKIPPED and name[0] != "."
        ]
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in suffixes and not path.is_symlink():
                relative = path.relative_to(root).as_posix()
                if len(os.fsencode(relative)) <= 512:
                    found.append(relative)
    return sorted(found)


def _text(path: Path) -> bytes | None:
    """Return the content of a regular text file, else None."""
    if not path.is_file() or not 0 < path.stat().st_size <= MAX_FILE_BYTES:
        return None
    raw = path.read_bytes()
    try:
        raw.decode()
        str(path).encode()
    except UnicodeError:
        return None
    return None if b"\0" in raw else raw


def _without_near_duplicates(sources: list[_Source]) -> tuple[list[_Source], int]:
    held_out = [source.raw for source in sources if source.held_out]
    train = [source for source in sources if not source.held_out]
    twins = near_duplicates(held_out, [source.raw for source in train])
    kept = [source for source, twin in zip(train, twins) if not twin]
    kept += [source for source in sources if source.held_out]
    return kept, sum(twins)
