"""One sequence: its pinned versions, its trunk, its cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from blyan_tile.model.cache import KeyValueCache
from blyan_tile.model.transformer import PREFILL_TOKENS, Trunk
from blyand.compute import Threads
from blyand.errors import StaleVersion
from blyand.inference.call import most_rows
from blyand.inference.passes import Pass, run_pass
from blyand.inference.pins import Heads, Pins
from blyand.inference.scatter import Scatter, Tally
from blyand.inference.trunks import Trunks
from blyand.inference.versions import Versions
from blyand.rules.model.heads import Which


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

    async def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Add tokens, at least one, to the sequence; return the last one's logits (V,).

        NoRoute, NotHere and TooSlow; LimitExceeded above the capacity.
        """
        while True:
            try:
                logits = await self._run(tokens)
                self._fed.extend(tokens)
                return logits
            except StaleVersion:
                self._pin()
                self.tally.repinned += 1
                tokens, self._fed = [*self._fed, *tokens], []

    async def _run(self, tokens: Sequence[int]) -> np.ndarray:
        lane = self._parts.lane
        if self._trunk is None or self._cache is None:
            self._trunk = await lane.run(self._parts.trunks.get, self.heads)
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
        try:
            for start in range(0, len(ids), size):
                chunk = ids[start : start + size]
                last = start + size >= len(ids)
                made = await run_pass(
                    self._parts.scatter, lane, run, chunk, _logits if last else _none
                )
        except BaseException:
            self._cache.rewind(done)  # so that the same tokens can be fed again
            raise
        return made

    def _pin(self) -> None:
        heads = self._parts.pins.newest(self._model, self._which)
        kept = ExitStack()
        kept.enter_context(self._parts.versions.pinned(zip(heads.roots, heads.tiles)))
        self._pinned.close()
        self._pinned = kept
        self.heads, self._trunk, self._cache = heads, None, None


def _logits(trunk: Trunk, hidden: Tensor) -> np.ndarray:
    return trunk.logits(hidden[-1]).float().cpu().numpy()  # (V,)


def _none(trunk: Trunk, hidden: Tensor) -> np.ndarray:
    return np.empty(0, np.float32)
