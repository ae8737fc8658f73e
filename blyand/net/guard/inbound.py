"""The door: inbound connections from their first byte to their last.

Mended: slots that were never given back (nobody could connect after 250 connections);
slots that strangers who never authenticate kept from everybody else. The oldest of those
who have the most unfinished handshakes make room for a newcomer. `except Exception`
stands here only around libp2p's own code. docs/protocols/streams.md
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import MuxerUpgradeFailure, SecurityUpgradeFailure

from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyand.rules.net.misbehaviour import Blame

log = logging.getLogger(__name__)


HANDSHAKES = 128  # inbound connections that did not authenticate yet
HANDSHAKES_PER_ADDRESS = 32
_GONE = (IOException, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Door:
    """Gives every inbound connection of a swarm a slot for its life.

    `inbound` bounds the authenticated ones; the others have slots of their own, if
    `may_enter` lets their address in.
    """

    def __init__(
        self,
        swarm: Any,
        inbound: int,
        may_enter: Callable[[str], bool],
        blame_address: Blame,
    ) -> None:
        self._swarm, self._inbound = swarm, inbound
        self._may_enter, self._blame = may_enter, blame_address
        self._shaking: dict[trio.CancelScope, str] = {}  # -> address; oldest first
        self._inside = 0

    async def admit(self, connection: Any, listener: Any, _failure: Any) -> None:
        """Serve a connection until it ends (the swarm's inbound handler)."""
        raw = RawConnection(connection, False)
        host = (connection.get_remote_address() or ("", 0))[0]
        try:
            muxed = await self._shake_hands(raw, listener, host)
            if muxed is not None:
                self._inside += 1
                try:
                    await muxed.event_closed.wait()
                finally:
                    self._inside -= 1
        finally:
            await close(raw)

    async def _shake_hands(self, raw: Any, listener: Any, host: str) -> Any:
        if not self._make_room(host):
            return None
        with trio.CancelScope() as scope:
            self._shaking[scope] = host
            try:
                return await self._swarm.upgrade_inbound_raw_conn(raw, listener)
            except Exception as error:
                log.debug("inbound from %s: %r", host, error)
                if (fault := _fault_of(error)) is not None:
                    self._blame(host, fault)
            finally:
                del self._shaking[scope]
        return None

    def _make_room(self, host: str) -> bool:
        if self._inside >= self._inbound:
            return False
        waiting = Counter(self._shaking.values())
        if waiting[host] >= HANDSHAKES_PER_ADDRESS:
            self._blame(host, LimitExceeded(f"{waiting[host]} unfinished handshakes"))
            return False
        if not self._may_enter(host):
            return False
        if len(self._shaking) >= HANDSHAKES:
            most, _ = waiting.most_common(1)[0]
            oldest = next(one for one, its in self._shaking.items() if its == most)
            oldest.cancel()
        return True


async def close(connection: Any) -> None:
    """Close a connection of libp2p's; never raises, at most two seconds."""
    with trio.move_on_after(2, shield=True):
        try:
            await connection.close()
        except Exception as error:
            log.debug("closing: %r", error)


def _fault_of(error: BaseException) -> ProtocolError | None:
    """Return what an address did wrong if its handshake failed by its own doing."""
    chain = list(_causes(error))
    if any(isinstance(one, trio.TooSlowError) for one in chain):
        return LimitExceeded("a handshake that does not end")
    if any(isinstance(one, _GONE) for one in chain):
        return None  # it hung up, which everybody may
    broken = (SecurityUpgradeFailure, MuxerUpgradeFailure)
    if len(chain) > 1 or isinstance(error, broken):
        return DecodeError(f"a broken handshake: {type(chain[-1]).__name__}")
    return None  # no room


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
