"""Service: find out whether others can connect to this node, and keep it up to date.

A few peers of different neighbourhoods are asked to dial us back; what they found is
judged by `rules/net/reach.py`. Asked often while it is unclear, seldom while it stays,
and anew when peers come after a time without any. docs/protocols/reach.md
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

import trio

from blyan_proto.errors import DecodeError, ProtocolError
from blyan_proto.protocols.reach import Dialled, Outcome
from blyand.errors import Unavailable
from blyand.net.address import parse
from blyand.net.connections import PeerInfo
from blyand.net.outside import Outside
from blyand.rules.net.reach import (
    FIRST_PAUSE_S,
    UNSURE_PAUSE_S,
    Reach,
    Statement,
    judge,
    neighbourhood_of,
    pause_s,
)

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 3
KEPT = 64  # statements

Ask = Callable[[str, int], Awaitable[Dialled]]


class Reached(Protocol):
    """What the check needs of a host."""

    outside: Outside

    def peers(self) -> tuple[PeerInfo, ...]: ...


@dataclass(frozen=True)
class _Candidate:
    peer: str
    neighbourhood: str
    port: int
    order: tuple[float, bool]  # when it was asked last, whether it came to us


class Reachability:
    """The state of this node as seen from outside: `judgement`."""

    def __init__(self, host: Reached, ask: Ask, random: Random) -> None:
        """`ask(peer, port)` has a peer dial us back."""
        self.judgement = judge((), 0, 0.0)
        self._host, self._ask, self._random = host, ask, random
        self._statements: list[Statement] = []
        self._asked: dict[str, float] = {}
        self._relays: set[str] = set()
        self._wake, self._changed = trio.Event(), trio.Event()

    def relays(self) -> tuple[str, ...]:
        """Return the connected peers that said they give places at their relay."""
        return tuple(peer for peer in self._connected() if peer in self._relays)

    def told(self) -> tuple[str, str]:
        """Return the state and the reason, for people."""
        return str(self.judgement.state), self.judgement.reason

    async def wait_changed(self) -> None:
        """Return after the next round of questions that taught us something."""
        await self._changed.wait()

    def met(self, peer: str) -> None:
        """A peer said hello: ask it now, if there is something to find out."""
        if peer in self._asked:
            return
        alone = not any(other in self._asked for other in self._connected())
        sought = self.judgement.state is Reach.PRIVATE and not self.relays()
        if alone or sought or self.judgement.state is Reach.UNKNOWN:
            self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Ask for ever; failures to be answered are the world's."""
        task_status.started()
        wait_s = FIRST_PAUSE_S
        while True:
            before = (self.judgement.state, self.judgement.observed, self.relays())
            await self.check()
            after = (self.judgement.state, self.judgement.observed, self.relays())
            wait_s = pause_s(self.judgement.state, before != after, wait_s)
            if self.judgement.state is Reach.PRIVATE and not self.relays():
                wait_s = min(wait_s, UNSURE_PAUSE_S)
            with trio.move_on_after(wait_s * self._random.uniform(0.75, 1.25)):
                await self._wake.wait()
                wait_s = FIRST_PAUSE_S
            self._wake = trio.Event()

    async def check(self) -> None:
        """Ask one round of peers and judge anew."""
        candidates = self._candidates()
        async with trio.open_nursery() as nursery:
            for one in candidates[:ASKED_AT_ONCE]:
                nursery.start_soon(self._question, one)
        self._judge()

    def _judge(self) -> None:
        near = {neighbourhood_of(ip_of(info)) for info in self._direct()}
        before, now = self.judgement, trio.current_time()
        self.judgement = judge(self._statements, len(near), now)
        self._host.outside.reached = self.judgement.address
        if before.state is not self.judgement.state:
            log.info(
                "reachability: %s, %s", self.judgement.state, self.judgement.reason
            )
        self._changed.set()
        self._changed = trio.Event()

    async def _question(self, candidate: _Candidate) -> None:
        peer, now = candidate.peer, trio.current_time()
        self._asked[peer] = now
        try:
            answer = await self._ask(peer, candidate.port)
        except (Unavailable, ProtocolError) as error:  # blamed by the exchange already
            log.debug("%s does not say whether it reaches us: %s", peer, error)
            self._relays.discard(peer)
            return
        (self._relays.add if answer.relays else self._relays.discard)(peer)
        if answer.outcome is Outcome.NOT_TRIED:
            return
        reached = answer.outcome is Outcome.REACHED
        place = (answer.observed, candidate.port)
        statement = Statement(peer, candidate.neighbourhood, *place, reached, now)
        self._statements = [*self._statements[1 - KEPT :], statement]

    def _candidates(self) -> list[_Candidate]:
        """Whom to ask, one of each neighbourhood: longest ago first, those we dialled."""
        here = self._connected()
        for gone in self._asked.keys() - here:
            del self._asked[gone]
        self._relays &= here
        found: dict[str, _Candidate] = {}
        direct = list(self._direct())
        self._random.shuffle(direct)
        for info in direct:
            ip, peer = ip_of(info), info.peer_id
            order = (self._asked.get(peer, float("-inf")), info.inbound)
            near = neighbourhood_of(ip)
            one = _Candidate(peer, near, self._port(":" in ip), order)
            if near not in found or order < found[near].order:
                found[near] = one
        return sorted(found.values(), key=lambda one: one.order)

    def _port(self, v6: bool) -> int:
        """The port that others are to dial, at whatever IP they see us; 0: none."""
        for text in self._host.outside.direct():
            try:
                endpoint = parse(text)
            except DecodeError:
                continue
            if (endpoint.ip.version == 6) == v6:
                return endpoint.port
        return 0

    def _connected(self) -> set[str]:
        return {info.peer_id for info in self._host.peers() if info.admitted}

    def _direct(self) -> list[PeerInfo]:
        return [info for info in self._host.peers() if info.admitted and ip_of(info)]


def ip_of(info: PeerInfo) -> str:
    """The IP of a direct connection; "" for one through a relay."""
    try:
        ip = parse(info.address).ip
    except DecodeError:
        return ""
    mapped = ip.ipv4_mapped if ip.version == 6 else None  # of a listener for both
    return str(mapped or ip)
