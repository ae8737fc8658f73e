"""The states that newcomers take from this node: frozen at the same heights everywhere.

All nodes freeze at multiples of `EVERY`, so that a newcomer finds one state at several of
them. What was frozen costs little: LevelDB keeps old values for as long as it is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.state import StateManifest, StatePart
from blyand.compute import Threads
from blyand.errors import NotHere, Pruned
from blyand.events import Broadcast, CheckpointFinalised

EVERY = 32  # checkpoints
KEPT = 2  # states that nobody takes
USED = 8  # older ones that somebody still takes
USED_S = 60.0  # since when somebody did


class Frozen(Protocol):
    """A state that no longer changes: store.frozen.Frozen. `part` blocks."""

    @property
    def height(self) -> int: ...

    @property
    def manifest(self) -> StateManifest: ...

    def part(self, chunk: int, after: bytes | None) -> StatePart: ...


@dataclass
class Offer:
    """One state that is given."""

    final: FinalCheckpoint
    frozen: Frozen
    used_s: float


class Donor:
    """Freezes states, and gives their parts."""

    def __init__(
        self,
        freeze: Callable[[], Frozen],
        at: Callable[[int], FinalCheckpoint | None],
        events: Broadcast,
        lane: Threads,
        every: int = EVERY,
    ) -> None:
        """`freeze()` returns the executed state as it stands; `at` its checkpoint."""
        self._freeze, self._at = freeze, at
        self._events, self._lane, self._every = events, lane, every
        self._offers: list[Offer] = []  # the newest last
        self._extra: list[Offer] = []  # of other heights, as somebody asked for them

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Freeze at every height that counts."""
        with self._events.subscribe(CheckpointFinalised, capacity=256) as facts:
            task_status.started()
            async for fact in facts:
                if fact.final.checkpoint.height % self._every == 0:
                    self._add()

    def offers(self, at_least: int) -> Sequence[FinalCheckpoint]:
        """Return the checkpoints as of which a state is ready, the newest first.

        One of now is made ready when there is none of that height or above.
        """
        if not any(one.frozen.height >= at_least for one in self._all()):
            made = self._made()
            if made is not None and made.frozen.height >= at_least:
                self._extra = [*_used(self._extra)[-1:], made]
        finals = [one.final for one in (*self._offers[-KEPT:], *self._extra)]
        return sorted(finals, key=lambda final: -final.checkpoint.height)

    def manifest(self, checkpoint: bytes) -> StateManifest:
        """Return the hashes of a state's chunks. NotHere, Pruned."""
        return self._offer(checkpoint).frozen.manifest

    async def part(
        self, checkpoint: bytes, chunk: int, after: bytes | None
    ) -> StatePart:
        """Return the next pairs of a chunk. NotHere, Pruned."""
        offer = self._offer(checkpoint)
        if after is not None and after[0] != chunk:
            raise NotHere("a path of another chunk")
        try:
            return await self._lane.run(offer.frozen.part, chunk, after)
        except NotHere:
            for offers in (self._offers, self._extra):
                offers[:] = [one for one in offers if one is not offer]
            raise

    def _all(self) -> list[Offer]:
        return [*self._offers, *self._extra]

    def _offer(self, checkpoint: bytes) -> Offer:
        for offer in self._all():
            if offer.final.checkpoint.id == checkpoint:
                offer.used_s = trio.current_time()
                return offer
        raise Pruned("that state is not kept any more; ask for a newer one")

    def _add(self) -> None:
        made = self._made()
        if made is not None:
            older, newer = self._offers[: 1 - KEPT], self._offers[1 - KEPT :]
            self._offers = [*_used(older)[-USED:], *newer, made]

    def _made(self) -> Offer | None:
        """Return an offer of the state as it stands, None where there is one."""
        frozen = self._freeze()
        final = self._at(frozen.height)
        if final is None or frozen.height in {one.frozen.height for one in self._all()}:
            return None
        return Offer(final, frozen, -USED_S)


def _used(offers: Sequence[Offer]) -> list[Offer]:
    now = trio.current_time()
    return [one for one in offers if now - one.used_s < USED_S]
