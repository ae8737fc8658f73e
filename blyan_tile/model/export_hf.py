"""The tiles of a model become a folder of safetensors: the job of a worker process.

Strategy. Every tensor's place is known before the first byte, so each tile is written
where it belongs, one in memory at a time. The folder appears whole or not at all: it is
written under another name, synced and renamed. docs/models.md, "Export".
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from blyan_proto.block.model import Dtype, Model
from blyan_proto.codec import U64, Range, Size, decode, message
from blyan_proto.constants import MAX_GROUPS, MAX_TILES_PER_GROUP
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile import tblock
from blyan_tile.checkpoint import INDEX, KEPT, MAX_SHARDS, SINGLE, is_finite
from blyan_tile.decoder import byte_characters
from blyan_tile.jobs import Progress
from blyan_tile.layout import Group, Piece, Tile, layout_of
from blyan_tile.learner import FilePath, mapped
from blyan_tile.model.families import config_of, read_config, tensor_names
from blyan_tile.model.import_hf import family_of
from blyan_tile.tokenizer import FILES, MAX_COMPANIONS_BYTES, Companions

_NAMES = {dtype: name for name, dtype in KEPT.items()}


@message
class TileFiles:
    """The TBLOCK files of a group's weights, in tile order."""

    tiles: Annotated[tuple[FilePath, ...], Size(1, MAX_TILES_PER_GROUP)]


@message
class ExportJob:
    """Write a model's weights and companions into a new folder."""

    directory: FilePath
    model: Model
    groups: Annotated[tuple[TileFiles, ...], Size(1, MAX_GROUPS)]
    companions: FilePath | None  # the blob's file; none: of a model made here
    dtype: Dtype | None  # of all tensors; none: as stored
    shard_bytes: Annotated[int, Range(1, 2**50)]  # a file has more for one tensor only


@message
class ExportResult:
    """What was written."""

    files: U64
    tensors: U64
    bytes: U64  # of all tensors


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes: `start` counts from the end of the file's header."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    shard: int
    start: int

    @property
    def bytes(self) -> int:
        return self.dtype.bytes * prod(self.shape)


def export_model(job: ExportJob, report: Callable[[Progress], None]) -> ExportResult:
    """Run the job. OSError from the file system: then there is no such folder.

    DecodeError, LimitExceeded for a model that cannot be written as asked.
    """
    target = Path(job.directory)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a life that was killed
    partial.mkdir(mode=0o755)
    try:
        result = _write(job, partial, report)
        _sync(partial)
        os.rename(partial, target)  # over an empty folder, or none
        _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # there only if something failed
    return result


def _write(
    job: ExportJob, folder: Path, report: Callable[[Progress], None]
) -> ExportResult:
    beside = _beside(job)
    config = json.loads(beside["config.json"])
    names = tensor_names(read_config(config))
    places = list(_places(job, names))
    shards = places[-1].shard + 1
    if shards > MAX_SHARDS:
        raise LimitExceeded(f"{shards} files, at most {MAX_SHARDS}: make them larger")
    files = [shard_name(index, shards) for index in range(shards)]
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                _Shard(folder / file, [p for p in places if p.shard == n])
            )
            for n, file in enumerate(files)
        ]
        where = {place.name: (writers[place.shard], place) for place in places}
        layout = layout_of(job.model)
        for group, held in zip(layout.groups, job.groups, strict=True):
            for tile, path in zip(group.tiles, held.tiles, strict=True):
                _put_tile(tile, path, where, names)
            report(Progress(group.index + 1, len(layout.groups), group.name))
    if shards > 1:
        weight_map = {place.name: files[place.shard] for place in places}
        size = sum(place.bytes for place in places)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        beside[INDEX] = json.dumps(index, indent=2).encode() + b"\n"
    for name, raw in beside.items():
        with open(folder / name, "xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    return ExportResult(
        len(files) + len(beside), len(places), sum(place.bytes for place in places)
    )


def shard_name(index: int, count: int) -> str:
    """Return the name of one of `count` files, as the reference names them."""
    if count == 1:
        return SINGLE
    return f"model-{index + 1:05}-of-{count:05}.safetensors"


def _beside(job: ExportJob) -> dict[str, bytes]:
    """Return the small files by name: as they came, or made for a model of this network."""
    if job.companions is None:
        made = {"config.json": config_of(job.model), "tokenizer.json": byte_tokenizer()}
        return {
            name: json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
            for name, value in made.items()
        }
    raw = mapped(job.companions).tobytes()
    companions = decode(Companions, raw, MAX_COMPANIONS_BYTES)
    if family_of(companions).architecture != job.model.architecture:
        raise DecodeError("the config.json that came with the model is of another one")
    found = {name: getattr(companions, field) for name, field in FILES.items()}
    return {name: content for name, content in found.items() if content}


