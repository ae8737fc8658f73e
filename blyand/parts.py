"""Building the parts of a node and handing each what it needs of the others.

Level 3 parts never import one another; here their callables meet. `daemon` runs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from blyan_proto import topics
from blyan_proto.block.block import Block
from blyan_proto.protocols.expert import Numerics
from blyan_proto.signing import SigningKey
from blyan_proto.validators import ValidatorSet
from blyand.chain.orderable import Orderable
from blyand.compute import (
    choose_cache_bytes,
    choose_device,
    choose_memory_bytes,
)
from blyand.errors import NotHere, Pruned
from blyand.events import BlockStored
from blyand.finality.pen import Pen
from blyand.finality.ports import Availability, Chain, Pending
from blyand.finality.voter import Surroundings, Voter
from blyand.foundation import Base
from blyand.hosting import copying, hosting
from blyand.language import Language
from blyand.learning import Carriage, build_carriage, build_learner
from blyand.neighbours import Neighbours
from blyand.protocols import blobs as blobs_ends
from blyand.protocols import cosign as cosign_ends
from blyand.protocols.expert import Client as ExpertClient
from blyand.protocols.fetch import Fetcher
from blyand.protocols.span import Client as SpanClient
from blyand.protocols.uploads import Uploads
from blyand.protocols.votes import Mesh
from blyand.replica import Replica, give_receipt
from blyand.rules.net.uploads import UploadLimits
from blyand.rules.verdict import Reject
from blyand.rules.view import View
from blyand.training.cosign import Cosigner, Ranks
from blyand.training.crew import Crew
from blyand.training.doubting import Doubting
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.judge import Judge
from blyand.training.keeping import Keeping
from blyand.training.learner import Learner
from blyand.training.primary import Primary
from blyand.training.receipting import Receipting
from blyand.training.waiting import Blocks
from blyand.training.watching import Watcher

if TYPE_CHECKING:  # torch is imported when a node is built, not when it is named
    from blyand.inference.hardware import Hardware
    from blyand.inference.replication import Replication
    from blyand.inference.serving import Serving
    from blyand.inference.usage import Usage


@dataclass(frozen=True)
class Seat:
    """How this node signs in a set of validators."""

    key_in: Callable[[ValidatorSet], SigningKey | None]  # its key there
    reveal: Callable[[bytes], bytes]  # key -> next link of its hash chain
    report: Callable[[Any, Any], None]  # what somebody signed twice


@dataclass(frozen=True)
class Models:
    """What this node does with models: hold, serve, learn, aggregate."""

    language: Language
    carriage: Carriage
    holder: Holder
    serving: Serving
    journal: Journal
    primary: Primary
    cosigner: Cosigner
    receipting: Receipting
    doubting: Doubting
    judge: Judge
    learner: Learner
    hardware: Hardware
    replication: Replication


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


def build_models(
    base: Base,
    replica: Replica,
    fetcher: Fetcher,
    experts: ExpertClient,
    spans: SpanClient,
    trainer: Crew,
    language: Language,
) -> Models:
    """Return everything that works with weights."""

    def view() -> View:
        return replica.view

    stores = base.stores

    def whole(id: bytes) -> Block | None:
        """Return a block, None where only its header is here."""
        try:
            return stores.blocks.get(id)
        except Pruned:
            return None

    doubting = Doubting(
        view, replica.pool.__contains__, replica.author.make, base.events
    )
    from blyand.inference.usage import Usage

    near, usage, layers = Neighbours(base, replica), Usage(), hosting(base, view)
    hardware, replication = copying(
        base, view, near, usage, lambda model: holder.held(model)
    )
    carriage = build_carriage(base, replica, fetcher)
    holder = Holder(
        base.key.account,
        Blocks(
            view,
            whole,
            lambda: iter(replica.pool),
            replica.pool.__contains__,
            replica.author.abandon,
        ),
        stores.blobs,
        fetcher,
        carriage.donors.bring,
        base.tile_lane,
        base.events,
        replica.peer_of,
        base.genesis.parameters.liveness_span_ms,
        doubting.note,
        lambda record: layers.groups(record) | replication.chosen(record),
    )
    serving = _serving(base, replica, holder, experts, spans, language, near, usage)
    journal = Journal(
        view,
        base.host.traffic,
        stores.blobs,
        base.tile_lane,
        base.events,
        serving.evaluate,
        fetcher.get,
        base.key.account,
        stores.rounds,
        base.disk_lane,
    )
    keeping = Keeping(view, stores.rounds, base.disk_lane, base.clock)
    cosigner = Cosigner(
        base.key,
        base.genesis.id,
        view,
        base.genesis.parameters.liveness_span_ms,
        holder,
        base.tile_lane,
        stores.intents,
        Ranks(cosign_ends.Client(base.host, base.genesis.id).ask, replica.peer_of),
        base.settled.is_set,
    )
    primary = Primary(
        base.key,
        base.genesis.id,
        view,
        holder,
        stores.blobs,
        base.tile_lane,
        stores.intents,
        cosigner,
        replica.author.make,
        base.events,
        keeping.heard,
        Watcher(view, whole, stores.blobs, base.tile_lane, base.events),
        lambda account: account == base.key.account
        or replica.peer_of(account) in base.meeting.peers,
    )
    receipting = Receipting(
        base.key,
        base.genesis.id,
        view,
        replica.pool.__contains__,
        carriage.donors.bring,
        replica.receipts.of,
        functools.partial(give_receipt, base, replica),
        base.events,
    )
    learner = build_learner(
        base,
        replica,
        carriage,
        holder,
        primary,
        journal,
        keeping,
        whole,
        fetcher,
        trainer,
    )
    judge = Judge(
        base.key_in,
        view,
        stores.blocks.get,
        holder.is_right,
        replica.author.make,
        base.events,
    )
    parts = (journal, primary, cosigner, receipting, doubting, judge, learner)
    return Models(language, carriage, holder, serving, *parts, hardware, replication)


def _serving(
    base: Base,
    replica: Replica,
    holder: Holder,
    experts: ExpertClient,
    spans: SpanClient,
    language: Language,
    near: Neighbours,
    usage: Usage,
) -> Serving:
    from blyand.inference.serving import Allowance, Around, Serving

    def tiles(model: bytes, group: int) -> list[bytes] | None:
        head = holder.head(model, group)
        return [tile.weights for tile in head.tiles] if head else None

    options = base.config.inference
    shared_by = base.config.compute.daemons_on_host
    device = choose_device(base.config.compute.device)
    return Serving(
        base.host.peer_id,
        lambda: replica.view,
        base.stores.blobs,
        base.infer_lane,
        experts,
        Around(spans, near.hosts, near.rtt_ms, near.is_connected),
        near.holders,
        holder.held,
        tiles,
        base.events,
        base.metrics,
        usage,
        language.vocabularies,
        language.grammars,
        Allowance(
            device=device,
            experts_bytes=choose_memory_bytes(options.memory_mib, shared_by, device),
            cache_bytes=choose_cache_bytes(options.cache_mib, shared_by),
            max_requests=options.max_requests,
            slice_bytes=options.slice_mib << 20,
            recipe=options.recipe,
            numerics=Numerics[options.numerics.upper()],
            lookup=options.lookup,
        ),
    )


def wanting(replica: Replica, fetcher: Fetcher) -> Callable[[bytes, bytes], None]:
    """Return what asks for a blob in the background, from an account's node first."""

    def want(blob: bytes, account: bytes) -> None:
        peer = replica.peer_of(account)
        fetcher.want(blob, [peer] if peer else [])

    return want


