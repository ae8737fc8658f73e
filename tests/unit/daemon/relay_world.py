"""Relays, nodes that nobody can dial, and those who want to reach them: real hosts."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import trio

from blyan_proto.signing import SigningKey
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.reach import Reachability
from blyand.protocols.reach import open_reach

ECHO = "/blyan/echo/1"
CLOSED = "/ip4/127.0.0.1/tcp/9"  # an announced address where nobody answers


CHECKS: dict[str, Reachability] = {}  # running, by host


def settings(number: int, **more) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32, **more)


async def echo(stream):
    while (body := await stream.receive_or_end(1 << 26, 30)) is not None:
        await stream.send(body)


async def link(one: Host, other: Host) -> None:
    """Connect, and admit one another as hello would."""
    await one.connect(other.outside.direct()[0])
    while not any(info.peer_id == one.peer_id for info in other.peers()):
        await trio.sleep(0.005)
    for host, peer in ((one, other), (other, one)):
        host.admit(peer.peer_id)
        if host.peer_id in CHECKS:
            CHECKS[host.peer_id].met(peer.peer_id)


async def until(condition) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def hosts(*wanted: HostSettings):
    """Open hosts that serve an echo to everybody."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_host(one)) for one in wanted]
        for host in opened:
            host.handle(ECHO, echo, before_hello=True, deadline_s=None)
        yield opened


@asynccontextmanager
async def relayed(relay_limits=None, **more):
    """A relay, a node with a place at it, and a client of the relay."""
    relay_settings = settings(1, **({"relay": relay_limits} if relay_limits else {}))
    async with hosts(
        relay_settings, settings(2, announce=(CLOSED,), **more), settings(3)
    ) as (relay, hidden, client):
        relay.relay.serve(True)
        await link(hidden, relay)
        await link(client, relay)
        await hidden.circuits.reserve(relay.peer_id)
        yield relay, hidden, client


@asynccontextmanager
async def reaching(*opened: Host, mode: str = "auto"):
    """Run the reachability check and the places of hosts; yields their checks."""
    async with trio.open_nursery() as nursery:
        checks = []
        for number, host in enumerate(opened):
            reach, relaying = open_reach(host, mode, Random(number))
            nursery.start_soon(reach.run)
            nursery.start_soon(relaying.run)
            checks.append(reach)
            CHECKS[host.peer_id] = reach
        yield checks
        for host in opened:
            del CHECKS[host.peer_id]
        nursery.cancel_scope.cancel()
