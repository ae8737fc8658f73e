"""Which peers have the state of which checkpoint ready, by what they say of late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import trio

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.sync import Offers
from blyand.errors import Unavailable

logger = logging.getLogger(__name__)

AGAIN_S = 10.0  # until a peer is asked again
LIAR_S = 60.0  # until one that told something false is


class Asking(Protocol):
    """Asks a peer what it offers."""

    async def offers(self, peer: str, at_least: int) -> Offers: ...


class Offered:
    """Offers by checkpoint and peer: two peers may show one with different votes."""

    def __init__(self, asking: Asking, peers: Callable[[], Sequence[str]]) -> None:
        self._asking, self._peers = asking, peers
        self._by_id: dict[bytes, dict[str, FinalCheckpoint]] = {}
        self._asked: dict[str, float] = {}  # peer -> when

    async def ask(self, at_least: int) -> None:
        """Ask who was not asked of late for a state of that height or above."""
        now, connected = trio.current_time(), set(self._peers())
        self._asked = {p: when for p, when in self._asked.items() if p in connected}
        async with trio.open_nursery() as nursery:
            for peer in connected:
                if now - self._asked.get(peer, -AGAIN_S) >= AGAIN_S:
                    self._asked[peer] = now
                    nursery.start_soon(self._ask, peer, at_least)

    async def _ask(self, peer: str, at_least: int) -> None:
        try:
            shown = await self._asking.offers(peer, at_least)
        except (Unavailable, ProtocolError) as error:
            logger.debug("%s offers nothing: %s", peer, error)
            return
        self.forget(peer)
        for final in shown.checkpoints:
            self._by_id.setdefault(final.checkpoint.id, {})[peer] = final

    def best(self, at_least: int) -> Iterator[tuple[str, FinalCheckpoint]]:
        """Yield (peer, checkpoint): of two peers before of one, newer before older."""
        connected = set(self._peers())
        found = [
            some
            for peers in self._by_id.values()
            if (some := sorted((p, f) for p, f in peers.items() if p in connected))
            and some[0][1].checkpoint.height >= at_least
        ]
        found.sort(key=lambda some: (min(2, len(some)), some[0][1].checkpoint.height))
        for some in reversed(found):
            yield from some

    def by(self, checkpoint: bytes) -> set[str]:
        """Return who offers the state of a checkpoint."""
        return self._by_id.get(checkpoint, {}).keys() & set(self._peers())

    def forget(self, peer: str) -> None:
        """Let what a peer offers count no more, until it is asked again."""
        for peers in self._by_id.values():
            peers.pop(peer, None)
        self._by_id = {id: peers for id, peers in self._by_id.items() if peers}

    def distrust(self, peer: str) -> None:
        """Likewise, and do not ask it for a while."""
        self.forget(peer)
        self._asked[peer] = trio.current_time() + LIAR_S - AGAIN_S

    def clear(self) -> None:
        """Forget all."""
        self._by_id.clear()
