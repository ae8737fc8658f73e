"""One sequence: its pinned versions, its trunk, its cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import trio
from torch import Tensor

from blyan_tile.model.cache import KeyValueCache
from blyan_tile.model.transformer import PREFILL_TOKENS, Trunk
from blyand.compute import Threads
from blyand.errors import NotHere, StaleVersion
from blyand.inference.call import most_rows
from blyand.inference.passes import Pass, run_pass
from blyand.inference.pins import Heads, Pins
from blyand.inference.scatter import PAUSE_S, Scatter, Tally
from blyand.inference.trunks import Trunks
from blyand.inference.versions import Versions
from blyand.rules.model.heads import Which

R = TypeVar("R")


@dataclass(frozen=True)
class Parts:
    """What every session of this node shares."""

    pins: Pins
    trunks: Trunks
    versions: Versions
    scatter: Scatter
    lane: Threads


class Session:
    """Tokens in, logits out, at one checkpoint (DEC-B8). A context manager.

    When a version is no longer served anywhere and a newer one is final, the session
    begins again there with the same tokens, and counts it in `tally.repinned`.
    """

    def __init__(
        self,
        parts: Parts,
        model: bytes,
        capacity: int,
        deadline_s: float,
        which: Which = Which.ADOPTED,
    ) -> None:
        """Pin the newest `which` heads. `capacity` in tokens; `deadline_s`: trio time.

        NotHere when the model has no weights yet.
        """
        self.tally = Tally()
        self.heads: Heads
        self._parts = parts
        self._model = model
        self._capacity = capacity
        self._deadline_s = deadline_s
        self._which = which
        self._fed: list[int] = []
        self._trunk: Trunk | None = None
        self._cache: KeyValueCache | None = None
        self._pinned = ExitStack()
        self._pin()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self._pinned.close()

    async def feed(self, tokens: Sequence[int], choose: Callable[[np.ndarray], R]) -> R:
        """Add tokens, at least one, to the sequence; return choose(logits (V,)).

        `choose` runs in the lane, on the logits of the last token. NoRoute, NotHere and
        TooSlow; LimitExceeded above the capacity.
        """
        while True:
            try:
                made = await self._run(tokens, choose)
                self._fed.extend(tokens)
                return made
            except StaleVersion:
                self._pin()
                self.tally.repinned += 1
                tokens, self._fed = [*self._fed, *tokens], []

    async def _run(self, tokens: Sequence[int], choose: Callable[[np.ndarray], R]) -> R:
        lane = self._parts.lane
        if self._trunk is None or self._cache is None:
            self._trunk = await self._own_trunk()
            self._cache = await lane.run(self._trunk.new_cache, self._capacity)
        run = Pass(
            heads=self.heads,
            trunk=self._trunk,
            cache=self._cache,
            tally=self.tally,
            deadline_s=self._deadline_s,
            is_stale=partial(self._parts.pins.is_newer, self.heads, self._which),
        )
        size = min(PREFILL_TOKENS, most_rows(self.heads.architecture.width))  # DEC-S4
        ids = np.array(tokens, np.int64)  # (T,)
        done = self._cache.tokens
        last = (len(ids) - 1) // size * size  # where the last chunk starts

        def finish(trunk: Trunk, hidden: Tensor) -> R:
            return choose(trunk.logits(hidden[-1]).float().cpu().numpy())

        try:
            for start in range(0, last, size):
                chunk = ids[start : start + size]
                await run_pass(self._parts.scatter, lane, run, chunk, _nothing)
            return await run_pass(self._parts.scatter, lane, run, ids[last:], finish)
        except BaseException:
            self._cache.rewind(done)  # so that the same tokens can be fed again
            raise

    async def _own_trunk(self) -> Trunk:
        """Return the trunk of the pinned heads. NotHere after some patience.

        A checkpoint may adopt what this node, behind the others, still recomputes.
        """
        patience_s = trio.current_time() + self._parts.scatter.patience_s
        give_up_s = min(patience_s, self._deadline_s)
        while True:
            try:
                return await self._parts.lane.run(self._parts.trunks.get, self.heads)
            except NotHere:
                if trio.current_time() >= give_up_s:
                    raise
            await trio.sleep(PAUSE_S)

    def _pin(self) -> None:
        heads = self._parts.pins.newest(self._model, self._which)
        kept = ExitStack()
        kept.enter_context(self._parts.versions.pinned(zip(heads.roots, heads.tiles)))
        self._pinned.close()
        self._pinned = kept
        self.heads, self._trunk, self._cache = heads, None, None


def _nothing(trunk: Trunk, hidden: Tensor) -> None:
    """Only the cache of an earlier chunk is wanted."""
