"""What makes a node a participant: its registration, its keys, its reports."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from blyan_proto.amounts import bly
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.signing import SigningKey
from blyand import keystore
from blyand.config import Config
from blyand.election.members import Chains, Claims, Member
from blyand.election.rotation import KeyFiles, Rotation
from blyand.election.surveyor import Surveyor
from blyand.finality.beacon import LINKS as CHAIN_LINKS
from blyand.finality.beacon import BeaconChain, chain_of
from blyand.foundation import Base
from blyand.guard.evidence import Reporter
from blyand.guard.forks import Forks, Places
from blyand.guard.watch import Watch
from blyand.home import Home
from blyand.initialise import hardware
from blyand.net.identity import peer_id_of
from blyand.parts import Models
from blyand.presence import roles, validates
from blyand.protocols import sync as sync_ends
from blyand.replica import Replica
from blyand.rpc import key, slash, validator
from blyand.rpc.bind import Answers
from blyand.rpc.ordering import Ordering
from blyand.rules.chain.validators import LINKS
from blyand.rules.records import NODES
from blyand.rules.trust.silence import silent_ms
from blyand.rules.trust.slashing import TOLLS


@dataclass(frozen=True)
class Participation:
    """What says on the chain who this node is and what it has seen."""

    member: Member
    rotation: Rotation
    surveyor: Surveyor
    reporter: Reporter


def passphrase_of(config: Config) -> Path | None:
    """Return the file with the passphrase of the keys, None for the home's own."""
    chosen = config.key.passphrase_file
    return Path(chosen) if chosen else None


def keys_of(home: Home, config: Config) -> tuple[SigningKey, ...]:
    """Return all keys of this node's account, the current one first. Blocking."""
    return tuple(keystore.versions(home, passphrase_of(config)))


def reveal(base: Base, replica: Replica, public: bytes) -> bytes:
    """Return the next link of one of this node's keys. ValueError when there is none."""
    link = LINKS.get(replica.view, public)
    own = next((one for one in base.keys if one.public == public), None)
    if link is None or own is None:
        raise ValueError("no hash chain of this node's is in use")
    node = NODES.get(replica.view, base.key.account)
    for number in range(node.tails if node else 0, -1, -1):
        chain = chain_of(own.secret, number)
        if chain.tail == link.tail:
            return chain.before(link.revealed)
    raise ValueError("the hash chain in use was not made by this node")


def build_reporter(base: Base, replica: Replica) -> Reporter:
    """Return what turns contradictions into evidence."""
    return Reporter(
        base.genesis.id, lambda: replica.view, replica.author.make, Random()
    )


def build_forks(base: Base, replica: Replica, reporter: Reporter) -> Forks:
    """Return what looks at second final checkpoints, and let the follower tell it."""
    client = sync_ends.Client(base.host)

    async def theirs(peer: str, height: int) -> FinalCheckpoint | None:
        shown = await client.before(peer, height + 1, 1)
        return shown.checkpoints[0] if shown.checkpoints else None

    stores = base.stores
    forks = Forks(
        base.genesis,
        Places(
            stores.checkpoints.at,
            lambda: stores.history.floor.checkpoints,
            stores.sets.at,
            theirs,
        ),
        reporter.report,
        base.alarms,
        base.blame,
        base.chain_lane,
    )
    replica.follower.compare = forks.see
    return forks


def build_watch(base: Base, replica: Replica, reporter: Reporter) -> Watch:
    """Return what sees offences in blocks, and let intake tell it what it refuses."""
    blocks = base.stores.blocks
    watch = Watch(
        base.genesis.id, lambda: replica.view, reporter, blocks.get, base.events
    )
    replica.intake.refused = watch.refused
    return watch


def build_participation(
    base: Base, replica: Replica, models: Models, reporter: Reporter
) -> Participation:
    """Return everything by which this node takes part."""

    def is_following() -> bool:
        return replica.follower.behind <= 1

    def distances() -> dict[bytes, float]:
        """Round trips to registered nodes, in ms; the best connection counts."""
        accounts = {peer_id_of(n.key): n.account for n in NODES.scan(replica.view)}
        found: dict[bytes, float] = {}
        for wire in base.host.wires():
            account = accounts.get(wire.peer_id)
            if account is not None and wire.rtt_ms is not None:
                found[account] = min(wire.rtt_ms, found.get(account, wire.rtt_ms))
        return found

    async def chain(number: int) -> BeaconChain:
        return await base.disk_lane.run(chain_of, base.key.secret, number)

    async def tail(number: int) -> bytes:
        return (await chain(number)).tail

    async def is_nearly_used(number: int, revealed: bytes) -> bool:
        made = await chain(number)
        return await base.disk_lane.run(made.left, revealed) < CHAIN_LINKS // 4

    member = Member(
        base.key.account,
        Claims(
            base.key.public,
            roles(base),
            base.config.net.region,
            hardware(),
        ),
        base.genesis,
        lambda: replica.view,
        models.holder.held,
        replica.author.make,
        is_following,
        base.events,
        Chains(tail, is_nearly_used) if validates(base) else None,
    )
    passphrase = passphrase_of(base.config)
    rotation = Rotation(
        base.key,
        base.genesis.id,
        KeyFiles(
            functools.partial(keystore.open_next, base.home, passphrase),
            functools.partial(keystore.promote, base.home),
            frozenset(one.public for one in base.keys),
        ),
        lambda: replica.view,
        replica.author.make_last,
        base.disk_lane.run,
        base.events,
    )
    surveyor = Surveyor(
        base.key.account,
        base.genesis,
        lambda: replica.view,
        distances,
        replica.author.make,
        is_following,
    )
    return Participation(member, rotation, surveyor, reporter)


def bind_participation(
    answers: Answers, base: Base, replica: Replica, part: Participation
) -> None:
    """Bind validator.*, slash.* and key.*."""
    ordering = Ordering(replica.machine, base.stores.blocks, base.events)
    validator.bind(
        answers,
        genesis=base.genesis,
        ordering=ordering,
        hands=validator.Hands(
            base.key.account,
            validates(base),
            part.member.registration,
            replica.author.make,
        ),
    )
    slash.bind(
        answers,
        genesis=base.genesis,
        account=base.key.account,
        ordering=ordering,
        blocks=base.stores.blocks,
        make=replica.author.make,
        lane=base.disk_lane,
    )
    key.bind(
        answers,
        keys=base.keys,
        rotation=part.rotation,
        ordering=ordering,
        view=lambda: replica.view,
    )


def troubles(base: Base, replica: Replica, part: Participation) -> Iterator[str]:
    """Yield what the operator should know of this node's account and its duties."""
    view, account = replica.view, base.key.account
    if part.rotation.trouble:
        yield part.rotation.trouble
    ban = validator.ban_of(view, account)
    if ban:
        yield ban
    lack = validator.lack_of(view, base.genesis, account)
    if lack:
        yield lack
    toll = TOLLS.get(view, account)
    if toll is not None:
        yield (
            f"{bly(toll.taken_micro)} were slashed; `blyanctl slash show "
            f"{toll.last.hex()}` explains the newest penalty"
        )
    for one in base.keys:
        silent = silent_ms(view, one.public)
        if silent > 2 * base.genesis.parameters.idle_interval_ms:
            yield (
                f"no checkpoint has named a vote of this validator for {silent // 1000} s: "
                "is it reached by the others? `blyanctl peer list` shows who is connected"
            )
