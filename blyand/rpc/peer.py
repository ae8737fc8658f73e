"""Answers about peers: who is connected, and connect to one more."""

from __future__ import annotations

from collections.abc import Callable

import trio

from blyan_proto.errors import DecodeError
from blyan_proto.rpc import peer as spec
from blyan_proto.rpc.errors import (
    ADDRESS_INVALID,
    PEER_REFUSED,
    PEER_UNREACHABLE,
    RpcError,
)
from blyan_proto.rpc.parts import Hosted
from blyan_proto.types import Role, members
from blyand.errors import NoRoute, TooSlow
from blyand.net.address import peer_in
from blyand.net.host import Host
from blyand.protocols.meeting import Meeting, Met
from blyand.rpc.bind import Answers
from blyand.rules.model.model import layout_for
from blyand.rules.records import MODELS
from blyand.rules.view import View


def bind(
    answers: Answers,
    *,
    host: Host,
    meeting: Meeting,
    view: Callable[[], View],
    latency_ms: Callable[[str], float | None],
) -> None:
    """Bind peer.*. `latency_ms` gives a peer's measured round trip, None before one."""

    @answers(spec.list_)
    async def peers(params: spec.ListPeers) -> spec.Peers:
        now = trio.current_time()
        return spec.Peers(
            peers=[
                peer_of(met, view(), latency_ms(peer), now)
                for peer, met in meeting.peers.items()
            ]
        )

    @answers(spec.connect)
    async def connect(params: spec.Connect) -> spec.Connected:
        try:
            if peer_in(params.address) == host.peer_id:
                raise RpcError(PEER_REFUSED, "that is this node's own address")
            peer = await host.connect(params.address)
        except DecodeError as error:
            raise RpcError(ADDRESS_INVALID, str(error)) from error
        except (NoRoute, TooSlow) as error:
            raise RpcError(PEER_UNREACHABLE, str(error)) from error
        met = await _greeted(host, meeting, peer)
        if met is None:
            raise RpcError(
                PEER_REFUSED,
                f"{peer} answered, but is of another network or does not greet us",
            )
        return spec.Connected(peer_id=peer, address=met.info.address)


async def _greeted(host: Host, meeting: Meeting, peer: str) -> Met | None:
    """Wait for a peer's hello; None when it hangs up before, or takes too long."""

    async def hung_up() -> None:
        await host.wait_gone(peer)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hung_up)
        await meeting.greeted(peer)
        nursery.cancel_scope.cancel()
    return meeting.peers.get(peer)


def peer_of(met: Met, view: View, latency_ms: float | None, now: float) -> spec.Peer:
    """Return one peer as declared. `now`: trio time."""
    greeting = met.greeting
    return spec.Peer(
        peer_id=met.info.peer_id,
        address=met.info.address,
        outbound=not met.info.inbound,
        software=greeting.software,
        roles=role_names(greeting.roles),
        region=greeting.region,
        finalised=greeting.finalised,
        hosted=hosted_of(view, greeting.model, greeting.held),
        latency_ms=latency_ms,
        score=None,
        connected_s=max(0.0, now - met.since),
    )


def role_names(bits: int) -> list[str]:
    """Return the names of role bits; bits that this version does not know are left out."""
    return [str(role.name).lower() for role in Role if bits & role]


def hosted_of(view: View, model: bytes | None, held: bytes) -> list[Hosted]:
    """Return the groups that a peer's bitmap names, as far as its model is known here."""
    record = MODELS.get(view, model) if model else None
    if record is None:
        return []
    groups = layout_for(record.model).groups
    names = [group.name for group in groups if group.index in members(held)]
    return [Hosted(model=record.model.name, groups=names)] if names else []
