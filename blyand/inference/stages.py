"""The stages of a sequence's path: who runs which layers.

A path is a list of stages whose layers follow one another. A stage that runs here takes
token ids in place of hidden states, and lets the last one choose on its logits in the
same lane call; a span at a peer takes and gives hidden states only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import trio
from torch import Tensor

from blyan_proto.protocols.expert import Numerics
from blyan_tile.model.transformer import Trunk
from blyand.compute import Threads
from blyand.errors import NotHere, TooSlow
from blyand.inference.call import Overflow
from blyand.inference.passes import Pass, run_pass
from blyand.inference.runs import NOT_FINITE, Choose, Run, Runs
from blyand.inference.scatter import Scatter


class Stage(Protocol):
    """Runs the layers `first` to `end` - 1 of one sequence."""

    first: int
    end: int

    async def run(self, x: Tensor, position: int) -> Tensor:
        """Return the hidden states (T, d) after the last layer.

        x (T, d) float32 hidden states of the tokens from `position` on. Unavailable
        when the layers cannot be run; tokens after `position` that an earlier call left
        behind are forgotten first, so that the same call can be made again.
        """
        ...


class ExpertStage:
    """Attention and routers here, experts wherever they are, layer by layer.

    Both methods also take ids, x (T,) int64.
    """

    def __init__(
        self, scatter: Scatter, lane: Threads, run: Pass, first: int, end: int
    ) -> None:
        self.first, self.end = first, end
        self._scatter = scatter
        self._lane = lane
        self._run = run

    @property
    def numerics(self) -> Numerics:
        """Those of the node, for requests that name none."""
        return self._scatter.numerics

    async def run(self, x: Tensor, position: int) -> Tensor:
        hidden: Tensor = await self._through(x, position, _unchanged)
        return hidden

    async def choose(
        self, x: Tensor, position: int, choose: Choose, from_row: int
    ) -> list[Any]:
        """Return choose(row, logits (V,)) of each row from `from_row` on.

        For the stage with the last layer; `choose` runs in the lane.
        """

        def finish(trunk: Trunk, hidden: Tensor) -> list[Any]:
            return choose_rows(trunk, hidden, choose, from_row)

        chosen: list[Any] = await self._through(x, position, finish)
        return chosen

    async def _through(
        self, x: Tensor, position: int, finish: Callable[[Trunk, Tensor], Any]
    ) -> Any:
        cache = self._run.cache
        assert cache is not None
        cache.rewind(position, self.first, self.end)
        return await run_pass(
            self._scatter, self._lane, self._run, x, finish, self.first, self.end
        )


class LocalStage:
    """All in this process: one lane call, together with other sequences' steps.

    Where an expert turns out not to be here, `otherwise` runs the same layers. Both
    methods also take ids, x (T,) int64.
    """

    def __init__(self, runs: Runs, run: Pass, me: str, otherwise: ExpertStage) -> None:
        self.first, self.end = otherwise.first, otherwise.end
        self._runs = runs
        self._run = run
        self._me = me
        self._otherwise = otherwise

    async def run(self, x: Tensor, position: int) -> Tensor:
        try:
            with self._counted():
                return await self._runs.run(self._order(x, position))
        except NotHere:
            return await self._otherwise.run(x, position)

    async def choose(
        self, x: Tensor, position: int, choose: Choose, from_row: int
    ) -> list[Any]:
        """Return choose(row, logits (V,)) of each row from `from_row` on.

        For the stage with the last layer; `choose` runs in the lane.
        """
        try:
            with self._counted():
                run = self._order(x, position)
                return await self._runs.choose(run, choose, from_row)
        except NotHere:
            return await self._otherwise.choose(x, position, choose, from_row)

    def _order(self, x: Tensor, position: int) -> Run:
        cache = self._run.cache
        assert cache is not None
        cache.rewind(position, self.first, self.end)
        numerics = self._run.numerics
        if numerics is None:
            numerics = self._otherwise.numerics
        return Run(self._run.heads, self.first, self.end, cache, x, numerics)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Enforce the deadline; count a call that was answered. TooSlow."""
        try:
            with trio.fail_at(self._run.deadline_s):
                yield
        except trio.TooSlowError as error:
            raise TooSlow("this node did not compute the step in time") from error
        self._run.tally.calls[self._me] += 1


def choose_rows(
    trunk: Trunk, hidden: Tensor, choose: Choose, from_row: int
) -> list[Any]:
    """Return choose(row, logits (V,)) of hidden (T, d) from `from_row` on; in a lane.

    Overflow for logits that are not finite.
    """
    if from_row >= len(hidden):
        return []  # an earlier chunk of a prompt
    with torch.no_grad():
        logits = trunk.logits(hidden[from_row:]).float().cpu().numpy()  # (wanted, V)
    if not np.isfinite(logits).all():
        raise Overflow(NOT_FINITE)
    return [choose(from_row + row, values) for row, values in enumerate(logits)]


def _unchanged(trunk: Trunk, hidden: Tensor) -> Tensor:
    return hidden
