"""What this node is to the others: its roles, its registration, what it says in hello."""

from __future__ import annotations

import blyand
from blyan_proto.protocols.hello import MAX_ADDRESSES, Greeting
from blyan_proto.signing import account_of
from blyan_proto.types import Role, bitmap
from blyand.foundation import Base
from blyand.guard.forks import Forks
from blyand.initialise import role_bits
from blyand.parts import Models
from blyand.replica import Replica
from blyand.rules.records import MODELS


def validates(base: Base) -> bool:
    """True for a node that votes whenever it is in the set."""
    founders = {account_of(member.key) for member in base.genesis.validators}
    if base.key.account in founders:
        return True
    return bool(role_bits(base.config.node.roles) & Role.VALIDATE)


def roles(base: Base) -> int:
    """Return the bits of what this node offers to do."""
    bits = role_bits(base.config.node.roles)
    if not base.config.training.enabled:
        bits &= ~int(Role.LEARN)  # rounds must not wait for it
    return bits | int(Role.VALIDATE) if validates(base) else bits


def role_names(base: Base) -> tuple[str, ...]:
    bits = roles(base)
    return tuple(str(role.name).lower() for role in Role if bits & role)


def greeting(base: Base, replica: Replica, models: Models) -> Greeting:
    whole = [m for m in MODELS.scan(replica.view) if m.weights == m.groups]
    record = max(whole, key=lambda m: m.adopted_height, default=None)
    held = models.holder.held(record.id) if record else frozenset()
    return Greeting(
        network=base.genesis.id,
        software=f"blyand/{blyand.__version__}",
        roles=roles(base),
        region=base.config.net.region,
        addresses=base.host.addresses[:MAX_ADDRESSES],
        model=record.id if record else None,
        held=bitmap(held, record.groups) if record else b"",
        finalised=replica.machine.clock.height,
        checkpoint=replica.machine.last_id,
    )


def heard(
    base: Base, replica: Replica, forks: Forks, peer: str, greeting: Greeting
) -> None:
    """Catch up with a peer that is further; look when it has another history."""
    base.reach.met(peer)
    replica.follower.peer_is_at(peer, greeting.finalised)
    forks.claimed(peer, greeting.finalised, greeting.checkpoint)
