"""Service: a place at two relays while nobody can dial us; a relay while everybody can.

A place is renewed at half of its life and lost with the connection; then another relay
among the connected peers is asked, one of another neighbourhood if there is one.
"""

from __future__ import annotations

import logging
from random import Random

import trio

from blyan_proto.errors import ProtocolError
from blyand.errors import Unavailable
from blyand.net.connections import PeerInfo
from blyand.net.host import Host
from blyand.net.reach import Reachability, ip_of
from blyand.rules.net.reach import Reach, neighbourhood_of

log = logging.getLogger(__name__)

WANTED_PLACES = 2
AGAIN_S = 30.0  # between looks when nothing happens
REST_S = 60.0  # a relay that refused is not asked for so long

AUTO, USE, SERVE, OFF = "auto", "use", "serve", "off"


class Relaying:
    """Keeps `host.relay` and `host.circuits` as the reachability asks for."""

    def __init__(
        self, host: Host, reach: Reachability, mode: str, random: Random
    ) -> None:
        """`mode` is the option net.relay."""
        self._host, self._reach, self._mode = host, reach, mode
        self._random = random
        self._renew_at: dict[str, float] = {}
        self._rests_until: dict[str, float] = {}
        self._lost = trio.Event()
        host.on_disconnected(self._left)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Go on for ever; a relay that cannot is the world's fault."""
        self._settle()
        task_status.started()
        while True:
            wait_s = AGAIN_S
            if self._settle():
                await self._fill()
                due = [self._renew_at[peer] for peer in self._host.circuits.places]
                wait_s = min([AGAIN_S, *(at - trio.current_time() for at in due)])
            with trio.move_on_after(max(wait_s, 0.1)):
                await self._wait()

    def _settle(self) -> bool:
        """Serve or not; return whether places are wanted."""
        state = self._reach.judgement.state
        public = state is Reach.PUBLIC
        self._host.relay.serve(
            self._mode == SERVE or (self._mode == AUTO and public),
        )
        wanted = self._mode in (AUTO, USE) and state is Reach.PRIVATE
        if not wanted and (public or self._mode in (SERVE, OFF)):
            for peer in self._host.circuits.places:
                self._host.circuits.give_up(peer)
        return wanted

    async def _wait(self) -> None:
        """Return when a relay is lost or the reachability was looked at."""
        self._lost = trio.Event()
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                await self._reach.wait_changed()
                nursery.cancel_scope.cancel()

            nursery.start_soon(look)
            await self._lost.wait()
            nursery.cancel_scope.cancel()

    async def _fill(self) -> None:
        now = trio.current_time()
        for peer in self._host.circuits.places:
            if self._renew_at.get(peer, 0.0) <= now:
                await self._reserve(peer)
        self._rests_until = {p: at for p, at in self._rests_until.items() if at > now}
        while len(held := self._host.circuits.places) < WANTED_PLACES:
            chosen = self._choose(set(held) | self._rests_until.keys())
            if chosen is None:
                return
            await self._reserve(chosen)

    def _choose(self, taken: set[str]) -> str | None:
        infos = {info.peer_id: info for info in self._host.peers()}
        offered = [peer for peer in self._reach.relays() if peer not in taken]
        near = {
            neighbourhood_of(ip_of(infos[peer]))
            for peer in self._host.circuits.places
            if peer in infos
        }
        far = [p for p in offered if neighbourhood_of(ip_of(infos[p])) not in near]
        choice = far or offered
        return self._random.choice(choice) if choice else None

    async def _reserve(self, peer: str) -> None:
        try:
            life_s = await self._host.circuits.reserve(peer)
        except (Unavailable, ProtocolError) as error:
            if isinstance(error, ProtocolError):
                self._host.blame(peer, error)
            log.debug("no place at %s: %s", peer, error)
            self._host.circuits.give_up(peer)
            self._rests_until[peer] = trio.current_time() + REST_S
            return
        now = trio.current_time()
        if peer not in self._renew_at:
            log.info("reachable through the relay %s", peer)
        self._renew_at[peer] = now + life_s * self._random.uniform(0.4, 0.6)

    async def _left(self, info: PeerInfo) -> None:
        self._renew_at.pop(info.peer_id, None)
        self._lost.set()
