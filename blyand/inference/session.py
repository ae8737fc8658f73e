"""One sequence: its pinned versions, its path through the layers, its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import trio
from torch import Tensor

from blyan_proto.protocols.expert import Numerics
from blyan_tile.model.cache import cache_bytes
from blyan_tile.model.transformer import PREFILL_TOKENS, Trunk
from blyand.compute import Threads
from blyand.errors import NotHere, StaleVersion
from blyand.inference.call import most_rows
from blyand.inference.passes import Pass
from blyand.inference.pins import Pins
from blyand.inference.room import Room
from blyand.inference.runs import Choose, Runs
from blyand.inference.scatter import PAUSE_S, Scatter, Tally
from blyand.inference.stages import (
    ExpertStage,
    LocalStage,
    Stage,
    choose_rows,
    local_or_expert,
)
from blyand.inference.trunks import Trunks
from blyand.inference.versions import Versions
from blyand.rules.model.heads import Which

R = TypeVar("R")
HERE = LocalStage, ExpertStage  # take ids, and choose on logits


@dataclass(frozen=True)
class Parts:
    """What every session of this node shares."""

    pins: Pins
    trunks: Trunks
    versions: Versions
    scatter: Scatter
    runs: Runs
    room: Room
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
        numerics: Numerics | None = None,
    ) -> None:
        """Pin the newest `which` heads. `capacity` in tokens; `deadline_s`: trio time.

        `numerics`: of calls to peers; None: the node's.

        NotHere when the model has no weights yet; Busy when there is no memory for
        `capacity` keys and values.
        """
        self.tally = Tally()
        self._parts = parts
        self._model = model
        self._capacity = capacity
        self._deadline_s = deadline_s
        self._which = which
        self._numerics = numerics
        self._fed: list[int] = []
        self._pinned = ExitStack()
        self._trunk: Trunk | None = None
        self._path: list[Stage] | None = None
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
        (made,) = await self.feed_each(
            tokens, lambda row, logits: choose(logits), len(tokens) - 1
        )
        result: R = made
        return result

    async def feed_each(
        self, tokens: Sequence[int], choose: Choose, from_row: int
    ) -> list[Any]:
        """Add tokens; return choose(row, logits (V,)) of each from `from_row` on.

        When the session has to begin again, `choose` is called again from the first.
        Otherwise like `feed`.
        """
        again = 0  # tokens of an earlier feed in front of these
        while True:
            all_tokens = [*self._fed, *tokens] if again else tokens
            try:
                made = await self._run(
                    all_tokens,
                    lambda row, logits: choose(row - again, logits),
                    from_row + again,
                )
                break
            except StaleVersion:
                self._pin()
                self.tally.repinned += 1
                again = len(self._fed)
        self._fed.extend(tokens)
        return made

    async def _run(
        self, tokens: Sequence[int], choose: Choose, from_row: int
    ) -> list[Any]:
        if self._path is None:
            self._path = await self._begin()
        ids = torch.tensor(tokens, dtype=torch.int64)  # (T,)
        size = min(PREFILL_TOKENS, most_rows(self.heads.architecture.width))  # DEC-S4
        chosen: list[Any] = []
        for start in range(0, len(ids), size):
            chunk = ids[start : start + size]
            made = await self._through(
                chunk,
                len(self._fed) + start,
                lambda row, logits: choose(start + row, logits),
                max(0, from_row - start),
            )
            chosen += made
        return chosen

    async def _through(
        self, x: Tensor, position: int, choose: Choose, from_row: int
    ) -> list[Any]:
        """One chunk through all stages. x (T,) int64."""
        assert self._path is not None and self._trunk is not None
        *before, last = self._path
        if not isinstance(self._path[0], HERE):
            x = await self._parts.lane.run(self._trunk.embed, x)  # (T, d)
        for stage in before:
            x = await stage.run(x, position)  # (T, d)
        if isinstance(last, HERE):
            return await last.choose(x, position, choose, from_row)
        x = await last.run(x, position)  # (T, d)
        return await self._parts.lane.run(choose_rows, self._trunk, x, choose, from_row)

    async def _begin(self) -> list[Stage]:
        """Return the path, its caches empty."""
        parts = self._parts
        self._trunk = await self._own_trunk()
        cache = self._trunk.new_cache(self._capacity)
        run = Pass(
            heads=self.heads,
            trunk=self._trunk,
            cache=cache,
            tally=self.tally,
            deadline_s=self._deadline_s,
            is_stale=partial(parts.pins.is_newer, self.heads, self._which),
            numerics=self._numerics,
        )
        path: list[Stage] = []
        for leg in self._legs:
            experts = ExpertStage(parts.scatter, parts.lane, run, leg.first, leg.end)
            if leg.is_local:
                path.append(LocalStage(parts.runs, run, parts.scatter.me, experts))
            else:
                path.append(experts)
        return path

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
        parts = self._parts
        heads = parts.pins.newest(self._model, self._which)
        legs = local_or_expert(heads, parts.scatter.held(self._model))
        layers = sum(leg.end - leg.first for leg in legs)
        size = cache_bytes(heads.architecture, self._capacity, layers)
        with ExitStack() as kept:
            kept.enter_context(parts.versions.pinned(zip(heads.roots, heads.tiles)))
            self._pinned.close()
            kept.enter_context(parts.room.take(size))
            self._pinned = kept.pop_all()
        self.heads, self._legs = heads, legs
        self._trunk, self._path = None, None
