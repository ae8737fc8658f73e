"""Every declared RPC method gets its answer here, noun by noun."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from blyan_proto.rpc.methods import all_methods
from blyan_tile.corpus import Archive, joined
from blyand.accounting import Accounting, bind_accounting
from blyand.compute import Threads, Worker
from blyand.finality.standing import standing_of
from blyand.finality.voter import Voter
from blyand.foundation import Base
from blyand.hosting import planning
from blyand.http.place import Place
from blyand.newcomer import Newcomer, downloaded
from blyand.participation import Participation, bind_participation, troubles
from blyand.parts import Models
from blyand.protocols.fetch import Fetcher
from blyand.protocols.votes import Mesh
from blyand.replica import Replica
from blyand.rpc import (
    audit,
    backup,
    cache,
    chain,
    checkpoint,
    consensus,
    data,
    expert,
    explorer,
    gate,
    history,
    infer,
    level,
    model,
    net,
    node,
    packing,
    peer,
    pin,
    plan,
    proof,
    prove,
    reward,
    sync,
    tile,
    train,
    usage,
    verify,
)
from blyand.rpc.bind import Answers
from blyand.rpc.carried import Carried
from blyand.rpc.fates import Kept
from blyand.rpc.holders import Holders
from blyand.rpc.ordering import Ordering
from blyand.rpc.origins import Origins
from blyand.rpc.publishing import Publishing
from blyand.rpc.resolve import dataset_called, model_called
from blyand.rpc.rounds import Watching
from blyand.rpc.tally import Tally
from blyand.training import birth
from blyand.training.inspector import Inspector
from blyand.training.proof import Proof
from blyand.upkeep import Upkeep

MOST_STRANGERS = 0.3  # of those that greet, before people are told (GEN-02)


def bind_all(
    base: Base,
    replica: Replica,
    models: Models,
    fetcher: Fetcher,
    importer: Worker,
    upkeep: Upkeep,
    accounting: Accounting,
    newcomer: Newcomer,
    part: Participation,
    inspector: Inspector,
    stop: Callable[[], None],
    roles: tuple[str, ...],
    learns: bool,
    voter: Voter | None,
    mesh: Mesh,
    place: Place,
) -> Answers:
    """Return the answers of one node."""
    answers = Answers(all_methods())
    stores = base.stores
    ordering = Ordering(replica.machine, stores.blocks, base.events)
    holders = Holders(replica.machine, models.holder, base.key.account)
    publishing = Publishing(
        chain=birth.Chain(
            make=replica.author.make,
            make_many=replica.author.make_many,
            pending=lambda: replica.author.pending,
            view=lambda: replica.view,
            account=base.key.account,
        ),
        worker=importer,
        blobs=stores.blobs,
        lane=base.disk_lane,
        syncs=Threads("import", 8),
        work=base.home.work,
    )
    latency_ms = models.serving.routes.latency_ms

    async def held_out(name: str | None) -> tuple[str, np.ndarray]:
        record = dataset_called(replica.view, name)
        await fetcher.get(record.dataset.blob)
        raw = stores.blobs.open_array(record.dataset.blob)
        archive = await base.disk_lane.run(Archive, raw)
        return record.dataset.name, await base.disk_lane.run(joined, archive.held_out)

    def checkpoint_id(height: int) -> bytes:
        final = stores.checkpoints.at(height)
        return final.checkpoint.id if final else base.genesis.id

    node.bind(
        answers,
        config=base.config,
        host=base.host,
        standing=node.Standing(
            machine=replica.machine,
            follower=replica.follower,
            pool=replica.pool,
            meeting=base.meeting,
            holder=models.holder,
            learner=models.learner if learns else None,
            warnings=lambda: [
                *(
                    [newcomer.joiner.told.trouble]
                    if newcomer.joiner.told.trouble
                    else []
                ),
                *_troubles(base, replica, voter),
                *troubles(base, replica, part),
                *stores.warnings,
                *base.alarms.values(),
                *place.warnings(),
            ],
            budget=stores.budget,
            hardware=models.hardware,
            most_copies=models.replication.sight.most_experts,
            home=base.home.path,
            account=base.key.account,
        ),
        roles=roles,
        stop=stop,
        disk_lane=base.disk_lane,
        url=lambda: place.url,
        page=lambda: place.page,
    )
    bind_participation(answers, base, replica, part)
    pin.bind(
        answers,
        pins=stores.pins,
        view=lambda: replica.view,
        blocks=stores.blocks,
        blobs=stores.blobs,
        fetch=fetcher.get,
        unpinned=upkeep.retention.unpinned,
        clock=base.clock,
        lane=base.disk_lane,
    )
    backup.bind(
        answers,
        home=base.home,
        database=stores.database,
        blobs=stores.blobs,
        height=lambda: replica.machine.clock.height,
        lane=base.disk_lane,
    )
    net.bind(
        answers,
        net.Sights(
            host=base.host,
            metrics=base.metrics,
            peers=lambda: len(base.meeting.peers),
            reach=base.reach.told,
            known_peers=lambda: len(base.book.peers()),
            calls=base.calls.in_flight,
            gauges=lambda: {
                "blyan_pending_blocks": len(replica.pool),
                "blyan_arrived_blocks": replica.intake.waiting,
                "blyan_orphan_blocks": replica.intake.orphans,
                "blyan_waiting_writes": stores.commit.waiting,
                "blyan_wanted_blobs": fetcher.wanted,
                "blyan_fetched_blobs": fetcher.under_way,
                "blyan_checkpoints_behind": replica.follower.behind,
                "blyan_finalised_height": replica.machine.clock.height,
            },
            bans=lambda: [
                (
                    one.peer,
                    one.banned_until,
                    one.reasons[-1].error if one.reasons else "",
                )
                for one in base.host.standing.banned()
            ],
        ),
    )
    peer.bind(
        answers,
        host=base.host,
        meeting=base.meeting,
        view=lambda: replica.view,
        known=models.serving.routes.of,
        clock=base.clock,
    )
    tally = Tally(
        stores.blocks, stores.checkpoints, lambda: stores.history.floor.blocks
    )
    chains = chain.ChainView(stores.blocks, stores.checkpoints, replica.pool)
    chain.bind(
        answers,
        machine=replica.machine,
        seen=chains,
        tally=tally,
        lane=base.disk_lane,
    )
    level.bind(
        answers,
        machine=replica.machine,
        follower=replica.follower,
        peers=lambda: len(base.meeting.peers),
    )
    sync.bind(
        answers,
        genesis=base.genesis,
        progress=sync.Progress(
            machine=replica.machine,
            follower=replica.follower,
            joiner=newcomer.joiner,
            backfill=newcomer.backfill,
            records=newcomer.records,
            peers=lambda: base.meeting.peers,
            downloaded_bytes=lambda: sum(downloaded(base).values()),
            blobs=lambda: fetcher.wanted + fetcher.under_way,
        ),
        lane=base.disk_lane,
    )
    explorer.bind(
        answers,
        account=base.key.account,
        machine=replica.machine,
        seen=chains,
        tally=tally,
        blobs=stores.blobs,
        state_entries=lambda: len(stores.state),
        lane=base.disk_lane,
    )
    verify.bind(
        answers,
        genesis=base.genesis,
        seen=chains,
        sets=stores.sets,
        blobs=stores.blobs,
        state_root=stores.checkpoints.stored_state_root,
        has_holes=lambda: replica.mender.has_holes,
        floor=lambda: stores.history.floor.blocks,
        lane=base.disk_lane,
    )
    prove.bind(
        answers,
        genesis=base.genesis,
        account=base.key.account,
        state=stores.state,
        checkpoints=stores.checkpoints,
        lane=base.disk_lane,
    )
    bind_accounting(answers, base, replica, accounting)
    consensus.bind(
        answers,
        machine=replica.machine,
        voter=voter,
        connected=lambda: mesh.open,
        me=base.host.peer_id,
        clock=base.clock,
        lane=base.disk_lane,
    )
    expert.bind(answers, holders=holders, latency_ms=latency_ms)
    cache.bind(answers, models.serving.cache)
    usage.bind(
        answers,
        holders=holders,
        usage=models.serving.usage,
        replication=models.replication,
        lane=base.disk_lane,
    )
    plan.bind(answers, around=planning(base, replica, models), lane=base.disk_lane)
    history.bind(answers, ordering=ordering, blocks=stores.blocks, lane=base.disk_lane)
    model.bind(answers, holders=holders, ordering=ordering, publishing=publishing)
    checkpoint.bind(
        answers,
        holders=holders,
        ordering=ordering,
        publishing=publishing,
        fetcher=fetcher,
    )
    packing.bind(
        answers,
        holders=holders,
        ordering=ordering,
        publishing=publishing,
        fetcher=fetcher,
    )
    data.bind(answers, ordering=ordering, publishing=publishing)
    tile.bind(
        answers,
        ordering=ordering,
        holder=models.holder,
        blocks=stores.blocks,
        blobs=stores.blobs,
        lane=base.disk_lane,
    )
    proof.bind(
        answers,
        ordering=ordering,
        proof=Proof(
            stores.blocks,
            stores.blobs,
            lambda: replica.view,
            fetcher.get,
            base.tile_lane,
        ),
        lane=base.disk_lane,
    )
    infer.bind(
        answers,
        models.serving.generation,
        models.serving.evaluation,
        lambda name: model_called(replica.view, name),
        held_out,
        checkpoint_id,
        base.genesis.setting("token_price_micro"),
    )
    reward.bind(
        answers,
        genesis=base.genesis,
        view=stores.state.freeze,
        account=base.key.account,
        origins=Origins(stores.blocks, stores.checkpoints),
        lane=base.disk_lane,
    )
    gate.bind(answers, ordering=ordering)
    audit.bind(
        answers, account=base.key.account, ordering=ordering, inspector=inspector
    )
    learner = models.learner if learns else None
    carried = Carried(models.carriage.ways, base.host.traffic_by_region)
    train.bind(
        answers,
        account=base.key.account,
        key=base.key.public,
        kept=Kept(stores.blocks, stores.rounds),
        clock=base.clock,
        ordering=ordering,
        make=replica.author.make,
        holder=models.holder,
        learner=learner,
        watching=Watching(
            view=lambda: replica.view,
            journal=models.journal,
            lane=base.disk_lane,
            peers=lambda: len(base.meeting.peers),
            is_paused=lambda: learner is not None and learner.paused,
            doing=lambda: learner.status if learner else "this node does not learn",
            moved=carried.moved,
        ),
        carried=carried,
        liveness_ms=base.genesis.parameters.liveness_span_ms,
    )
    return answers


def _troubles(base: Base, replica: Replica, voter: Voter | None) -> Iterator[str]:
    """Yield what the operator should know of finality and of the disk, as it is now."""
    height = replica.machine.clock.height + 1
    if trouble := standing_of(voter, replica.view, height).trouble:
        yield f"nothing becomes final here: {trouble}"
    if base.stores.database.full:
        yield f"{base.stores.database.full}: nothing new is stored until there is"
    if replica.mender.missing:
        yield (
            f"{replica.mender.missing} were lost with a damaged database; peers are asked "
            "for them"
        )
    strangers, met = base.meeting.strangers, len(base.meeting.peers)
    if strangers > MOST_STRANGERS * (strangers + met):
        yield (
            f"{strangers} of {strangers + met} peers that greeted this node are of another "
            "network and were refused; compare `blyand genesis show` with theirs"
        )
    lost = len(base.stores.blobs.lost)
    if lost:
        yield f"{lost} damaged blobs are removed and not back; the log names them"
