"""The composition root: opens resources, builds the parts, runs the services.

#~ A tour of the source: `__main__` reads the arguments, this file opens everything in
#~ order, `parts` wires it, `supervise` runs it, `net/gossip` and `chain/intake` take
#~ foreign blocks in, `finality/voter` agrees on their order, `chain/machine` executes them.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import trio

from blyan_proto import topics
from blyan_proto.types import Role
from blyan_tile.aggregate import check_arithmetic
from blyand import gateway
from blyand import genesis as genesis_file
from blyand import participation, settling
from blyand.accounting import build_accounting
from blyand.auditing import build_inspector
from blyand.bindings import bind_all
from blyand.clock import SystemClock
from blyand.compute import (
    Threads,
    choose_threads,
    open_worker,
    training_devices,
)
from blyand.config import Config
from blyand.data.custody import Custody
from blyand.diary import diary_of, open_diary
from blyand.directory import build_directory, holdings
from blyand.endpoints import serve_streams
from blyand.errors import ComputeFault, Unavailable
from blyand.events import Broadcast
from blyand.foundation import Base
from blyand.gatekeeping import gatekeeping
from blyand.guard.forks import Forks
from blyand.home import Home, read_or_none, replace_file
from blyand.http.place import Place
from blyand.inference import grammars, templates, vocabularies
from blyand.language import build_language
from blyand.learning import build_compactor
from blyand.metrics import Metrics
from blyand.net.calls import open_calls
from blyand.net.dialer import WANTED_PEERS, Dialer
from blyand.net.host import HostSettings, open_host
from blyand.net.identity import peer_id_of
from blyand.net.mdns import LocalNetwork
from blyand.net.outside import announced
from blyand.net.peers import PeerBook
from blyand.net.standing import Standing
from blyand.newcomer import build_newcomer
from blyand.parts import (
    Models,
    Seat,
    build_fetcher,
    build_models,
    build_voter,
    wanting,
)
from blyand.poison import PoisonBox
from blyand.precedence import FirstLane
from blyand.presence import greeting, heard, role_names, roles, validates
from blyand.protocols import expert as expert_ends
from blyand.protocols import span as span_ends
from blyand.protocols.hello import Greeter
from blyand.protocols.meeting import Meeting
from blyand.protocols.reach import open_reach
from blyand.protocols.votes import Mesh
from blyand.replica import Replica, build_replica
from blyand.rpc.server import serve
from blyand.rules.net.relay import RelayLimits
from blyand.stores import open_stores
from blyand.supervise import Backoff, Service, supervise
from blyand.training.crew import open_crew
from blyand.upkeep import build_upkeep

logger = logging.getLogger(__name__)

FAREWELL_S = 0.5  # for the answer to node.stop to leave
DRAIN_S = 3.0  # for what peers asked before the stop


async def run(home: Home, config: Config) -> None:
    """Run the node of an opened home until it is stopped by signal or by `node.stop`.

    Raises ConfigFault before anything runs, and a LocalFault (or a group with one) when
    this machine cannot go on.
    """
    try:
        check_arithmetic()
    except ArithmeticError as error:
        raise ComputeFault(
            f"this machine's arithmetic is not exact: {error}"
        ) from error
    genesis = genesis_file.load(home.genesis)
    keys = participation.keys_of(home, config)
    key = keys[0]
    poison = PoisonBox(home.poison)
    metrics = Metrics()
    standing = Standing(
        peer_id_of(key.public),
        saved=read_or_none(home.bans),
        save=functools.partial(replace_file, home.bans),
        metrics=metrics,
    )
    settings = HostSettings(
        key=key,
        network=genesis.id,
        listen=config.net.listen,
        announce=announced(config.net.announce),
        relay=RelayLimits(
            circuits=config.net.relay_circuits,
            circuit_bytes=config.net.relay_mib << 20,
        ),
        max_connections=config.net.max_peers,
        max_per_group=config.net.max_per_group,
        max_per_key=config.net.max_per_key,
        standing=standing,
        blame=standing.blame,
        blame_address=standing.blame_address,
        poison=poison.put,
        metrics=metrics,
    )
    nice = config.compute.worker_nice
    devices = training_devices(config.compute.device, config.training.processes)
    limit = (config.store.disk_mib << 20) or None
    with (
        open_stores(home, limit) as stores,
        open_diary(*diary_of(home, config)) as note,
    ):
        async with (
            open_host(replace(settings, note=note)) as host,
            open_crew(devices, config.training.sharded, nice=nice) as trainer,
            open_worker("import", nice=nice) as importer,
            open_worker("audit", nice=19) as repeater,
            open_worker("text", nice=0, limits=vocabularies.LIMITS) as reader,
            open_worker("template", nice=0, limits=templates.LIMITS) as renderer,
            open_worker("grammar", nice=0, limits=grammars.LIMITS) as grammarian,
            open_calls(host) as calls,
        ):
            events = Broadcast()
            first = FirstLane(
                "infer", 1, trainer.hold, config.training.least_percent, metrics
            )
            reach, relaying = open_reach(host, config.net.relay, random.Random())
            clock = SystemClock()
            book = PeerBook(
                host.peer_id,
                lambda: clock.now_ms() / 1000,
                read_or_none(home.path / "peers"),
            )
            meeting = Meeting(host, events, book, random.Random(), WANTED_PEERS)
            dialer = Dialer(
                host,
                book,
                config.net.bootstrap,
                functools.partial(replace_file, home.path / "peers"),
                random.Random(),
                greeted=meeting.greeted,
            )
            base = Base(
                home=home,
                config=config,
                genesis=genesis,
                key=key,
                keys=keys,
                clock=clock,
                events=events,
                poison=poison,
                metrics=metrics,
                stores=stores,
                alarms={},
                settled=trio.Event(),
                is_amnesic=settling.is_amnesic(home, stores),
                host=host,
                calls=calls,
                book=book,
                reach=reach,
                meeting=meeting,
                directory=build_directory(host, genesis.id, book, meeting, dialer),
                blame=standing.blame,
                threads=choose_threads(
                    config.compute.threads, config.compute.daemons_on_host
                ),
                chain_lane=Threads("chain", 2),
                tile_lane=Threads("tile", 1),
                disk_lane=Threads("disk", 2),
                infer_lane=first,
            )
            fetcher = build_fetcher(base)
            replica = build_replica(base)
            newcomer = build_newcomer(base, replica, fetcher, roles(base))
            settling.begin(base, must_join=newcomer.aim.must)
            language = build_language(
                base, replica, fetcher, reader, renderer, grammarian
            )
            models = build_models(
                base,
                replica,
                fetcher,
                expert_ends.Client(calls),
                span_ends.Client(calls),
                trainer,
                language,
            )
            mesh = Mesh(host, dialer.dial, events, random.Random())
            reporter = participation.build_reporter(base, replica)
            forks = participation.build_forks(base, replica, reporter)
            watch = participation.build_watch(base, replica, reporter)
            voter = None
            if validates(base):
                is_lost = base.is_amnesic or newcomer.aim.must
                seat = Seat(
                    base.key_in,
                    functools.partial(participation.reveal, base, replica),
                    reporter.report,
                )
                voter = build_voter(base, replica, fetcher, mesh, seat, is_lost=is_lost)
            part = participation.build_participation(base, replica, models, reporter)
            inspector = build_inspector(base, replica, models, fetcher, repeater)
            upkeep = build_upkeep(base, replica, models, fetcher, roles(base))
            accounting = build_accounting(base, replica)
            stop = trio.Event()
            place = Place()
            serve_streams(
                base,
                replica,
                models,
                voter,
                newcomer,
                inspector,
                serves_experts=bool(roles(base) & Role.SERVE),
            )
            learns = bool(roles(base) & Role.LEARN)
            answers = bind_all(
                base,
                replica,
                models,
                fetcher,
                importer,
                upkeep,
                accounting,
                newcomer,
                part,
                inspector,
                stop.set,
                role_names(base),
                learns,
                voter,
                mesh,
                place,
            )
            services = [
                Service("commit", stores.commit.run),
                Service("standing", standing.run),
                Service("meeting", base.meeting.run),
                Service("reach", reach.run),
                Service("relaying", relaying.run),
                Service("intake", replica.intake.run),
                Service("donor", newcomer.donor.run),
                Service("joiner", newcomer.joiner.run),
                Service("follower", replica.follower.run),
                Service("backfill", newcomer.backfill.run),
                Service("mender", replica.mender.run),
                Service(
                    "settling",
                    functools.partial(
                        settling.settle,
                        base,
                        replica,
                        voter.remember if voter else None,
                        newcomer.joiner.joined,
                    ),
                ),
                Service("author", replica.author.run),
                Service("ledger", accounting.ledger.run),
                Service("auditor", accounting.auditor.run),
                Service("fetcher", fetcher.run),
                Service("holder", models.holder.run),
                Service("precedence", first.serve),
                Service("serving", models.serving.run),
                Service("replication", models.replication.run),
                Service("hardware", models.hardware.run),
                Service("edges", models.carriage.edge.run),
                Service("primary", settling.once_settled(base, models.primary.run)),
                Service("compactor", build_compactor(base, replica, models.holder).run),
                Service(
                    "receipting", settling.once_settled(base, models.receipting.run)
                ),
                Service("doubting", models.doubting.run),
                Service("journal", models.journal.run),
                Service("inspector", inspector.run),
                Service("retention", upkeep.retention.run),
                Service("member", part.member.run),
                Service("rotation", part.rotation.run),
                Service("surveyor", part.surveyor.run),
                Service("reporter", part.reporter.run),
                Service("forks", forks.run),
                Service("watch", watch.run),
            ]
            if voter is not None:
                services.append(Service("mesh", mesh.run))
                services.append(
                    Service("voter", settling.once_settled(base, voter.run))
                )
                services += gatekeeping(base, replica, models)
                services.append(Service("judge", models.judge.run))
            if learns:
                custody = Custody(
                    lambda: replica.view,
                    stores.blobs.has,
                    wanting(replica, fetcher),
                    events,
                )
                services.append(Service("custody", custody.run))
                services.append(Service("learner", models.learner.run))
            base.directory.holdings = functools.partial(holdings, base, replica, models)
            services.append(Service("directory", base.directory.run))
            if config.net.mdns:
                local = LocalNetwork(
                    host.peer_id, genesis.id, lambda: host.addresses, book
                )
                services.append(
                    Service(
                        "mdns", local.run, restart=Backoff(), restart_on=(Unavailable,)
                    )
                )
            services.append(
                Service(
                    "dialer", dialer.run, restart=Backoff(), restart_on=(Unavailable,)
                )
            )
            if config.http.listen:
                serve_http = functools.partial(
                    gateway.serve, base, replica, models, answers, place
                )
                services.append(Service("http", serve_http))
            services.append(
                Service("rpc", functools.partial(serve, _socket(base), answers))
            )
            await _run_services(base, replica, models, forks, services, stop)


async def _run_services(
    base: Base,
    replica: Replica,
    models: Models,
    forks: Forks,
    services: list[Service],
    stop: trio.Event,
) -> None:
    greeter = Greeter(
        base.key,
        lambda: greeting(base, replica, models),
        base.meeting.known_peers,
        base.meeting.met,
        base.meeting.strange,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_signals, stop)
        base.meeting.start(greeter, functools.partial(heard, base, replica, forks))
        await base.host.gossip.listen(topics.BLOCK, replica.intake.gossip_check)
        await base.host.gossip.listen(topics.CHECKPOINT, replica.follower.gossip_check)
        await base.host.gossip.listen(topics.RECEIPT, replica.receipts.gossip_check)
        await nursery.start(supervise, services)
        logger.info("ready on %s", ", ".join(base.host.addresses))
        await stop.wait()
        logger.info("stopping")
        async with trio.open_nursery() as farewell:
            farewell.start_soon(trio.sleep, FAREWELL_S)
            farewell.start_soon(base.host.drain, DRAIN_S)
        nursery.cancel_scope.cancel()


def _socket(base: Base) -> Path:
    chosen = base.config.rpc.socket
    return Path(chosen) if chosen else base.home.socket


async def _watch_signals(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if stop.is_set():
                os._exit(1)  # a second signal ends at once
            stop.set()
