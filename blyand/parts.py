"""Building the parts of a node and handing each what it needs of the others.

Level 3 parts never import one another; here their callables meet. `daemon` runs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from blyan_proto import topics
from blyan_proto.block.block import Block
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.providers import expert_key
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role, members
from blyand.chain.author import Author
from blyand.chain.follow import Follower
from blyand.chain.intake import Intake, Sources
from blyand.chain.machine import Machine
from blyand.chain.mending import Givers, Mender
from blyand.chain.pool import Pool, blobs_of
from blyand.chain.swarm import Remote, Swarm
from blyand.clock import Clock
from blyand.compute import Threads, Worker, choose_device, choose_memory_bytes
from blyand.config import Config
from blyand.events import BlockStored, Broadcast
from blyand.finality.beacon import BeaconChain
from blyand.finality.sequencer import Availability, Chain, Sequencer
from blyand.home import Home
from blyand.metrics import Metrics
from blyand.net.calls import Calls
from blyand.net.dht import Directory
from blyand.net.host import Host
from blyand.net.identity import peer_id_of
from blyand.net.peers import PeerBook
from blyand.net.reach import Reachability
from blyand.poison import PoisonBox
from blyand.protocols import blobs as blobs_ends
from blyand.protocols import blocks as blocks_ends
from blyand.protocols import delta as delta_ends
from blyand.protocols import sync as sync_ends
from blyand.protocols.expert import Client as ExpertClient
from blyand.protocols.fetch import Fetcher
from blyand.protocols.meeting import Meeting
from blyand.protocols.uploads import Uploads
from blyand.rules.net.uploads import UploadLimits
from blyand.rules.records import NODES
from blyand.rules.view import View
from blyand.stores import Stores
from blyand.training.delivery import Delivery, Reach
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.learner import Learner
from blyand.training.primary import Primary
from blyand.training.waiting import Blocks

if TYPE_CHECKING:  # torch is imported when a node is built, not when it is named
    from blyand.inference.serving import Serving


@dataclass(frozen=True)
class Base:
    """What every part of one node stands on."""

    home: Home
    config: Config
    genesis: Genesis
    key: SigningKey
    clock: Clock
    events: Broadcast
    poison: PoisonBox
    metrics: Metrics
    stores: Stores
    alarms: dict[int, str]  # by height: what the operator must know
    settled: trio.Event  # nothing is signed before
    host: Host
    calls: Calls
    book: PeerBook
    meeting: Meeting
    reach: Reachability
    directory: Directory
    blame: Callable[[str, Exception], None]
    threads: int  # of one tensor operation
    chain_lane: Threads
    tile_lane: Threads
    disk_lane: Threads
    infer_lane: Threads

    def peers(self) -> list[str]:
        """Return the peers that said hello."""
        return list(self.meeting.peers)

    def archives(self) -> list[str]:
        """Return those of them that prune nothing."""
        met = self.meeting.peers
        return [
            peer
            for peer, met_peer in met.items()
            if met_peer.greeting.roles & Role.ARCHIVE
        ]


@dataclass(frozen=True)
class Ledger:
    """The chain as this node follows it."""

    machine: Machine
    pool: Pool
    intake: Intake
    follower: Follower
    author: Author
    mender: Mender

    @property
    def view(self) -> View:
        return self.machine.view

    def peer_of(self, account: bytes) -> str | None:
        """Return the peer id of a registered account."""
        node = NODES.get(self.view, account)
        return peer_id_of(node.key) if node is not None else None


@dataclass(frozen=True)
class Models:
    """What this node does with models: hold, serve, learn, aggregate."""

    holder: Holder
    serving: Serving
    journal: Journal
    primary: Primary
    learner: Learner


def build_fetcher(base: Base) -> Fetcher:
    """Return what gets blobs from peers."""
    return Fetcher(
        blobs_ends.Client(base.host),
        base.stores.blobs,
        base.disk_lane,
        base.peers,
        base.directory.reach_providers,
        base.directory.known_providers,
        base.metrics,
    )


def build_uploads(base: Base) -> Uploads:
    """Return what bounds the blobs that peers take from this node."""
    net = base.config.net
    limits = UploadLimits(
        net.uploads, net.upload_kib_s << 10, net.upload_peer_kib_s << 10
    )
    return Uploads(limits, base.metrics)


def build_ledger(base: Base) -> Ledger:
    """Return the chain, from the stores and the network."""
    machine = Machine(
        base.genesis,
        base.stores.state,
        base.stores.checkpoints,
        base.chain_lane,
        base.events,
        base.poison,
    )
    client = blocks_ends.Client(base.host)
    remote = Remote(
        peers=base.peers,
        archives=base.archives,
        checkpoints=sync_ends.Client(base.host).fetch,
        blocks=client.get,
        compare=client.compare,
        blame=base.blame,
    )
    swarm = Swarm(remote)
    pool = Pool()
    intake = Intake(
        base.genesis,
        base.stores.blocks,
        base.stores.commit,
        pool,
        base.events,
        base.clock,
        base.chain_lane,
        base.poison,
        Sources(
            swarm.ancestors,
            base.blame,
            lambda account: NODES.get(machine.view, account) is not None,
        ),
    )
    follower = Follower(
        base.genesis,
        machine,
        base.stores.blocks,
        pool,
        intake,
        base.chain_lane,
        remote,
        swarm,
    )
    author = Author(
        base.key,
        machine,
        pool,
        intake,
        base.stores.intents,
        base.clock,
        functools.partial(base.host.gossip.publish, topics.BLOCK),
        base.settled,
    )

    async def finals(peer: str, height: int) -> Sequence[FinalCheckpoint]:
        return (await remote.checkpoints(peer, height)).checkpoints

    mender = Mender(
        base.stores.database,
        base.stores.blocks,
        base.stores.checkpoints,
        base.disk_lane,
        Givers(base.peers, finals, swarm.ancestors, base.blame),
    )
    return Ledger(machine, pool, intake, follower, author, mender)


def build_models(
    base: Base,
    ledger: Ledger,
    fetcher: Fetcher,
    experts: ExpertClient,
    trainer: Worker,
) -> Models:
    """Return everything that works with weights."""

    def view() -> View:
        return ledger.view

    stores = base.stores
    holder = Holder(
        base.key.account,
        Blocks(
            view,
            stores.blocks.get,
            lambda: iter(ledger.pool),
            ledger.pool.__contains__,
            ledger.author.abandon,
        ),
        stores.blobs,
        fetcher,
        base.tile_lane,
        base.events,
        ledger.peer_of,
    )
    serving = _serving(base, ledger, holder, experts)
    journal = Journal(
        view,
        base.host.traffic,
        stores.blobs,
        base.tile_lane,
        base.events,
        serving.evaluate,
        fetcher.get,
        base.key.account,
    )
    primary = Primary(
        base.key,
        base.genesis.id,
        view,
        holder,
        stores.blobs,
        base.tile_lane,
        stores.intents,
        ledger.author.make,
        base.events,
    )
    reach = Reach(
        push=delta_ends.Client(base.host).push,
        take=primary.take,
        peer_of=ledger.peer_of,
        is_connected=lambda peer: peer in base.meeting.peers,
    )
    learner = Learner(
        base.key.account,
        view,
        stores.blocks.get,
        holder,
        stores.blobs,
        trainer,
        Delivery(base.key, base.genesis.id, holder, reach, journal),
        fetcher.get,
        base.events,
        journal,
        base.home.residuals,
        choose_device(base.config.compute.device),
        base.threads,
    )
    return Models(holder, serving, journal, primary, learner)


def _serving(
    base: Base, ledger: Ledger, holder: Holder, experts: ExpertClient
) -> Serving:
    @functools.lru_cache(maxsize=8)
    def heartbeats(checkpoint: bytes) -> list[tuple[str, bytes | None, frozenset[int]]]:
        """Peer, model and groups of every node, decoded once per checkpoint."""
        return [
            (peer_id_of(node.key), node.model, members(node.held))
            for node in NODES.scan(ledger.view)
        ]

    def holders(model: bytes, group: int) -> Iterable[str]:
        """Connected peers whose last heartbeat says that they hold the group.

        Where there is none, the directory is asked for some; a caller tries again.
        """
        connected = base.meeting.peers
        found = [
            peer
            for peer, follows, held in heartbeats(ledger.machine.last_id)
            if peer in connected and follows == model and group in held
        ]
        if not found:
            base.directory.seek(expert_key(model, group))
        return found

    from blyand.inference.serving import Serving

    def tiles(model: bytes, group: int) -> list[bytes] | None:
        head = holder.head(model, group)
        return [tile.weights for tile in head.tiles] if head else None

    config = base.config
    return Serving(
        base.host.peer_id,
        lambda: ledger.view,
        base.stores.blobs,
        base.infer_lane,
        experts,
        holders,
        holder.held,
        tiles,
        base.events,
        base.metrics,
        choose_device(config.compute.device),
        choose_memory_bytes(
            config.inference.memory_mib, config.compute.daemons_on_host
        ),
        config.inference.max_requests,
    )


def wanting(ledger: Ledger, fetcher: Fetcher) -> Callable[[bytes, bytes], None]:
    """Return what asks for a blob in the background, from an account's node first."""

    def want(blob: bytes, account: bytes) -> None:
        peer = ledger.peer_of(account)
        fetcher.want(blob, [peer] if peer else [])

    return want


def build_sequencer(base: Base, ledger: Ledger, fetcher: Fetcher) -> Sequencer:
    """Return the service that orders blocks, for the node that the genesis names."""
    stores, pool = base.stores, ledger.pool

    def is_ordered(id: bytes) -> bool:
        return stores.blocks.outcome(id) is not None

    async def changed() -> None:
        with base.events.subscribe(BlockStored, capacity=1) as facts:
            if not len(pool):
                await facts.receive()

    async def apply(final: FinalCheckpoint, blocks: list[Block]) -> None:
        await ledger.machine.apply(final, blocks)
        for block in blocks:
            pool.remove(block.id)

    return Sequencer(
        base.genesis,
        base.key,
        Chain(
            clock=lambda: ledger.machine.clock,
            ready=functools.partial(pool.ready, is_ordered),
            preview=ledger.machine.preview,
            apply=apply,
            drop=pool.remove,
            changed=changed,
        ),
        Availability(blobs_of, stores.blobs.has, wanting(ledger, fetcher)),
        stores.intents,
        base.clock,
        functools.partial(base.host.gossip.publish, topics.CHECKPOINT),
        BeaconChain(base.key.secret),
        base.chain_lane,
    )
