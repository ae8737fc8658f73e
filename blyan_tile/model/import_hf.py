"""A foreign checkpoint becomes the tiles of a model: the job of a worker process.

Strategy. Everything that can be said from headers alone is checked first: options,
names, shapes, dtypes. Then group by group, tile by tile: read, checked for NaN, written
as a TBLOCK file named by its root; never more than one tile is in memory. A tile keeps
the dtype of its tensor, byte for byte (DEC-B2). A journal in the import's own folder says
which groups the daemon has taken over, so that an import that was killed goes on there.
docs/models.md, "Import".
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np

from blyan_proto.block.model import (
    Architecture,
    Dtype,
    TileRoots,
    TileRootsList,
)
from blyan_proto.codec import U64, Size, decode, encode, message
from blyan_proto.constants import MAX_GROUPS
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import DecodeError
from blyan_proto.types import BlobId, Name
from blyan_tile import tblock
from blyan_tile.checkpoint import (
    KEPT,
    Checkpoint,
    Tensor,
    is_finite,
    open_checkpoint,
    shown,
)
from blyan_tile.create import write_tile
from blyan_tile.jobs import Progress
from blyan_tile.layout import Group, Layout, Piece, cut, laid_out
from blyan_tile.model.families import (
    Family,
    is_surplus,
    read_config,
    tensor_names,
)
from blyan_tile.tokenizer import (
    FILES,
    MAX_TOKENIZER_BYTES,
    Companions,
    companions_of,
)

MAX_ROOTS_BYTES = 65_536  # of one group in the journal
HEAD = "lm_head.weight"
MAX_NAMED = 3  # tensors in a sentence


@message
class ImportJob:
    """Cut a folder of safetensors into the tiles of a model."""

    directory: Annotated[str, Size(1, 4096)]
    work: Annotated[str, Size(1, 4096)]  # this import's own folder: tiles and journal


@message
class GroupRoots:
    """One group in the journal."""

    tiles: TileRootsList


@message
class ImportResult:
    """What the folder holds. Tiles are in `work`, or were taken over before."""

    family: Name
    architecture: Architecture
    dtype: Dtype  # of most elements
    companions: BlobId  # likewise a file in `work`
    groups: Annotated[tuple[TileRootsList, ...], Size(1, MAX_GROUPS)]
    bytes: U64  # of all tensors as stored


class Journal:
    """Which groups of an import are cut, and which of them the daemon has taken over.

    The files of one fingerprint only: the folder is emptied when the checkpoint changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, fingerprint: bytes) -> None:
        """Start over, unless the folder is the journal of the same checkpoint."""
        mark = self._folder / "checkpoint"
        if not mark.exists() or mark.read_bytes() != fingerprint:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(mode=0o700, parents=True)
            _put(mark, fingerprint)

    def note(self, group: int, tiles: TileRootsList) -> None:
        """Note that a group's tiles lie in the folder."""
        _put(self._folder / f"{group}.cut", encode(GroupRoots(tiles)))

    def noted(self, group: int) -> TileRootsList:
        """Return the tiles of a group that was noted. OSError, DecodeError."""
        raw = (self._folder / f"{group}.cut").read_bytes()
        return decode(GroupRoots, raw, MAX_ROOTS_BYTES).tiles

    def taken(self, group: int) -> None:
        """The daemon: the group's tiles are durable blobs now."""
        folder = self._folder
        os.replace(folder / f"{group}.cut", folder / f"{group}.taken")

    def lost(self, group: int) -> None:
        """The daemon: some of the group's tiles are blobs no longer."""
        (self._folder / f"{group}.taken").unlink(missing_ok=True)

    def is_taken(self, group: Group) -> TileRootsList | None:
        """Return the tiles of a group that need not be cut again."""
        try:
            raw = (self._folder / f"{group.index}.taken").read_bytes()
            tiles = decode(GroupRoots, raw, MAX_ROOTS_BYTES).tiles
        except (OSError, DecodeError):
            return None
        return tiles if len(tiles) == len(group.tiles) else None


def import_checkpoint(
    job: ImportJob, report: Callable[[Progress], None]
) -> ImportResult:
    """Run the job. ProtocolError names file and tensor; OSError where tiles go."""
    with open_checkpoint(job.directory) as checkpoint:
        companions = companions_in(checkpoint)
        family = family_of(companions)
        _check_tokenizer(companions, family.architecture.vocabulary)
        checkpoint.find_tensors()
        names = tensor_names(family)
        layout = laid_out(family.architecture)
        check_tensors(checkpoint, layout, names, partial(is_surplus, family))
        if family.architecture.tied_embeddings and HEAD in checkpoint.tensors:
            _check_tied(checkpoint, names["embed.weight"])
        work = Path(job.work)
        journal = Journal(work)
        raw = encode(companions)
        journal.begin(digest(Domain.SEED, checkpoint.fingerprint, raw))
        root = write_tile(work, tblock.bytes_array(raw))
        groups = []
        for group in layout.groups:
            tiles = journal.is_taken(group)
            if tiles is None:
                tiles = _cut_group(checkpoint, group, names, work)
                journal.note(group.index, tiles)
            groups.append(tiles)
            report(Progress(group.index + 1, len(layout.groups), group.name))
    used = [checkpoint.tensors[name] for name in names.values()]
    return ImportResult(
        family=family.name,
        architecture=family.architecture,
        dtype=_most(used),
        companions=root,
        groups=tuple(groups),
        bytes=sum(tensor.bytes for tensor in used),
    )


