"""Keys and values that outlive their answer, for a prompt that begins alike.

A conversation sends its past again with every turn; what is kept of the last turn is not
computed again. Kept per owner only, so that nobody learns from the speed of an answer what
somebody else asked (DEC-S2), and per version of the model and numerics (DEC-B8). Reuse
does not change an answer: a token's bits do not depend on how its prompt was cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blyan_tile.model.cache import KeyValueCache
from blyand.compute import Threads
from blyand.errors import Busy
from blyand.inference.room import Room
from blyand.metrics import Metrics

LEAST_TOKENS = 16  # fewer are computed as fast as they are copied
MAX_KEPT = 256  # of all owners
MAX_OF_OWNER = 32


@dataclass(frozen=True)
class Name:
    """Whose tokens were computed with what."""

    owner: bytes  # an API key's digest, a peer; never empty
    version: bytes  # of all the model's groups (`Heads.version`)
    numerics: int


@dataclass(frozen=True)
class _Kept:
    name: Name
    tokens: np.ndarray  # (T,) int64
    cache: KeyValueCache
    size: int  # bytes claimed


class Prefixes:
    """Caches of sequences that have ended, least recently used first to go.

    They take only room that nobody else wants. Use it from the loop only.
    """

    def __init__(self, room: Room, lane: Threads, metrics: Metrics) -> None:
        self._room = room
        self._lane = lane
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._count = 0
        self._bytes = 0
        self._hits = metrics.counter("inference_prefix_hits")
        self._misses = metrics.counter("inference_prefix_misses")
        self._reused = metrics.counter("inference_prefix_tokens")
        self._evictions = metrics.counter("inference_prefix_evictions")
        self._gauge = metrics.gauge("inference_prefix_bytes")
        room.spares(self._drop)

    async def recall(
        self, name: Name, tokens: Sequence[int], cache: KeyValueCache
    ) -> int:
        """Fill an empty cache with what is kept of `tokens`; return how many."""
        if len(tokens) < LEAST_TOKENS:
            return 0
        wanted = np.array(tokens, np.int64)  # (T,)
        best, length = None, LEAST_TOKENS - 1
        for key, kept in self._kept.items():
            if kept.name == name and len(kept.tokens) > length:
                alike = _alike(kept.tokens, wanted)
                if alike > length and kept.cache.keeps(alike):
                    best, length = key, alike
        if best is None:
            self._misses.add()
            return 0
        self._kept.move_to_end(best)
        await self._lane.run(cache.copy, self._kept[best].cache, length)
        self._hits.add()
        self._reused.add(length)
        return length

    def keep(self, name: Name, tokens: Sequence[int], cache: KeyValueCache) -> None:
        """Take over the cache of a sequence that has ended, if there is room for it."""
        ids = np.array(tokens, np.int64)  # (T,)
        if len(ids) < LEAST_TOKENS or cache.tokens < len(ids):
            return
        for key, kept in list(self._kept.items()):
            if kept.name == name and _alike(kept.tokens, ids) == len(kept.tokens):
                self._forget(key)  # the new one begins with it
        cache.visits = None
        size = cache.bytes
        try:
            self._room.claim(size)
        except Busy:
            return
        self._count += 1
        self._kept[self._count] = _Kept(name, ids, cache, size)
        self._book(size)
        own = [key for key, kept in self._kept.items() if kept.name.owner == name.owner]
        for key in own[:-MAX_OF_OWNER] or list(self._kept)[:-MAX_KEPT]:
            self._forget(key)

    def _drop(self, size: int) -> None:
        """Give back at least `size` bytes, or all there is."""
        freed = 0
        while self._kept and freed < size:
            oldest = next(iter(self._kept))
            freed += self._kept[oldest].size
            self._forget(oldest)
            self._evictions.add()

    def _forget(self, key: int) -> None:
        size = self._kept.pop(key).size
        self._room.release(size)
        self._book(-size)

    def _book(self, size: int) -> None:
        self._bytes += size
        self._gauge.set(self._bytes)


def _alike(left: np.ndarray, right: np.ndarray) -> int:
    """Return how many first tokens of both are the same."""
    shorter = min(len(left), len(right))
    differing = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(differing[0]) if len(differing) else shorter
