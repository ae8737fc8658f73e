"""Getting blobs: who asks for which, and which are fetched next; once for all who ask.

How one blob comes from its donors is `gather`'s. In the background, what fewest peers
are known to have comes first, so that it is not lost with them.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from blyand.compute import Threads
from blyand.errors import NotHere, Pruned, Unavailable
from blyand.metrics import Metrics
from blyand.protocols.blobs import Client
from blyand.protocols.gather import Gathering
from blyand.rules.net.candidates import Candidates
from blyand.rules.net.swarm import Out
from blyand.store.blobs import BlobStore

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 8  # blobs under way for those who wait for them
MAX_WANTED_AT_ONCE = 16  # blobs under way in the background
MAX_WANTED_PER_HINT = 4  # of them named by one author: nobody's take all the places
WEIGHED = 32  # wants of one author that are compared by rarity
UNKNOWN = 2  # providers of a blob of which nothing is known here
WANTED_AGAIN_S = 2.0  # a wanted blob that nobody had is tried again after this
PRUNED_AGAIN_S = 30.0  # one that peers dropped for good
WANTED_S = 60.0  # a want that nobody renews is given up
COOL_OFF_S = 60.0  # a peer that let us wait goes last for this long
MAX_SLOW = 1024


@dataclass
class _Fetch:
    """A blob under way."""

    over: trio.Event
    asked: dict[str, Out] = field(default_factory=dict)  # peers that did not give it


@dataclass
class _Want:
    """A blob that is fetched in the background."""

    hints: tuple[str, ...]
    renewed_s: float
    again_s: float = 0.0  # not before
    tries: int = 0
    is_under_way: bool = False


async def _nobody(blob: bytes) -> Sequence[str]:
    return ()


def _unknown(blob: bytes) -> int:
    return 0


class Fetcher:
    """Fetches blobs into the store. Verified leaf by leaf; resumes what was begun."""

    def __init__(
        self,
        client: Client,
        blobs: BlobStore,
        lane: Threads,
        peers: Callable[[], Sequence[str]],
        elsewhere: Callable[[bytes], Awaitable[Sequence[str]]] = _nobody,
        providers: Callable[[bytes], int] = _unknown,
        metrics: Metrics | None = None,
    ) -> None:
        """`elsewhere(blob)` finds and connects others where no connected peer has it.

        `providers(blob)`: how many are known here to have it, without asking anybody.
        """
        self._client = client
        self._blobs = blobs
        self._lane = lane
        self._peers = peers
        self._elsewhere, self._providers = elsewhere, providers
        self._metrics = metrics or Metrics()
        self._under_way: dict[bytes, _Fetch] = {}
        self._limit = trio.CapacityLimiter(MAX_AT_ONCE)
        self._wanted: dict[bytes, _Want] = {}
        self._slow: dict[str, float] = {}  # peer -> when it let us wait
        self._wake = trio.Event()

    @property
    def wanted(self) -> int:
        """How many blobs are asked for in the background."""
        return len(self._wanted)

    @property
    def under_way(self) -> int:
        """How many blobs are being fetched."""
        return len(self._under_way)

    async def get(
        self,
        blob: bytes,
        hints: Sequence[str] = (),
        *,
        durable: bool = True,
        most_bytes: int | None = None,
        only: bool = False,
    ) -> None:
        """Return when the blob is in the store; `hints` are asked first.

        `only`: and nobody else is. NotHere when neither they nor any connected peer, nor one that the directory
        knows, gave all of it, or when it has more than `most_bytes` of data. Pruned
        when some of them had dropped it, Busy when they let us wait for too long.
        """
        if not self._blobs.has(blob) and blob not in self._under_way:
            async with self._limit:
                await self._get(blob, hints, durable, most_bytes, only)
        else:
            await self._get(blob, hints, durable, most_bytes, only)

    async def _get(
        self,
        blob: bytes,
        hints: Sequence[str],
        durable: bool,
        most_bytes: int | None = None,
        only: bool = False,
    ) -> None:
        """Fetch a blob, or wait for a fetch of it that is under way."""
        while not self._blobs.has(blob):
            other = self._under_way.get(blob)
            if other is None:
                fetch = self._under_way[blob] = _Fetch(trio.Event())
                try:
                    await self._from_anyone(
                        blob, hints, durable, most_bytes, only, fetch
                    )
                finally:
                    del self._under_way[blob]
                    fetch.over.set()
                return
            await other.over.wait()
            # It may have been cancelled, and may not have asked those that we would.
            asked = {*hints} if only else {*hints, *self._peers()}
            if other.asked.keys() >= asked and not self._blobs.has(blob):
                raise NotHere(f"no peer gave blob {blob.hex()[:16]}")

    def want(self, blob: bytes, hints: Sequence[str] = ()) -> None:
        """Ask for a blob without waiting; the service keeps trying while it is asked."""
        now = trio.current_time()
        known = self._wanted.get(blob)
        if known is not None:
            known.renewed_s = now
        elif not self._blobs.has(blob):
            self._wanted[blob] = _Want(tuple(hints), now)
            self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Fetch what was wanted; no fetch waits for another's peer."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                for blob in self._next_wanted():
                    self._wanted[blob].is_under_way = True
                    nursery.start_soon(self._try, blob)
                with trio.move_on_after(WANTED_AGAIN_S):
                    await self._wake.wait()

    def _next_wanted(self) -> list[bytes]:
        """Return the blobs to begin with now: some of every author."""
        now = trio.current_time()
        for blob, want in list(self._wanted.items()):
            if now - want.renewed_s > WANTED_S and not want.is_under_way:
                del self._wanted[blob]
        under_way = Counter(w.hints for w in self._wanted.values() if w.is_under_way)
        begun = []
        for blob, want in self._ripe(now):
            if under_way.total() >= MAX_WANTED_AT_ONCE:
                break
            if under_way[want.hints] < MAX_WANTED_PER_HINT:
                under_way[want.hints] += 1
                begun.append(blob)
        return begun

    def _ripe(self, now: float) -> list[tuple[bytes, _Want]]:
        """Return what may begin: the least tried first, of those the rarest, the oldest."""
        of_author: defaultdict[tuple[str, ...], list[tuple[bytes, _Want]]]
        of_author = defaultdict(list)
        for blob, want in self._wanted.items():
            if not want.is_under_way and want.again_s <= now:
                of_author[want.hints].append((blob, want))
        ripe = (
            one
            for wants in of_author.values()
            for one in heapq.nsmallest(WEIGHED, wants, key=lambda one: one[1].tries)
        )

        def rank(one: tuple[bytes, _Want]) -> tuple[int, int]:
            return one[1].tries, self._providers(one[0]) or UNKNOWN

        return sorted(ripe, key=rank)

    async def _try(self, blob: bytes) -> None:
        want = self._wanted[blob]
        want.tries += 1
        try:
            await self._get(blob, want.hints, durable=True)
            del self._wanted[blob]
        except Unavailable as error:
            logger.debug("still without blob %s: %s", blob.hex()[:16], error)
            wait_s = PRUNED_AGAIN_S if isinstance(error, Pruned) else WANTED_AGAIN_S
            want.again_s = trio.current_time() + wait_s
        finally:
            want.is_under_way = False
            self._wake.set()

    async def _from_anyone(
        self,
        blob: bytes,
        hints: Sequence[str],
        durable: bool,
        most_bytes: int | None,
        only: bool,
        fetch: _Fetch,
    ) -> None:
        gathering = Gathering(
            blob,
            self._client,
            self._blobs,
            self._lane,
            self._metrics,
            self._let_us_wait,
            most_bytes,
        )
        fetch.asked = gathering.swarm.out
        told = [peer for peer in hints if not self._is_slow(peer)]
        # Stable: hints before the others.
        others = sorted(hints if only else (*hints, *self._peers()), key=self._is_slow)
        elsewhere = _nobody if only else self._elsewhere
        await gathering.run(Candidates(told, others), elsewhere, durable)

    def _is_slow(self, peer: str) -> bool:
        since = self._slow.get(peer)
        return since is not None and trio.current_time() - since < COOL_OFF_S

    def _let_us_wait(self, peer: str) -> None:
        self._slow.pop(peer, None)
        self._slow[peer] = trio.current_time()
        if len(self._slow) > MAX_SLOW:
            del self._slow[next(iter(self._slow))]
