"""Blocks by id from several peers at once: who is asked for what, and who no more.

Every wanted block is asked of one peer at a time, of another once it was refused, and of
a second one beside the first when that is slow. What arrives is kept, within a bound,
until it is taken; so two parts of this node never fetch the same block. Bounds: exchanges
in all and of one peer, ids of an exchange, wanted ids, bytes not yet taken.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.constants import KIB, MIB
from blyan_proto.errors import ProtocolError
from blyand.errors import TooSlow, Unavailable
from blyand.rules.chain.limits import size_of
from blyand.rules.chain.reconcile import Comparison, IdSet

logger = logging.getLogger(__name__)

MAX_ASKED = 128  # ids of one exchange
MIN_ASKED = 8  # fewer are not spread over several peers
TURNS = 4  # in which peers of one speed would be through: the faster ones do more
MAX_EXCHANGES = 16
EXCHANGES_PER_PEER = 2  # one travels while the other is taken in; servers allow four
SMALL_ANSWER_BYTES = 64 * KIB  # a whole one that leaves something out is larger
MAX_WANTED = 20_000
MAX_HELD_BYTES = 32 * MIB  # arrived and not taken
HEDGE_S = 5.0  # after which a second peer is asked for the same block
RETRY_S = 2.0  # until a peer is asked again for what it did not have
BUSY_S = 1.0  # a peer that is busy, or cannot, rests; each time in a row twice as long
STALLED_S = 10.0  # likewise one that fell silent
LIAR_S = 60.0
MAX_REST_S = 60.0


class Given(Protocol):
    """What a peer gave: of the first `answered` ids what is not here is absent there."""

    blocks: list[Block]
    pruned: list[bytes]
    answered: int


class Shown(Protocol):
    """Finalised checkpoints that a peer showed, and its newest height, a claim."""

    @property
    def newest(self) -> int: ...

    @property
    def checkpoints(self) -> Sequence[FinalCheckpoint]: ...


@dataclass(frozen=True)
class Remote:
    """What following needs of the network."""

    peers: Callable[[], Sequence[str]]
    archives: Callable[[], Iterable[str]]  # those of them that prune nothing
    checkpoints: Callable[[str, int], Awaitable[Shown]]
    blocks: Callable[[str, Sequence[bytes]], Awaitable[Given]]
    compare: Callable[[str, IdSet, int], Awaitable[Comparison]]
    blame: Callable[[str, Exception], None]


@dataclass
class Want:
    """One block that is to be fetched."""

    holders: set[str] | None  # who showed that they have it; None: anybody may
    asked: dict[str, float] = field(default_factory=dict)  # peer -> since when
    refused: dict[str, float] = field(default_factory=dict)  # peer -> until when
    pruned: set[str] = field(default_factory=set)  # peers that keep it no more


class Swarm:
    """Fetches wanted blocks."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._wanted: dict[bytes, Want] = {}  # the most urgent first
        self._arrived: dict[bytes, tuple[Block, str]] = {}
        self._taken: set[bytes] = set()  # arrived, and being stored
        self._held_bytes = 0
        self._running: Counter[str] = Counter()
        self._resting: dict[str, tuple[float, float]] = {}  # peer -> until, how long
        self._wake = trio.Event()
        self.changed = (
            trio.Event()
        )  # set, and replaced, when something arrived or failed
        self.blocks = self.bytes = 0  # fetched so far
        self.gave: Counter[str] = Counter()  # blocks by peer

    # What others want

    def want(self, ids: Iterable[bytes], holders: Iterable[str] | None = None) -> None:
        """Fetch these, in this order; of `holders` only, unless it is None."""
        among = None if holders is None else set(holders)
        for id in ids:
            if id in self._arrived or id in self._taken:
                continue
            want = self._wanted.get(id)
            if want is None:
                if len(self._wanted) < MAX_WANTED:
                    self._wanted[id] = Want(None if among is None else set(among))
            elif among is None:
                want.holders = None
            elif want.holders is not None:
                want.holders |= among
        self._wake.set()

    def forget(self, ids: Iterable[bytes], *, among_holders: bool = False) -> None:
        """Want these no more; with `among_holders` only those not wanted of anybody."""
        for id in ids:
            want = self._wanted.get(id)
            if want is not None and among_holders and want.holders is None:
                continue
            self._wanted.pop(id, None)
            self._taken.discard(id)
            if (found := self._arrived.pop(id, None)) is not None:
                self._held_bytes -= size_of(found[0])
        self._wake.set()

    def knows(self, id: bytes) -> bool:
        """True while a block is wanted, or here and not stored."""
        return id in self._wanted or id in self._arrived or id in self._taken

    def look(self, id: bytes) -> tuple[Block, str] | None:
        """Return a block that arrived, and who gave it."""
        return self._arrived.get(id)

    def take(self, ids: Iterable[bytes]) -> None:
        """Let nobody else have, or fetch, these until they are stored and forgotten."""
        for id in ids:
            self._held_bytes -= size_of(self._arrived.pop(id)[0])
            self._taken.add(id)
        self._wake.set()

    def refuse(self, peer: str, error: Exception) -> None:
        """Blame a peer for a block that it gave; others are asked for a while."""
        self._remote.blame(peer, error)
        self._rest(peer, LIAR_S)

    def poke(self) -> None:
        """Wake those who wait for `changed`."""
        self.changed.set()
        self.changed = trio.Event()

    def hopeless(self, ids: Iterable[bytes]) -> set[bytes]:
        """Return those wanted blocks that no peer which may have them gives just now."""
        now, peers = trio.current_time(), self._remote.peers()
        found = set()
        for id in ids:
            want = self._wanted.get(id)
            if want is None or want.asked:
                continue
            among = [p for p in peers if want.holders is None or p in want.holders]
            if all(self._is_refused(want, peer, now) for peer in among):
                found.add(id)
        return found

    def pruned_at(self, id: bytes) -> int:
        """Return how many connected peers keep the payload of a wanted block no more."""
        want = self._wanted.get(id)
        return len(want.pruned & set(self._remote.peers())) if want else 0

    async def ancestors(self, peer: str, ids: Sequence[bytes]) -> Sequence[Block]:
        """Return blocks of a peer; what is on its way already is left out."""
        rest = [id for id in ids if not self.knows(id)]
        return (await self._remote.blocks(peer, rest)).blocks if rest else ()

    @property
    def is_full(self) -> bool:
        """True when nothing more is fetched before some of what arrived is taken."""
        return self._held_bytes >= MAX_HELD_BYTES

    @property
    def active(self) -> int:
        """How many peers are being asked."""
        return len(self._running)

    # Fetching

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep every able peer busy while something is wanted."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                while self._start_some(nursery):
                    pass
                with trio.move_on_after(RETRY_S / 2 if self._wanted else RETRY_S):
                    await self._wake.wait()

    def _start_some(self, nursery: trio.Nursery) -> bool:
        """Begin at most one exchange with every able peer; False when there was none."""
        if not self._wanted or self.is_full:
            return False
        now = trio.current_time()
        able = [peer for peer in self._remote.peers() if self._is_able(peer, now)]
        idle = sum(not want.asked for want in self._wanted.values())
        share = idle // max(1, len(able) * TURNS) + 1
        began = False
        for peer in sorted(able, key=lambda p: (self._running[p], self.gave[p])):
            if self._running.total() >= MAX_EXCHANGES:
                break
            ids = self._pick(peer, min(MAX_ASKED, max(MIN_ASKED, share)), now)
            if ids:
                self._running[peer] += 1
                nursery.start_soon(self._exchange, peer, ids)
                began = True
        self._running = +self._running
        return began

    def _is_able(self, peer: str, now: float) -> bool:
        until, _ = self._resting.get(peer, (0.0, 0.0))
        return now >= until and self._running[peer] < EXCHANGES_PER_PEER

    def _is_refused(self, want: Want, peer: str, now: float) -> bool:
        return peer in want.pruned or want.refused.get(peer, 0.0) > now

    def _pick(self, peer: str, most: int, now: float) -> list[bytes]:
        """Return what this peer is to be asked for next, and note that it is asked."""
        archives = set(self._remote.archives())
        picked: list[bytes] = []
        for id, want in self._wanted.items():
            if len(picked) == most:
                break
            if peer in want.asked:
                continue
            if want.holders is not None and peer not in want.holders:
                continue
            if self._is_refused(want, peer, now):
                continue
            if want.pruned and archives - want.pruned and peer not in archives:
                continue  # an archive has it for certain
            if want.asked and not self._is_slow(want, now):
                continue
            want.asked[peer] = now
            picked.append(id)
        return picked

    def _is_slow(self, want: Want, now: float) -> bool:
        return len(want.asked) == 1 and now - max(want.asked.values()) >= HEDGE_S

    async def _exchange(self, peer: str, ids: list[bytes]) -> None:
        try:
            got = await self._remote.blocks(peer, ids)
        except Unavailable as error:
            logger.debug("%s gave no blocks: %s", peer, error)
            self._rest(peer, STALLED_S if isinstance(error, TooSlow) else BUSY_S)
        except ProtocolError as error:
            logger.info("%s gave other blocks than asked for: %s", peer, error)
            self._remote.blame(peer, error)
            self._rest(peer, LIAR_S)
        else:
            self._note(peer, ids, got)
            if got.answered and not got.blocks and not got.pruned:
                self._resting[peer] = trio.current_time() + RETRY_S, 0.0
            elif sum(map(size_of, got.blocks)) < SMALL_ANSWER_BYTES * (
                got.answered < len(ids)
            ):
                self._rest(peer, STALLED_S)  # it stopped in the middle
            else:
                self._resting.pop(peer, None)
        finally:
            self._running[peer] -= 1
            self._running = +self._running
            for id in ids:
                if id in self._wanted:
                    self._wanted[id].asked.pop(peer, None)
            self._wake.set()
            self.poke()

    def _note(self, peer: str, ids: list[bytes], got: Given) -> None:
        given = {block.id: block for block in got.blocks}
        for id in ids[: got.answered]:
            want = self._wanted.get(id)
            if want is None:
                continue  # it came another way
            if id in given:
                del self._wanted[id]
                self._arrived[id] = given[id], peer
                self._held_bytes += size_of(given[id])
                self.bytes += size_of(given[id])
                self.blocks += 1
                self.gave[peer] += 1
            elif id in got.pruned:
                want.pruned.add(peer)
            else:
                want.refused[peer] = trio.current_time() + RETRY_S

    def _rest(self, peer: str, span_s: float) -> None:
        """Ask a peer for nothing for a while, twice as long as the last time in a row."""
        connected = set(self._remote.peers())
        self._resting = {p: r for p, r in self._resting.items() if p in connected}
        until, last_s = self._resting.get(peer, (0.0, 0.0))
        now = trio.current_time()
        if until <= now:  # not another exchange of the same moment
            last_s *= 2
        span_s = min(MAX_REST_S, max(span_s, last_s))
        self._resting[peer] = now + span_s, span_s
