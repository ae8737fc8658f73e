"""Answers model.pack: the adopted weights of a model in one file."""

from __future__ import annotations

import os
from pathlib import Path

from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_proto.rpc import packing as spec
from blyan_proto.rpc.errors import EXPORT_REFUSED, RpcError
from blyan_proto.rpc.parts import Progress
from blyan_tile.learner import GroupFiles
from blyan_tile.packed import PackedIndex, PackJob, PackResult
from blyan_tile.tokenizer import BYTES
from blyand.errors import ComputeFault, Unavailable
from blyand.protocols.fetch import Fetcher
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.checkpoint import version_here
from blyand.rpc.holders import Holders
from blyand.rpc.ordering import Ordering
from blyand.rpc.publishing import Publishing
from blyand.rpc.resolve import model_called
from blyand.rules.model.heads import Pinned, Which, pin
from blyand.rules.records import ModelRecord
from blyand.store.blobs import BlobStore


def bind(
    answers: Answers,
    *,
    holders: Holders,
    ordering: Ordering,
    publishing: Publishing,
    fetcher: Fetcher,
) -> None:
    """Bind model.pack."""

    @answers(spec.pack)
    async def pack(params: spec.PackModel, emit: Emit) -> spec.PackedModel:
        record = model_called(ordering.view, params.model)
        if record.model.tokenizer != BYTES:
            text = "it does not read bytes; `model export` writes it with its tokenizer"
            raise RpcError(EXPORT_REFUSED, text)
        await publishing.lane.run(_check_target, params.file)
        pinned = pin(ordering.view, record.id, Which.ADOPTED)
        if pinned is None:
            raise Unavailable("the model's first weights are not complete yet")
        index = index_of(record, pinned, holders.machine.genesis.id)
        async with version_here(pinned, publishing, fetcher, holders, emit):
            job = PackJob(index, files_of(pinned, publishing.blobs), params.file)
            await emit(Progress("writing", 0, len(job.groups), "groups"))
            wrote = await _written(publishing, job)
            await emit(Progress("writing", len(job.groups), len(job.groups), "groups"))
        return spec.PackedModel(
            model=record.id,
            file=params.file,
            bytes=wrote.bytes,
            root=wrote.root,
            run=index.run,
            round=index.round,
        )


def index_of(record: ModelRecord, pinned: Pinned, network: bytes) -> PackedIndex:
    """Return the head of the file: whose weights they are, and which."""
    return PackedIndex(
        version=FORMAT_VERSION,
        name=record.model.name,
        architecture=record.model.architecture,
        network=network,
        model=record.id,
        run=record.adopted_run,
        round=record.adopted_round,
        groups=tuple(pinned.root(group) for group in range(len(pinned.tiles))),
    )


def files_of(pinned: Pinned, blobs: BlobStore) -> tuple[GroupFiles, ...]:
    """Return where the tiles of a version lie."""
    return tuple(
        GroupFiles(
            group, tuple(str(blobs.path(root)) for root in pinned.weights(group))
        )
        for group in range(len(pinned.tiles))
    )


def _check_target(file: str) -> None:
    """RpcError unless a file can be made there. Blocking."""
    path = Path(file)
    if not path.is_absolute() or "\0" in file:
        why = "is not an absolute path"
    elif path.is_symlink() or path.exists():
        why = "is there already; name another file"
    elif not path.parent.is_dir():
        why = f"cannot be made: there is no {path.parent} on the daemon's machine"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        why = f"cannot be made: the daemon's user may not write in {path.parent}"
    else:
        return
    raise RpcError(EXPORT_REFUSED, f"{file!r} {why}")


async def _written(publishing: Publishing, job: PackJob) -> PackResult:
    try:
        wrote: PackResult = await publishing.worker.call(job)
    except ProtocolError as error:
        raise RpcError(EXPORT_REFUSED, f"nothing was packed: {error}") from error
    except ComputeFault as error:
        raise Unavailable(f"nothing was packed: {error}") from error
    return wrote
