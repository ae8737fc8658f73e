"""Methods about coming to the state of the network, and to its history."""

from __future__ import annotations

from blyan_proto.rpc.errors import NO_CHECKPOINT
from blyan_proto.rpc.records import arg, record
from blyan_proto.rpc.spec import Method, declare
from blyan_proto.rpc.values import Id, Key


@record
class GetSync:
    """How this node joined, or is joining, and how far back its history goes."""


@record
class SyncStatus:
    """Joining by a state, and filling in the history behind it."""

    phase: str = arg(
        "waiting for a peer, looking for a checkpoint, fetching the state, taking the "
        "state over, following"
    )
    trouble: str | None = arg("what keeps this node from going on, and what to do")
    checkpoint: int = arg("height of the newest checkpoint applied")
    known: int = arg("height that the network is known to have")
    joined_at: int = arg(
        "height of the checkpoint whose state came from peers; 0: none"
    )
    target: int = arg("height of the checkpoint that is being joined; 0: none")
    chunks: int = arg("of 256 pieces of its state, those that are here and checked")
    state_bytes: int = arg("keys and values of the state that came")
    blobs: int = arg("blobs that are being fetched or wanted")
    history_from: int = arg("height from which on every checkpoint is here; 1: all are")
    blocks_from: int = arg(
        "height from which on every ordered block is here; 1: all are"
    )
    backfilled_blocks: int = arg("blocks of the history fetched since the start")
    backfill_left_s: float | None = arg(
        "time that the rest of the history may take; null while unknown"
    )
    backfill_trouble: str | None = arg("why the history does not go on")
    downloaded_bytes: int = arg(
        "bytes received since the start for states, checkpoints, blocks and blobs, as "
        "the transport counts them"
    )
    sync_time_s: float | None = arg("how long joining took; null: not done, or no need")
    peers: int = arg("peers connected and greeted")


status = declare(Method("sync.status", GetSync, SyncStatus, public=True))


@record
class WatchSync:
    """Wait until this node has joined; with --history, until its history is whole."""

    history: bool = arg("wait for the history, too", default=False)


watch = declare(
    Method("sync.watch", WatchSync, SyncStatus, streams=SyncStatus, deadline_s=None)
)


@record
class GetPin:
    """The newest final checkpoint, as `blyand run --checkpoint` takes it."""


@record
class CheckpointPin:
    """What to hand over to somebody who trusts you."""

    checkpoint: str = arg("HEIGHT:HASH")
    height: int = arg("its height")
    id: Id = arg("its id")
    time_ms: int = arg("its chain time, Unix milliseconds")
    trusted_until_ms: int = arg("when it is too old to join by")
    network: Id = arg("id of the genesis")
    validators_root: Id = arg("root of the set that signed it")
    signers: list[Key] = arg("validators whose votes finalised it")
    weight: int = arg("their weight")
    total_weight: int = arg("weight of the set")


checkpoint = declare(
    Method(
        "sync.checkpoint",
        GetPin,
        CheckpointPin,
        errors=(NO_CHECKPOINT,),
        public=True,
    )
)


@record
class ListProviders:
    """The peers that this node joined by, or could."""


@record
class Provider:
    """One peer and what it gave or claims."""

    peer: str = arg("peer id")
    finalised: int = arg("height that it said it is at when it greeted")
    archive: bool = arg("it prunes nothing")
    chunks: int = arg("pieces of the state that it gave")
    refused: str | None = arg("why nothing is taken from it any more")


@record
class Providers:
    """Peers, those that gave most first."""

    providers: list[Provider] = arg("by chunks given")


providers = declare(Method("sync.providers", ListProviders, Providers, public=True))
