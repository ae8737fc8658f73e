"""One node of the NAT tests: a host with the reachability check and the relay's parts.

Runs inside a network namespace; takes commands as JSON lines and answers each with one
line. Whoever connects is admitted: hello has tests of its own.
"""

from __future__ import annotations

import json
from random import Random
from typing import IO, Any

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.signing import SigningKey
from blyand.errors import Unavailable
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.reach import Reachability
from blyand.protocols.reach import open_reach

ECHO = "/blyan/echo/1"


async def echo(stream: Any) -> None:
    while (body := await stream.receive_or_end(1 << 24, 30)) is not None:
        await stream.send(body)


async def dial(host: Host, address: str) -> dict[str, Any]:
    """Connect, and say over which path, or why not."""
    try:
        peer = await host.connect(address)
    except (Unavailable, ProtocolError) as error:
        return {"path": "failed", "why": str(error)}
    info = next(info for info in host.peers() if info.peer_id == peer)
    return {"path": "relay" if "/p2p-circuit" in info.address else "direct"}


async def exchange(host: Host, peer: str, size: int) -> dict[str, Any]:
    """Send bytes to a peer's echo and compare what comes back."""
    body = bytes(range(256)) * (size // 256)
    try:
        async with host.request(peer, ECHO, 30) as stream:
            await stream.send(body)
            await stream.close_write()
            return {"same": await stream.receive(len(body), 30) == body}
    except (Unavailable, ProtocolError) as error:
        return {"same": False, "why": str(error)}


async def answer(host: Host, reach: Reachability, asked: dict[str, Any]) -> Any:
    match asked["do"]:
        case "look":
            found = reach.judgement
            return {
                "peer": host.peer_id,
                "addresses": host.addresses,
                "state": str(found.state),
                "reason": found.reason,
                "places": host.circuits.places,
                "serving": host.relay.serving,
                "peers": {info.peer_id: info.address for info in host.peers()},
            }
        case "dial":
            return await dial(host, asked["address"])
        case "exchange":
            return await exchange(host, asked["peer"], asked["size"])
        case "leave":
            await host.disconnect(asked["peer"])
            return {}
    raise ValueError(asked)


async def main(
    number: int, listen: str, mode: str, asked: IO[str], told: IO[str]
) -> None:
    """Run until `asked` ends."""
    key = SigningKey(bytes([number]) * 32)
    async with open_host(HostSettings(key, b"\x07" * 32, (listen,))) as host:
        host.handle(ECHO, echo, deadline_s=None)
        reach, relaying = open_reach(host, mode, Random(number))

        async def met(info: Any) -> None:
            host.admit(info.peer_id)
            reach.met(info.peer_id)

        host.on_connected(met)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reach.run)
            nursery.start_soon(relaying.run)
            while line := await trio.to_thread.run_sync(asked.readline):
                found = await answer(host, reach, json.loads(line))
                print(json.dumps(found), file=told, flush=True)
            nursery.cancel_scope.cancel()