def byte_tokenizer() -> dict[str, Any]:
    """Return the tokenizer.json of models made here: a token is a UTF-8 byte."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level | {"use_regex": False},
        "decoder": level | {"use_regex": False},
        "model": {"type": "BPE", "vocab": byte_characters(), "merges": []},
    }


def _places(job: ExportJob, names: Mapping[str, str]) -> Iterator[_Place]:
    """Yield every tensor's place, in the order of the layout, file after file."""
    layout = layout_of(job.model)
    shard = start = 0
    for group, held in zip(layout.groups, job.groups, strict=True):
        dtypes = _dtypes(group, held.tiles)
        for parameter in group.parameters:
            dtype = dtypes[parameter] if job.dtype is None else job.dtype
            shape = layout.parameters[parameter]
            place = _Place(names[parameter], dtype, shape, shard, start)
            if start and start + place.bytes > job.shard_bytes:
                shard, start = shard + 1, 0
                place = replace(place, shard=shard, start=start)
            start += place.bytes
            yield place


def _dtypes(group: Group, paths: Sequence[str]) -> dict[str, Dtype]:
    """Return how each parameter is stored. DecodeError when its tiles do not agree."""
    found: dict[str, Dtype] = {}
    for tile, path in zip(group.tiles, paths, strict=True):
        with open(path, "rb") as file:
            outline = tblock.read_outline(file.fileno())
        if outline.shape != tile.shape or outline.dtype not in _NAMES:
            raise DecodeError(f"{group.name}: a tile is not of the model's layout")
        for piece in tile.pieces:
            if found.setdefault(piece.parameter, outline.dtype) != outline.dtype:
                raise DecodeError(f"{group.name}: tiles of several dtypes; name one")
    return found


class _Shard:
    """One file under way: a context that syncs it at the end."""

    def __init__(self, path: Path, places: Sequence[_Place]) -> None:
        self._file = open(path, "xb", buffering=0)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for place in places:
            header[place.name] = {
                "dtype": _NAMES[place.dtype],
                "shape": list(place.shape),
                "data_offsets": [place.start, place.start + place.bytes],
            }
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._file.write(struct.pack("<Q", len(raw)) + raw)
        self._start = 8 + len(raw)
        self._file.truncate(self._start + sum(place.bytes for place in places))

    def put(self, place: _Place, piece: Piece, block: np.ndarray) -> None:
        """Write a block (rows, columns) of a tensor; a vector has one column."""
        columns = place.shape[1] if len(place.shape) == 2 else 1
        rows = block.reshape(1, -1) if block.shape[1] == columns else block
        for index, row in enumerate(rows):
            at = (piece.row0 + index) * columns + piece.col0
            offset = self._start + place.start + at * block.itemsize
            view = np.ascontiguousarray(row).view(np.uint8).data
            while view:
                count = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[count:], offset + count

    def __enter__(self) -> _Shard:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())


def _put_tile(
    tile: Tile,
    path: str,
    where: Mapping[str, tuple[_Shard, _Place]],
    names: Mapping[str, str],
) -> None:
    array, start = mapped(path), 0
    for piece in tile.pieces:
        shard, place = where[names[piece.parameter]]
        block = array
        if len(tile.shape) == 1:
            stop = start + piece.row1 - piece.row0
            block, start = array[start:stop, None], stop
        shard.put(place, piece, as_dtype(block, place))


def as_dtype(block: np.ndarray, place: _Place) -> np.ndarray:
    """Return stored floats in a tensor's dtype (bf16 as uint16), rounded to nearest even.

    LimitExceeded when a number is too large for it.
    """
    wanted = {Dtype.F32: np.float32, Dtype.F16: np.float16, Dtype.BF16: np.uint16}
    if block.dtype == wanted[place.dtype]:
        return block
    wide = tblock.widened(block)
    if place.dtype is Dtype.BF16:
        bits = np.ascontiguousarray(wide).view(np.uint32)
        half = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        made = ((bits + half) >> np.uint32(16)).astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            made = wide.astype(wanted[place.dtype])
    if not is_finite(made):
        raise LimitExceeded(
            f"tensor {place.name} has numbers that {_NAMES[place.dtype]} cannot hold"
        )
    return made


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
