"""Answers about pins: keep something, list what is kept, let go of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from blyan_proto.rpc import pin as spec
from blyan_proto.rpc.errors import (
    BLOB_UNKNOWN,
    BLOCK_UNKNOWN,
    PIN_INVALID,
    PIN_UNKNOWN,
    PINS_FULL,
    RpcError,
)
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.errors import NotHere
from blyand.rpc.bind import Answers
from blyand.rpc.resolve import dataset_called, model_called
from blyand.rpc.tally import kind_name
from blyand.rules.records import DATASETS, MODELS
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.store.pins import MAX_PINS, PinKind, Pins


def bind(
    answers: Answers,
    *,
    pins: Pins,
    view: Callable[[], View],
    blocks: BlockStore,
    blobs: BlobStore,
    fetch: Callable[[bytes], Awaitable[None]],
    unpinned: Callable[[PinKind, bytes], Awaitable[None]],
    clock: Clock,
    lane: Threads,
) -> None:
    """Bind pin.*. `unpinned` lets retention judge what was pinned again."""

    @answers(spec.add)
    async def add(params: spec.AddPin) -> spec.Pin:
        kind, id = resolve(view(), params.kind, params.name)
        if len(pins) >= MAX_PINS and (kind, id) not in pins:
            raise RpcError(PINS_FULL, f"{MAX_PINS} things are pinned already")
        if kind is PinKind.BLOCK and not await lane.run(blocks.is_whole, id):
            raise RpcError(BLOCK_UNKNOWN, await lane.run(why_not_whole, blocks, id))
        before = (kind, id) in pins
        # Pinned first: what is fetched must not go before it is.
        await lane.run(pins.add, kind, id, clock.now_ms())
        try:
            await keep(kind, id)
        except NotHere as error:
            if not before:
                await lane.run(pins.remove, kind, id)
            raise RpcError(BLOB_UNKNOWN, f"{error}; nothing is pinned") from error
        return await lane.run(pin_of, kind, id)

    async def keep(kind: PinKind, id: bytes) -> None:
        """Have what is pinned as a durable blob. NotHere."""
        root = id if kind is PinKind.BLOB else None
        if kind is PinKind.DATASET:
            record = DATASETS.get(view(), id)
            root = record.dataset.blob if record is not None else None
        if root is None:
            return
        await fetch(root)
        if not await lane.run(blobs.is_durable, root):
            array = await lane.run(blobs.open_array, root)
            await lane.run(blobs.put_array, array)

    @answers(spec.list_)
    async def pinned(params: spec.ListPins) -> spec.Pins:
        found = sorted(pins, key=lambda pin: -pin[2])
        return spec.Pins(
            pins=[await lane.run(pin_of, kind, id) for kind, id, _ in found]
        )

    @answers(spec.remove)
    async def remove(params: spec.RemovePin) -> spec.Unpinned:
        kind, id = resolve(view(), params.kind, params.name)
        if not await lane.run(pins.remove, kind, id):
            text = f"{params.kind} {params.name} is not pinned; see `blyanctl pin list`"
            raise RpcError(PIN_UNKNOWN, text)
        await unpinned(kind, id)
        return spec.Unpinned(kind=params.kind, id=id)

    def pin_of(kind: PinKind, id: bytes) -> spec.Pin:
        name, size = "", None
        if kind is PinKind.MODEL:
            model = MODELS.get(view(), id)
            name = model.model.name if model else ""
        elif kind is PinKind.DATASET:
            dataset = DATASETS.get(view(), id)
            name = dataset.dataset.name if dataset else ""
            size = dataset.dataset.bytes if dataset else None
        elif kind is PinKind.BLOCK:
            signed = blocks.signed_header(id)
            name = kind_name(signed.header) if signed else ""
            size = signed.header.payload_bytes if signed else None
        else:
            size = blobs.bytes_of(id)
        return spec.Pin(
            kind=kind.name.lower(),
            id=id,
            name=name,
            bytes=size,
            time_ms=pins.since(kind, id),
        )


def resolve(view: View, kind: str, name: str) -> tuple[PinKind, bytes]:
    """Return what a caller means. RpcError says why there is no such thing."""
    wanted = PinKind[kind.upper()]
    if wanted is PinKind.MODEL:
        return wanted, model_called(view, name).id
    if wanted is PinKind.DATASET:
        return wanted, dataset_called(view, name).id
    try:
        id = bytes.fromhex(name)
    except ValueError:
        id = b""
    if len(id) != 32:
        what = "root of a blob" if wanted is PinKind.BLOB else "id of a block"
        raise RpcError(PIN_INVALID, f"{name[:80]!r} is not the {what}: 64 hex digits")
    return wanted, id


def why_not_whole(blocks: BlockStore, id: bytes) -> str:
    """Say why a block cannot be pinned. Blocking."""
    if not blocks.has(id):
        return f"block {id.hex()} is not here"
    return (
        f"the payload of block {id.hex()} is no longer kept here; a node with the role "
        "archive may have it"
    )
