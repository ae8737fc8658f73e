"""Executed state: every record, its table, its key. Integers only.

A table is a key prefix and a record type. Keys are the prefix and fixed-width parts, so
that a scan gives records in order. docs/store-schema.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Generic, TypeVar

from blyan_proto.block.data import Dataset, Tier
from blyan_proto.block.economy import Hardware
from blyan_proto.block.model import Model, Run, TileRootsList
from blyan_proto.codec import U8, U16, U32, U64, Size, decode, encode, message
from blyan_proto.constants import MAX_PARENTS, MIB
from blyan_proto.types import Account, Bitmap, BlockId, Hash, PublicKey
from blyand.rules.view import Overlay, View

T = TypeVar("T")

MAX_RECORD_BYTES = 16 * MIB  # a schedule of 1024 seats with the longest bitmaps has 9


class Table(Generic[T]):
    """One kind of record under one prefix."""

    def __init__(self, prefix: bytes, record: type[T]) -> None:
        self._prefix = prefix + b"/"
        self._record = record
        # The same bytes are read again and again, and never change.
        self._decoded = lru_cache(maxsize=2048)(self._decode)

    def get(self, view: View, *parts: bytes | int) -> T | None:
        raw = view.get(self._key(parts))
        return None if raw is None else self._decoded(raw)

    def put(self, view: Overlay, record: T, *parts: bytes | int) -> None:
        view.put(self._key(parts), encode(record))

    def remove(self, view: Overlay, *parts: bytes | int) -> None:
        view.put(self._key(parts), None)

    def scan(self, view: View, *parts: bytes | int) -> Iterator[T]:
        """Yield records in key order; `parts` narrows the scan to a leading part."""
        for _, raw in view.scan(self._key(parts)):
            yield self._decoded(raw)

    def _decode(self, raw: bytes) -> T:
        return decode(self._record, raw, MAX_RECORD_BYTES)

    def _key(self, parts: tuple[bytes | int, ...]) -> bytes:
        return self._prefix + b"".join(
            part.to_bytes(8, "big") if isinstance(part, int) else part for part in parts
        )


@message
class Balance:
    """An account's money and current key."""

    account: Account
    key: PublicKey | None  # none: only ever received
    micro: U64
    bonded_micro: U64


@message
class Used:
    """The highest sequence that an account has spent on one chain."""

    sequence: U64


@message
class Node:
    """A registered participant."""

    account: Account
    key: PublicKey
    roles: U8
    region: Annotated[str, Size(0, 32)]
    hardware: Hardware
    registered_height: U64
    heartbeat_ms: U64  # median chain time of its last heartbeat
    model: BlockId | None
    held: Bitmap


@message
class ModelRecord:
    """A model on the chain."""

    id: BlockId
    model: Model
    creator: Account
    groups: U16
    weights: U16  # groups that have their first version
    adopted_round: U32  # rounds of training behind the adopted heads
    adopted_height: U64
    heads_root: Hash | None  # of the adopted heads; none until all weights are there
    run: BlockId | None  # the open run
    adopted_run: BlockId | None = None  # whose rounds `adopted_round` counts


@message
class Group:
    """Both heads of one group (DEC-B8)."""

    model: BlockId
    group: U16
    head: BlockId  # the weights or update block of the trained head
    run: BlockId | None  # the run of the trained head
    rounds: U32  # rounds of that run behind the trained head
    tiles: TileRootsList
    adopted: TileRootsList
    adopted_head: BlockId
    snapshot: BlockId  # the block whose version holders keep durable
    earlier_snapshot: BlockId | None = None  # the one before it, kept too (DEC-B9)


@message
class Version:
    """One group's state after one round, kept a while for adoption and joiners."""

    update: BlockId
    tiles: TileRootsList


@message
class RunRecord:
    """A training run and how far it is."""

    id: BlockId
    run: Run
    author: Account
    closed: U32  # rounds whose every group is finalised
    counts: Annotated[tuple[U16, ...], Size(0, 300)]  # groups done in round closed + i
    finished: bool
    stuck_ms: U64 = (
        0  # median time since when nobody alive can move it; 0: somebody can
    )


@message
class Seat:
    """A live node as a round sees it."""

    account: Account
    key: PublicKey
    roles: U8
    weight: U8  # 1…64, for the draw
    held: Bitmap


@message
class Schedule:
    """Everything that the nodes of one round read (DEC-A6): fixed when it is written."""

    run: BlockId
    round: U32
    epoch: U32  # lease epoch: the height of the checkpoint that wrote it
    beacon: Hash
    seats: Annotated[tuple[Seat, ...], Size(0, 1024)]


@message
class DatasetRecord:
    """A dataset on the chain."""

    id: BlockId
    dataset: Dataset
    author: Account
    tier: Tier


@message
class Clock:
    """Where the chain stands: height, median time, the last three beacons."""

    height: U64
    time_ms: U64
    beacons: Annotated[tuple[Hash, ...], Size(1, 3)]  # newest last
    revealed: Hash  # the sequencer's last preimage; at first its tail (DEC-A7)


@message
class Tip:
    """An ordered block without an ordered child."""

    block: BlockId
    height: U64


@message
class Tips:
    """The highest tips of one chain, from which new blocks take their parents."""

    tips: Annotated[tuple[Tip, ...], Size(0, MAX_PARENTS)]  # (height, id) descending


CLOCK = Table(b"clock", Clock)
TIPS = Table(b"tips", Tips)  # chain
BALANCES = Table(b"balance", Balance)  # account
USED = Table(b"used", Used)  # account, chain
NODES = Table(b"node", Node)  # account
MODELS = Table(b"model", ModelRecord)  # model id
GROUPS = Table(b"group", Group)  # model id, group
VERSIONS = Table(b"version", Version)  # run id, round, group
RUNS = Table(b"run", RunRecord)  # run id
SCHEDULES = Table(b"schedule", Schedule)  # run id, round
DATASETS = Table(b"dataset", DatasetRecord)  # dataset id
