"""Answers about datasets: add one, list them, show one."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.rpc import data as spec
from blyan_proto.rpc.errors import (
    DATASET_EXISTS,
    DIRECTORY_UNREADABLE,
    INVALID_PARAMS,
    RpcError,
)
from blyan_proto.rpc.parts import Progress
from blyan_tile import jobs
from blyan_tile.corpus import ArchiveResult
from blyand.data import archive
from blyand.errors import ComputeFault, Unavailable
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.ordering import Ordering
from blyand.rpc.publishing import Publishing, check_name, scratch
from blyand.rpc.resolve import dataset_called
from blyand.rules.records import DATASETS, DatasetRecord

MB = 1_000_000
LIBRARY = "stdlib"  # name of the dataset that every machine can make
MAX_LICENSE_BYTES = 512  # blyan_proto.types.Text


def bind(answers: Answers, *, ordering: Ordering, publishing: Publishing) -> None:
    """Bind data.*."""
    under_way: set[str] = set()  # names of datasets that are being added
    blobs, lane = publishing.blobs, publishing.lane

    @answers(spec.add)
    async def add(params: spec.AddDataset, emit: Emit) -> spec.Added:
        await lane.run(check_directory, params.directory)
        name = check_name(name_of(params))
        if len(params.license.encode()) > MAX_LICENSE_BYTES:
            raise RpcError(INVALID_PARAMS, "name the licence, do not quote it")
        names = {record.dataset.name for record in DATASETS.scan(ordering.view)}
        if name in names | under_way:
            raise RpcError(
                DATASET_EXISTS, f"a dataset is called {name!r}; give another --name"
            )
        under_way.add(name)
        try:
            block, made = await _archived(publishing, params, name, emit)
            await emit(Progress("waiting for a checkpoint", 0, 1, "blocks"))
            refused = await ordering.wait(block)
        finally:
            under_way.discard(name)
        if refused is not None:
            raise Unavailable(f"the network refused the dataset: {refused}")
        return added_of(block, name, made)

    @answers(spec.list_)
    async def datasets(params: spec.ListDatasets) -> spec.Datasets:
        records = sorted(
            DATASETS.scan(ordering.view), key=lambda r: ordering.place_of(r.id)
        )
        lines = []
        for record in records:
            local = await lane.run(blobs.has, record.dataset.blob)
            lines.append(line_of(record, local))
        return spec.Datasets(datasets=lines)

    @answers(spec.show)
    async def show(params: spec.GetDataset) -> spec.Dataset:
        record = dataset_called(ordering.view, params.dataset)
        return dataset_of(record, await lane.run(blobs.has, record.dataset.blob))


def check_directory(directory: str | None) -> None:
    """RpcError DIRECTORY_UNREADABLE unless this process may list that folder. Blocking."""
    if directory is None:
        return
    path = Path(directory)
    if not directory or not path.is_absolute() or "\0" in directory:
        why = "is not an absolute path"
    elif not path.exists():
        why = "does not exist on the daemon's machine"
    elif not path.is_dir():
        why = "is not a folder"
    elif not os.access(path, os.R_OK | os.X_OK):
        why = "may not be read by the daemon's user"
    else:
        return
    raise RpcError(DIRECTORY_UNREADABLE, f"{directory!r} {why}")


def name_of(params: spec.AddDataset) -> str:
    """Return the dataset's name: as given, or the folder's, or the library's."""
    if params.name is not None:
        return params.name
    return Path(params.directory).resolve().name if params.directory else LIBRARY


async def _archived(
    publishing: Publishing, params: spec.AddDataset, name: str, emit: Emit
) -> tuple[bytes, ArchiveResult]:
    """Archive and publish; return the block's id and what was written."""
    send, receive = trio.open_memory_channel[Progress](1)

    def report(progress: jobs.Progress) -> None:
        try:
            send.send_nowait(
                Progress(
                    stage="archiving",
                    done=progress.done,
                    total=progress.total or None,
                    unit="KiB",
                )
            )
        except trio.WouldBlock:
            pass  # the reader is slow; the next sign of progress says more

    async def relay() -> None:
        async for item in receive:
            await emit(item)

    failure: Exception | None = None
    async with scratch(publishing) as work, trio.open_nursery() as nursery:
        nursery.start_soon(relay)
        try:
            block, made = await archive.add(
                params.directory or "",
                name,
                params.max_mb * MB,
                publishing.worker,
                publishing.blobs,
                publishing.lane,
                publishing.make,
                work,
                report,
                license=params.license,
            )
        except ProtocolError as error:
            failure = RpcError(DIRECTORY_UNREADABLE, str(error))
        except ComputeFault as error:
            failure = Unavailable(f"no archive was made: {error}")
        finally:
            send.close()
    if failure is not None:
        raise failure
    return block.id, made


def added_of(block: bytes, name: str, made: ArchiveResult) -> spec.Added:
    """Return a dataset that was published as declared."""
    return spec.Added(
        dataset_id=block,
        name=name,
        blob=made.blob,
        files=made.files,
        bytes=made.train_bytes + made.held_out_bytes,
        held_out_files=made.held_out_files,
        held_out_bytes=made.held_out_bytes,
        near_duplicates=made.near_duplicates,
    )


def line_of(record: DatasetRecord, local: bool) -> spec.DatasetLine:
    """Return one dataset of a list as declared."""
    return spec.DatasetLine(
        name=record.dataset.name,
        dataset_id=record.id,
        files=record.dataset.files,
        bytes=record.dataset.bytes,
        tier=record.tier.name.lower(),
        local=local,
    )


def dataset_of(record: DatasetRecord, local: bool) -> spec.Dataset:
    """Return one dataset as declared."""
    dataset = record.dataset
    return spec.Dataset(
        name=dataset.name,
        dataset_id=record.id,
        account=record.author,
        blob=dataset.blob,
        files=dataset.files,
        bytes=dataset.bytes,
        held_out_ppm=dataset.held_out_ppm,
        near_duplicates=dataset.near_duplicates,
        license=dataset.license,
        source=dataset.source,
        tier=record.tier.name.lower(),
        parent=dataset.parent,
        local=local,
    )
