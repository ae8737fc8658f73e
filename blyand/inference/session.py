"""One sequence: its pinned versions, its path through the layers, its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import trio

from blyan_proto.protocols.expert import Numerics
from blyan_tile.model.transformer import Trunk
from blyan_tile.model.visits import Visits
from blyand.errors import NotHere, StaleVersion
from blyand.inference.course import Course, Parts
from blyand.inference.passes import Pass
from blyand.inference.prefixes import Name
from blyand.inference.runs import Choose
from blyand.inference.scatter import PAUSE_S, Tally
from blyand.rules.model.heads import Which
from blyand.rules.net.path import Route

R = TypeVar("R")

NOTED_ROWS = 1024  # of all layers, so that counting them is seldom


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
        route: Route = Route.AUTO,
        numerics: Numerics | None = None,
        owner: bytes = b"",
    ) -> None:
        """Pin the newest `which` heads. `capacity` in tokens; `deadline_s`: trio time.

        `numerics`: of calls to peers; None: the node's. `owner`: whose earlier sequences
        are built on, and who may build on this one; empty: nobody.

        NotHere when the model has no weights yet.
        """
        self.tally = Tally()
        self._parts = parts
        self._model = model
        self._capacity = capacity
        self._deadline_s = deadline_s
        self._which = which
        self._route = route
        self._numerics = numerics
        self._owner = owner
        self._fed: list[int] = []
        self._visits = Visits()
        self._pinned = ExitStack()
        self._course: Course | None = None
        self._pin()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        cache = self._course.cache if self._course is not None else None
        self._note_visits(at_least=1)
        self._pinned.close()
        if cache is not None and self._owner:
            self._parts.prefixes.keep(self._prefix, self._fed, cache)

    async def feed(self, tokens: Sequence[int], choose: Callable[[np.ndarray], R]) -> R:
        """Add tokens, at least one, to the sequence; return choose(logits (V,)).

        `choose` runs in the lane, on the logits of the last token. NoRoute, NotHere,
        TooSlow; Busy without memory for the keys and values; LimitExceeded above the
        capacity.
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
                    len(self._fed) - again,
                    lambda row, logits: choose(row - again, logits),
                    from_row + again,
                )
                break
            except StaleVersion:
                self._pin()
                self.tally.repinned += 1
                again = len(self._fed)
        self._fed.extend(tokens)
        traced = self.tally.visits is not None
        self._note_visits(at_least=1 if traced else NOTED_ROWS)
        return made

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens: the next ones come in their place.

        The caches are rewound by the next step (`Stage.run`).
        """
        del self._fed[len(self._fed) - count :]

    def _note_visits(self, at_least: int) -> None:
        """Tell which experts the tokens went to, once there are so many rows of them."""
        if self._visits.rows < at_least:
            return
        choices = self._visits.take()
        if self.tally.visits is not None:
            for layer, steps in choices.items():
                for experts in steps:  # (T, k)
                    chosen = experts.flatten().tolist()
                    self.tally.visits.update((layer, one) for one in chosen)
        self._parts.usage.note(self._model, self.heads.architecture, choices)

    async def _run(
        self, tokens: Sequence[int], position: int, choose: Choose, from_row: int
    ) -> list[Any]:
        kept = 0  # first tokens that need not be computed
        if self._course is None:
            self._course = await self._begin()
            cache = self._course.cache
            if cache is not None and self._owner and not position:
                kept = await self._parts.prefixes.recall(
                    self._prefix, tokens[:from_row], cache
                )
        ids = torch.tensor(tokens[kept:], dtype=torch.int64)  # (T,)
        return await self._course.feed(
            ids,
            position + kept,
            lambda row, logits: choose(row + kept, logits),
            from_row - kept,
        )

    @property
    def _prefix(self) -> Name:
        numerics = self._numerics
        if numerics is None:
            numerics = self._parts.scatter.numerics
        return Name(self._owner, self.heads.version, numerics)

    async def _begin(self) -> Course:
        """Return the way through the layers, its caches empty."""
        parts = self._parts
        trunk = await self._own_trunk()
        cache = trunk.new_cache(self._capacity)
        cache.visits = self._visits
        run = Pass(
            heads=self.heads,
            trunk=trunk,
            cache=cache,
            tally=self.tally,
            deadline_s=self._deadline_s,
            is_stale=partial(parts.pins.is_newer, self.heads, self._which),
            numerics=self._numerics,
        )
        course = Course(parts, run, self._capacity, self._route)
        self._pinned.callback(course.close)
        return course

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
        with ExitStack() as kept:
            kept.enter_context(parts.versions.pinned(zip(heads.roots, heads.tiles)))
            self._pinned.close()
            self._pinned = kept.pop_all()
        self.heads, self._course = heads, None