def companions_in(checkpoint: Checkpoint) -> Companions:
    """Return the files that stand beside the weights. DecodeError, LimitExceeded."""
    found = {name: checkpoint.small(name, MAX_TOKENIZER_BYTES) for name in FILES}
    return companions_of({name: raw for name, raw in found.items() if raw is not None})


def family_of(companions: Companions) -> Family:
    """Return what config.json says. DecodeError names what is not understood."""
    if not companions.config_json:
        raise DecodeError("there is no config.json in the folder")
    try:
        config = json.loads(companions.config_json.decode())
    except (ValueError, RecursionError):
        raise DecodeError("config.json is not JSON") from None
    if not isinstance(config, Mapping):
        raise DecodeError("config.json is not a JSON object")
    return read_config(config)


def _check_tokenizer(companions: Companions, vocabulary: int) -> None:
    from blyan_tile.vocabulary import check  # with the tokenizer library

    if not companions.tokenizer_json:
        raise DecodeError("there is no tokenizer.json in the folder")
    check(companions, vocabulary)


def check_tensors(
    checkpoint: Checkpoint,
    layout: Layout,
    names: Mapping[str, str],
    is_surplus: Callable[[str], bool],
) -> None:
    """DecodeError unless the files hold exactly the layout's tensors, as it has them.

    `is_surplus(name)`: the family's checkpoints may have it, and it says nothing.
    """
    tensors = checkpoint.tensors
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise DecodeError(f"the files have no tensor {_some(missing)}")
    surplus = sorted(
        name for name in tensors.keys() - set(names.values()) if not is_surplus(name)
    )
    if surplus:
        file = tensors[surplus[0]].file
        raise DecodeError(
            f"{file}: config.json leaves no place for tensor {_some(surplus)}"
        )
    for parameter, shape in layout.parameters.items():
        name = names[parameter]
        tensor = tensors[name]
        if tensor.shape != shape:
            raise DecodeError(
                f"{tensor.file}: tensor {shown(name)} has shape {list(tensor.shape)}, "
                f"but config.json makes it {list(shape)}"
            )
        if tensor.dtype not in KEPT:
            raise DecodeError(
                f"{tensor.file}: tensor {shown(name)} is {tensor.dtype}; only "
                f"{', '.join(KEPT)} are imported"
            )
    for group in layout.groups:
        for tile in group.tiles:
            _check_one_dtype([names[piece.parameter] for piece in tile.pieces], tensors)


def _check_tied(checkpoint: Checkpoint, embedding: str) -> None:
    """The reference does not tie a head that differs, so neither may we drop it."""
    head, embed = checkpoint.tensors[HEAD], checkpoint.tensors[embedding]
    same = (head.dtype, head.shape) == (embed.dtype, embed.shape)
    for row in range(embed.shape[0]) if same else ():
        block = (row, row + 1, 0, embed.shape[1])
        if (
            checkpoint.block(HEAD, *block) != checkpoint.block(embedding, *block)
        ).any():
            same = False
            break
    if not same:
        raise DecodeError(
            f"{head.file}: tensor {shown(HEAD)} is not {shown(embedding)}, though "
            "config.json says tie_word_embeddings"
        )


def _check_one_dtype(shared: list[str], tensors: Mapping[str, Tensor]) -> None:
    """A tile has one dtype, so what shares it cannot be kept as it is unless it agrees."""
    first = tensors[shared[0]]
    for name in shared[1:]:
        other = tensors[name]
        if other.dtype != first.dtype:
            raise DecodeError(
                f"{other.file}: tensor {shown(name)} is {other.dtype} and "
                f"{shown(shared[0])} {first.dtype}; vectors of a layer are kept in one "
                "tile, so they must agree"
            )


def _some(names: list[str]) -> str:
    first = ", ".join(shown(name) for name in names[:MAX_NAMED])
    more = len(names) - MAX_NAMED
    return f"{first} and {more} more" if more > 0 else first


def _most(tensors: list[Tensor]) -> Dtype:
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.dtype] += prod(tensor.shape)
    ((dtype, _),) = elements.most_common(1)
    return KEPT[dtype]


def _cut_group(
    checkpoint: Checkpoint, group: Group, names: Mapping[str, str], work: Path
) -> TileRootsList:
    def take(piece: Piece) -> np.ndarray:
        name = names[piece.parameter]
        block = checkpoint.block(name, piece.row0, piece.row1, piece.col0, piece.col1)
        if not is_finite(block):
            file = checkpoint.tensors[name].file
            raise DecodeError(f"{file}: tensor {shown(name)} has NaN or infinity in it")
        is_vector = len(checkpoint.tensors[name].shape) == 1
        return block[:, 0] if is_vector else block

    return tuple(
        TileRoots(write_tile(work, cut(tile, take)), None) for tile in group.tiles
    )


def _put(path: Path, raw: bytes) -> None:
    partial = path.with_suffix(".new")
    partial.write_bytes(raw)
    os.replace(partial, path)
