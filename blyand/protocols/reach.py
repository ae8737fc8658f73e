"""/blyan/reach/1, both ends: a peer dials us back and says what came of it.
docs/protocols/reach.md"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Awaitable, Callable
from random import Random

import trio

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.reach import (
    DEADLINE_S,
    DIAL_DEADLINE_S,
    MAX_MESSAGE_BYTES,
    PROTOCOL_ID,
    DialBack,
    Dialled,
    Outcome,
)
from blyan_proto.protocols.result import ResultCode
from blyand.errors import Unavailable
from blyand.net.host import Host
from blyand.net.reach import Reachability, ip_of
from blyand.net.relaying import Relaying
from blyand.net.stream import MessageStream, Serve, expect_ok
from blyand.rules.net.budget import Budget
from blyand.rules.net.reach import address_of

PER_PEER = (4, 30.0)  # dials at once, then one every so many seconds
PER_ADDRESS = (8, 10.0)
DIALS_AT_ONCE = 4  # for everybody together

Probe = Callable[[str, str, float], Awaitable[None]]


def open_reach(host: Host, mode: str, random: Random) -> tuple[Reachability, Relaying]:
    """Answer peers that ask to be dialled; return the two services that ask and act.

    `mode` is the option net.relay.
    """

    def seen(peer: str) -> str:
        return next((ip_of(i) for i in host.peers() if i.peer_id == peer), "")

    host.handle(
        PROTOCOL_ID,
        serve(seen, host.outside.probe, lambda: host.relay.serving),
        deadline_s=DEADLINE_S,
    )
    reach = Reachability(host, functools.partial(ask, host), random)
    return reach, Relaying(host, reach, mode, random)


async def ask(host: Host, peer: str, port: int) -> Dialled:
    """Ask a peer to dial us at `port` (0: only where it sees us).

    Unavailable when it cannot now; ProtocolError when its answer is none.
    """
    async with host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
        await stream.send_message(DialBack(port))
        await stream.close_write()
        await expect_ok(stream, DEADLINE_S)
        answer: Dialled = await stream.receive_message(
            Dialled, MAX_MESSAGE_BYTES, DEADLINE_S
        )
        _check(answer)
    return answer


def _check(answer: Dialled) -> None:
    if not answer.observed:
        if answer.outcome is not Outcome.NOT_TRIED:
            raise UnexpectedMessage("dialled, but where?")
        return
    try:
        literal = str(ipaddress.ip_address(answer.observed))
    except ValueError as error:
        raise UnexpectedMessage("an observed address is a literal IP") from error
    if literal != answer.observed or "%" in literal:
        raise UnexpectedMessage("an observed address is a literal IP")


def serve(
    seen: Callable[[str], str], probe: Probe, relays: Callable[[], bool]
) -> Serve:
    """Return the handler.

    `seen(peer)` is the IP at which an asker is directly connected ("" if it is not),
    `probe(address, peer, deadline_s)` raises Unavailable unless that peer answers there.
    """
    by_peer, by_address = Budget(*PER_PEER), Budget(*PER_ADDRESS)
    room = trio.CapacityLimiter(DIALS_AT_ONCE)

    async def dial(peer: str, ip: str, port: int) -> Outcome:
        now = trio.current_time()
        if not ip or not port or not room.available_tokens:
            return Outcome.NOT_TRIED
        if not by_peer.take(peer, now) or not by_address.take(_site(ip), now):
            return Outcome.NOT_TRIED
        async with room:
            try:
                # Nobody but the asker is ever dialled: the IP is the one we see it at.
                await probe(address_of(ip, port), peer, DIAL_DEADLINE_S)
            except Unavailable:
                return Outcome.FAILED
        return Outcome.REACHED

    async def answer(stream: MessageStream) -> None:
        request: DialBack = await stream.receive_message(
            DialBack, MAX_MESSAGE_BYTES, DEADLINE_S
        )
        ip = seen(stream.peer)
        outcome = await dial(stream.peer, ip, request.port)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(Dialled(outcome, ip, relays()))

    return answer


def _site(ip: str) -> str:
    """What one host can have many addresses of: a /64 in v6."""
    parsed = ipaddress.ip_address(ip)
    return ip if parsed.version == 4 else parsed.packed[:8].hex()
