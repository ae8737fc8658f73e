"""Answers to model.import and model.export: checkpoints of safetensors in and out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from math import prod
from pathlib import Path

from blyan_proto.block.model import Dtype
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import ProtocolError
from blyan_proto.rpc import model as spec
from blyan_proto.rpc.errors import (
    CHECKPOINT_INVALID,
    EXPORT_REFUSED,
    MODEL_EXISTS,
    RpcError,
)
from blyan_proto.rpc.parts import Progress
from blyan_tile.layout import Layout
from blyan_tile.model.export_hf import ExportJob, ExportResult, TileFiles
from blyan_tile.model.import_hf import ImportResult
from blyan_tile.tokenizer import MAX_COMPANIONS_BYTES
from blyand.errors import ComputeFault, Unavailable
from blyand.protocols.fetch import Fetcher
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.holders import Holders
from blyand.rpc.model import ordered
from blyand.rpc.ordering import Ordering
from blyand.rpc.publishing import Publishing, check_name
from blyand.rpc.resolve import model_called
from blyand.rules.model.heads import Pinned, Which, pin
from blyand.rules.model.model import layout_for
from blyand.rules.records import MODELS, ModelRecord
from blyand.rules.view import View
from blyand.training import birth, importing

STALE_S = 7 * 86_400.0  # an import that nobody went on with is forgotten


def bind(
    answers: Answers,
    *,
    holders: Holders,
    ordering: Ordering,
    publishing: Publishing,
    fetcher: Fetcher,
) -> None:
    """Bind model.import and model.export."""
    under_way: set[str] = set()  # names of models that are being imported

    @answers(spec.import_)
    async def import_(params: spec.ImportModel, emit: Emit) -> spec.Imported:
        folder = Path(params.directory)
        if not folder.is_absolute() or "\0" in params.directory:
            text = f"{params.directory!r} is not an absolute path"
            raise RpcError(CHECKPOINT_INVALID, text)
        name = check_name(folder.name if params.name is None else params.name)
        work = publishing.work / f"import-{digest(Domain.SEED, name.encode()).hex()}"
        _check_free(ordering.view, name, publishing.chain.account, work.exists())
        if name in under_way:
            raise RpcError(MODEL_EXISTS, f"{name!r} is being imported already")
        under_way.add(name)
        try:
            await publishing.lane.run(_forget_stale, publishing.work, work)
            result = await _cut(publishing, params.directory, work, emit)
            replication = holders.machine.genesis.parameters.replication
            model = importing.model_of(result, name, replication)
            begun = birth.find_begun(model, result.groups, publishing.chain)
            if begun is None and name in _named(ordering.view):
                raise _taken(name)
            born = await birth.publish(
                model, result.groups, begun, publishing.chain, _report(emit)
            )
            await ordered(ordering, born, emit)
        finally:
            under_way.discard(name)
        return imported_of(born, name, result)

    @answers(spec.export)
    async def export(params: spec.ExportModel, emit: Emit) -> spec.Exported:
        record = model_called(ordering.view, params.model)
        await publishing.lane.run(_check_target, params.directory)
        pinned = pin(ordering.view, record.id, Which.ADOPTED)
        if pinned is None:
            raise Unavailable("the model's first weights are not complete yet")
        dtype = None if params.dtype is None else Dtype[params.dtype.upper()]
        if dtype is None and record.adopted_run is not None:
            dtype = Dtype.F32
        async with version_here(pinned, publishing, fetcher, holders, emit):
            job = await publishing.lane.run(
                _job,
                publishing,
                pinned,
                params.directory,
                dtype,
                params.shard_mib << 20,
            )
            wrote = await _written(publishing, job, emit)
        return exported_of(record, params.directory, wrote)


def _check_free(view: View, name: str, account: bytes, was_begun: bool) -> None:
    """RpcError when the name is another model's, as far as can be told before cutting."""
    record = _named(view).get(name)
    if record is not None:
        is_whole = record.weights == record.groups
        if record.creator != account or (is_whole and not was_begun):
            raise _taken(name)


def _named(view: View) -> dict[str, ModelRecord]:
    return {record.model.name: record for record in MODELS.scan(view)}


def _taken(name: str) -> RpcError:
    return RpcError(MODEL_EXISTS, f"a model is called {name!r}; give another --name")


def _forget_stale(folder: Path, mine: Path) -> None:
    """Remove what imports left that nobody went on with."""
    for path in folder.glob("import-*"):
        if path != mine and path.stat().st_mtime < time.time() - STALE_S:
            shutil.rmtree(path, ignore_errors=True)


