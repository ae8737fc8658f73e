"""Executed state: the records that several systems read. Integers only.

What one system alone writes and reads stands beside its rules. docs/store-schema.md
lists all tables.
"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.block.data import Dataset, Tier
from blyan_proto.block.economy import Hardware
from blyan_proto.block.model import Model, Run, TileRootsList
from blyan_proto.codec import U8, U16, U32, U64, Size, message
from blyan_proto.constants import MAX_CONTRIBUTIONS, MAX_PARENTS, PPM, RANKS
from blyan_proto.types import Account, Bitmap, BlockId, Hash, PublicKey
from blyand.rules.table import Table


@message
class Used:
    """The highest sequence that an account has spent on one chain."""

    sequence: U64


@message
class Node:
    """A registered participant."""

    account: Account
    key: PublicKey  # the account's current one
    roles: U8
    region: Annotated[str, Size(0, 32)]
    hardware: Hardware
    registered_height: U64
    heartbeat_ms: U64  # median chain time of its last heartbeat
    model: BlockId | None
    held: Bitmap
    beacon_tail: Hash | None = None  # of its hash chain, to validate with
    tail_height: U64 = 0  # since when
    tails: U32 = 0  # how often it was replaced: the number of the chain in use
    reported_ms: U64 = 0  # when it last reported latencies
    passed: U32 = (
        0  # adopted rounds that list a delta of it, until it is known (DEC-B10)
    )


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
    moved_ms: U64 = 0  # chain time at which the trained head came to be
    median: U64 = 0  # running median norm of the run's deltas (DEC-B15); 0: none yet
    updates: U32 = 0  # since the snapshot
    delta_bytes: U64 = 0  # that they list


@message
class Version:
    """One group's state after one round, kept a while for adoption, joiners, disputes."""

    update: BlockId
    tiles: TileRootsList
    parent: BlockId  # the block that made the base
    base: TileRootsList
    signers: Annotated[
        tuple[Account, ...], Size(0, RANKS)
    ]  # author first; none: voided
    is_single: bool = False  # nobody but its author recomputed it (DEC-A5)
    median: U64 = 0  # the group's running median norm before it
    # Whose deltas it lists; of group 0 alone, which everybody trains.
    learners: Annotated[tuple[Account, ...], Size(0, MAX_CONTRIBUTIONS)] = ()
    delta_bytes: U64 = 0  # that the update lists


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
    newcomer_share_ppm: U32 = PPM  # most summed weight of new learners (DEC-B10)


@message
class Seat:
    """A live node as a round sees it."""

    account: Account
    key: PublicKey
    roles: U8
    weight: U8  # up to 64, for the draw; 0: it contributes and does not lead
    held: Bitmap
    is_new: bool = False  # weighs within the newcomers' share (DEC-B10)


@message
class Schedule:
    """Everything that the nodes of one round read (DEC-A6): fixed when it is written."""

    run: BlockId
    round: U32
    epoch: U32  # lease epoch: the height of the checkpoint that wrote it
    beacon: Hash
    seats: Annotated[tuple[Seat, ...], Size(0, 1024)]
    opened_ms: U64 = 0  # chain time at which it was written


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


@message
class Tip:
    """An ordered block without an ordered child."""

    block: BlockId
    height: U64


@message
class Tips:
    """The highest tips of one chain, from which new blocks take their parents."""

    tips: Annotated[tuple[Tip, ...], Size(0, MAX_PARENTS)]  # (height, id) descending


VERSIONS_KEPT = 8  # rounds behind a run's front whose group versions state remembers

CLOCK = Table(b"clock", Clock)
TIPS = Table(b"tips", Tips)  # chain
USED = Table(b"used", Used)  # account, chain
NODES = Table(b"node", Node)  # account
MODELS = Table(b"model", ModelRecord)  # model id
GROUPS = Table(b"group", Group, walked=True)  # model id, group
VERSIONS = Table(b"version", Version)  # run id, round, group
RUNS = Table(b"run", RunRecord)  # run id
SCHEDULES = Table(b"schedule", Schedule)  # run id, round
DATASETS = Table(b"dataset", DatasetRecord)  # dataset id