def build_voter(
    base: Base,
    replica: Replica,
    fetcher: Fetcher,
    mesh: Mesh,
    seat: Seat,
    *,
    is_lost: bool,
) -> Voter:
    """Return the service by which this node agrees with other validators.

    `is_lost`: what it signed in a former life is not known here.
    """
    stores, pool, machine = base.stores, replica.pool, replica.machine
    want = wanting(replica, fetcher)

    orderable = Orderable(
        lambda: replica.view,
        stores.blobs.has,
        want,
        replica.receipts,
        base.genesis.parameters.liveness_span_ms,
    )

    async def changed() -> None:
        with base.events.subscribe(BlockStored, capacity=1) as facts:
            await facts.receive()

    def find(id: bytes) -> Block | None:
        try:
            return pool.get(id) or stores.blocks.get(id)
        except Pruned:
            return None

    async def fetch(peer: str, ids: Sequence[bytes]) -> None:
        got = await replica.follower.swarm.ancestors(peer, ids)
        for one in await replica.intake.submit_many(got, peer):
            if isinstance(one.error, Reject):
                base.blame(peer, one.error)
        if not got:
            raise NotHere(f"{peer} has none of the blocks")

    return Voter(
        Surroundings(
            genesis=base.genesis,
            chain=Chain(
                view=lambda: replica.view,
                clock=lambda: machine.clock,
                last_id=lambda: machine.last_id,
                halted=lambda: machine.halted,
                stored=machine.stored,
                draft=machine.draft,
                check=machine.check,
                take=replica.follower.take,
                peer_is_at=replica.follower.peer_is_at,
                level=replica.follower.level,
            ),
            pending=Pending(
                ready=lambda: pool.ready(
                    replica.is_ordered, orderable.may_order, base.genesis.parameters
                ),
                count=lambda: len(pool),
                changed=changed,
                drop=pool.remove,
                find=find,
                fetch=fetch,
                peers=base.peers,
            ),
            availability=Availability(
                replica.is_ordered,
                orderable.may_order,
                orderable.receipts_for,
                replica.receipts.take,
            ),
            mesh=mesh,
            events=base.events,
            clock=base.clock,
            lane=base.chain_lane,
            metrics=base.metrics,
            random=Random(),
            publish=functools.partial(base.host.gossip.publish, topics.CHECKPOINT),
            report=seat.report,
            reveal=seat.reveal,
        ),
        Pen(
            base.genesis.id, seat.key_in, stores.intents, stores.locks, base.chain_lane
        ),
        stores.intents,
        is_lost=is_lost,
    )