async def _cut(
    publishing: Publishing, directory: str, work: Path, emit: Emit
) -> ImportResult:
    await emit(Progress("checking the files", 0, None, "groups"))
    try:
        return await importing.cut(
            directory,
            work,
            publishing.worker,
            publishing.blobs,
            publishing.syncs,
            _report(emit),
        )
    except ProtocolError as error:
        await publishing.lane.run(shutil.rmtree, work, True)
        raise RpcError(CHECKPOINT_INVALID, f"{directory}: {error}") from error


def _report(emit: Emit) -> importing.Report:
    async def report(stage: str, done: int, total: int) -> None:
        await emit(Progress(stage, done, total, "groups"))

    return report


def _check_target(directory: str) -> None:
    """RpcError unless a folder can be made there. Blocking."""
    path = Path(directory)
    if not path.is_absolute() or "\0" in directory:
        why = "is not an absolute path"
    elif path.is_symlink() or (path.exists() and not path.is_dir()):
        why = "is there and no folder"
    elif path.is_dir() and any(path.iterdir()):
        why = "is a folder with something in it; name another"
    elif not path.parent.is_dir():
        why = f"cannot be made: there is no {path.parent} on the daemon's machine"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        why = f"cannot be made: the daemon's user may not write in {path.parent}"
    else:
        return
    raise RpcError(EXPORT_REFUSED, f"{directory!r} {why}")


@asynccontextmanager
async def version_here(
    pinned: Pinned,
    publishing: Publishing,
    fetcher: Fetcher,
    holders: Holders,
    emit: Emit,
) -> AsyncIterator[None]:
    """Have all blobs of a version; those that came for this alone go afterwards."""
    layout, blobs, lane = layout_for(pinned.model), publishing.blobs, publishing.lane
    nodes, fetched = holders.of(pinned.id), []
    try:
        for group in layout.groups:
            hints = [holders.peer_id(node) for node in nodes.get(group.index, [])]
            roots = pinned.weights(group.index)
            for tile, root in zip(group.tiles, roots, strict=True):
                if not await lane.run(blobs.has, root):
                    most = 4 * prod(tile.shape)
                    await fetcher.get(root, hints, most_bytes=most, durable=False)
                    fetched.append(root)
            done = group.index + 1
            await emit(Progress("fetching", done, len(layout.groups), "groups"))
        if pinned.model.companions is not None:
            await fetcher.get(pinned.model.companions, most_bytes=MAX_COMPANIONS_BYTES)
        yield
    finally:
        for root in fetched:
            blobs.forget_derived(root)


def _job(
    publishing: Publishing,
    pinned: Pinned,
    directory: str,
    dtype: Dtype | None,
    shard_bytes: int,
) -> ExportJob:
    """Return the worker's job. Blocking. NotHere."""
    path_of, root = publishing.blobs.path, pinned.model.companions

    def files() -> Iterator[TileFiles]:
        for group in range(len(pinned.tiles)):
            yield TileFiles(tuple(str(path_of(r)) for r in pinned.weights(group)))

    return ExportJob(
        directory=directory,
        model=pinned.model,
        groups=tuple(files()),
        companions=None if root is None else str(path_of(root)),
        dtype=dtype,
        shard_bytes=shard_bytes,
    )


async def _written(publishing: Publishing, job: ExportJob, emit: Emit) -> ExportResult:
    await emit(Progress("writing", 0, len(job.groups), "groups"))
    try:
        wrote: ExportResult = await publishing.worker.call(job)
    except ProtocolError as error:
        raise RpcError(EXPORT_REFUSED, f"nothing was exported: {error}") from error
    except ComputeFault as error:
        raise Unavailable(f"nothing was exported: {error}") from error
    await emit(Progress("writing", len(job.groups), len(job.groups), "groups"))
    return wrote


def imported_of(born: birth.Born, name: str, result: ImportResult) -> spec.Imported:
    """Return an import as declared."""
    return spec.Imported(
        model=born.id,
        name=name,
        family=result.family,
        dtype=result.dtype.name.lower(),
        parameters=elements_of(born.layout),
        groups=len(result.groups),
        tiles=sum(len(tiles) for tiles in result.groups),
        bytes=result.bytes,
    )


def elements_of(layout: Layout) -> int:
    """Return how many numbers a model has."""
    return sum(group.elements for group in layout.groups)


def exported_of(
    record: ModelRecord, directory: str, wrote: ExportResult
) -> spec.Exported:
    """Return an export as declared."""
    return spec.Exported(
        model=record.id,
        directory=directory,
        files=wrote.files,
        tensors=wrote.tensors,
        bytes=wrote.bytes,
        round=record.adopted_round,
    )
