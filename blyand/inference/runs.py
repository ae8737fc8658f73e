"""Runs of layers whose experts are all here: one lane call for all that waits.

Strategy (continuous batching). While one lane call computes, further steps wait; the
next call takes all of them that pass the same layers of the same version: one product
over all their rows, attention sequence by sequence. A long prompt takes part with a
piece at a time, a smaller one while others decode, so that it does not stall them. A
row's bits do not depend on its batch-mates (DEC-S1, S2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import trio
from torch import Tensor

from blyan_proto.errors import LimitExceeded
from blyan_proto.protocols.expert import Numerics
from blyan_tile.model.cache import KeyValueCache
from blyan_tile.model.transformer import PREFILL_TOKENS, Part, Trunk
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.inference.call import Overflow
from blyand.inference.experts import Experts, InUse
from blyand.inference.pins import Heads
from blyand.inference.trunks import Trunks
from blyand.metrics import Metrics

STEP_TOKENS = 8  # a sequence with more of them to go is a prompt
CALL_SEQUENCES = 256  # that decode in one call
MIXED_TOKENS = 64  # of prompts in one call while others decode
DECODING_S = 0.05  # others decode: one did within this time
NOT_FINITE = "the model gave logits that are not finite"
RETURN_PASSES = 8  # of the event loop, for the next step of those who decoded

Choose = Callable[[int, np.ndarray], Any]  # (row of the run, logits (V,)) -> anything


@dataclass(frozen=True)
class Run:
    """The next T tokens of one sequence through the layers `first` to `end` - 1."""

    heads: Heads
    first: int
    end: int
    cache: KeyValueCache  # of these layers at least
    x: Tensor  # (T, d) float32 hidden states; or (T,) int64 ids, to embed first
    numerics: Numerics = Numerics.REFERENCE  # the least exact that will do


@dataclass(eq=False)
class _Order:
    run: Run
    choose: Choose | None
    from_row: int  # first row whose logits are wanted; T: none
    asked_s: float
    done: trio.Event = field(default_factory=trio.Event)
    rows: int = 0  # done so far
    hidden: list[Tensor] = field(default_factory=list)  # (rows, d) together
    chosen: list[Any] = field(default_factory=list)
    failure: Exception | None = None
    in_lane: bool = False
    dropped: bool = False  # nobody waits for the result any more

    @property
    def key(self) -> tuple[bytes, int, int, Numerics]:
        run = self.run
        return run.heads.version, run.first, run.end, run.numerics

    @property
    def left(self) -> int:
        return len(self.run.x) - self.rows


@dataclass(frozen=True)
class _Piece:
    """What one order does in one lane call: its next rows."""

    order: _Order
    rows: int


class Runs:
    """Computes runs; `serve` is the service behind it."""

    def __init__(
        self, trunks: Trunks, experts: Experts, lane: Threads, metrics: Metrics
    ) -> None:
        self._trunks = trunks
        self._experts = experts
        self._lane = lane
        self._waiting: list[_Order] = []
        self._arrived = trio.Event()
        self._decoded = 0  # sequences of the last call
        self._decoded_s = -DECODING_S
        self._calls = metrics.counter("inference_steps")
        self._sequences = metrics.counter("inference_step_sequences")
        self._rows = metrics.counter("inference_step_rows")
        self._queued = metrics.histogram("inference_queue_seconds")
        self._computed = metrics.histogram("inference_compute_seconds")

    @property
    def waiting(self) -> int:
        """Steps that wait for the lane."""
        return len(self._waiting)

    async def run(self, run: Run) -> Tensor:
        """Return the hidden states (T, d) after the last layer, T >= 1.

        NotHere when the trunk or a chosen expert is not here; LimitExceeded when the
        cache is full. After an error the cache may hold some of the tokens.
        """
        order = _Order(run, None, len(run.x), trio.current_time())
        await self._complete(order)
        return torch.cat(order.hidden)

    async def choose(self, run: Run, choose: Choose, from_row: int) -> list[Any]:
        """Return choose(row, logits (V,)) of each row from `from_row` on.

        `choose` runs in the lane, row by row. `run.end` is the last layer's. Raises like
        `run`; Overflow for logits that are not finite.
        """
        order = _Order(run, choose, from_row, trio.current_time())
        await self._complete(order)
        return order.chosen

    async def serve(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Compute what waits, until cancelled."""
        task_status.started()
        while True:
            if not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            await self._let_return()
            pieces = self._take()
            if not pieces:
                continue
            began_s = trio.current_time()
            for piece in pieces:
                piece.order.in_lane = True
                if not piece.order.rows:
                    self._queued.observe(began_s - piece.order.asked_s)
            try:
                await self._lane.run(self._compute, pieces)
            finally:
                self._settle(pieces)
            ended_s = trio.current_time()
            if self._decoded:
                self._decoded_s = ended_s
            self._computed.observe(ended_s - began_s)
            self._calls.add()
            self._sequences.add(len(pieces))
            self._rows.add(sum(piece.rows for piece in pieces))

    async def _complete(self, order: _Order) -> None:
        """Wait for an order. When this ends, cancelled or not, its cache is left alone."""
        self._waiting.append(order)
        self._arrived.set()
        try:
            await order.done.wait()
        except trio.Cancelled:
            order.dropped = True
            if order.in_lane:
                with trio.CancelScope(shield=True):
                    await order.done.wait()
            elif order in self._waiting:
                self._waiting.remove(order)
            raise
        if order.failure is not None:
            raise order.failure

    async def _let_return(self) -> None:
        """Let those come back who decoded in the last call: they ask for the next token.

        Otherwise the first of them, or a prompt, would be computed alone.
        """
        for _ in range(RETURN_PASSES):
            returned = sum(order.left <= STEP_TOKENS for order in self._waiting)
            if returned >= self._decoded:
                break
            await trio.lowlevel.checkpoint()
        self._decoded = 0

    def _take(self) -> list[_Piece]:
        """Take, of the version and layers that have waited longest, one call's rows."""
        if not self._waiting:  # who came may be gone again
            return []
        key = self._waiting[0].key
        same = [order for order in self._waiting if order.key == key]
        decoding = [order for order in same if order.left <= STEP_TOKENS]
        prompts = [order for order in same if order.left > STEP_TOKENS]
        pieces = [_Piece(order, order.left) for order in decoding[:CALL_SEQUENCES]]
        self._decoded = len(pieces)
        # Who decodes asks for its next token just after its last one.
        since_s = trio.current_time() - self._decoded_s
        is_mixed = bool(pieces) or since_s < DECODING_S
        left = MIXED_TOKENS if is_mixed else PREFILL_TOKENS
        for order in prompts:
            if left > 0:
                pieces.append(_Piece(order, min(order.left, left)))
                left -= pieces[-1].rows
        taken = {id(piece.order) for piece in pieces}
        self._waiting = [order for order in self._waiting if id(order) not in taken]
        return pieces

    def _settle(self, pieces: list[_Piece]) -> None:
        """After a lane call: who is not done waits again, behind the others."""
        for piece in pieces:
            order = piece.order
            order.in_lane = False
            if order.dropped or order.failure is not None or not order.left:
                order.done.set()
            else:
                self._waiting.append(order)

    @torch.no_grad()
    def _compute(self, pieces: list[_Piece]) -> None:
        """Run in the lane."""
        heads = pieces[0].order.run.heads
        first, end = pieces[0].order.run.first, pieces[0].order.run.end
        try:
            trunk = self._trunks.get(heads)
            fitting = [piece for piece in pieces if _fits(piece)]
            if not fitting:
                return
            parts = [Part(piece.order.run.cache, piece.rows) for piece in fitting]
            hidden = torch.cat([_rows(trunk, piece) for piece in fitting])  # (n, d)
            step = trunk.step(parts, first)
            experts = partial(self._expert, heads, pieces[0].order.run.numerics)
            hidden = trunk.run(first, end, hidden, step, experts)  # (n, d)
        except Unavailable as error:
            for piece in pieces:
                piece.order.failure = type(error)(str(error))
            return
        _hand_out(trunk, fitting, hidden)

    def _expert(
        self, heads: Heads, numerics: Numerics, layer: int, number: int
    ) -> InUse:
        group = heads.expert(layer, number)
        index = group.index
        return self._experts.get(
            heads.layout, group, heads.roots[index], heads.tiles[index], numerics
        )


def _fits(piece: _Piece) -> bool:
    order, cache = piece.order, piece.order.run.cache
    tokens = cache.length(order.run.first) + piece.rows
    if tokens > cache.capacity:
        order.failure = LimitExceeded(
            f"{tokens} tokens, this sequence has {cache.capacity}"
        )
    return order.failure is None


def _rows(trunk: Trunk, piece: _Piece) -> Tensor:
    """Return the piece's hidden states (rows, d)."""
    order = piece.order
    x = order.run.x[order.rows : order.rows + piece.rows].to(trunk.device)
    return x if x.is_floating_point() else trunk.embed(x)


def _hand_out(trunk: Trunk, pieces: list[_Piece], hidden: Tensor) -> None:
    """Give each order its rows of hidden (n, d), or what it chooses of their logits."""
    wanted: list[tuple[_Order, int, int]] = []  # order, its row, row of hidden
    start = 0
    for piece in pieces:
        order = piece.order
        if order.choose is None:
            order.hidden.append(hidden[start : start + piece.rows])
        for row in range(max(order.from_row - order.rows, 0), piece.rows):
            wanted.append((order, order.rows + row, start + row))
        order.rows += piece.rows
        start += piece.rows
    if not wanted:
        return
    logits = trunk.logits(hidden[[row for _, _, row in wanted]])  # (wanted, V)
    for (order, row, _), values in zip(wanted, logits.float().cpu().numpy()):
        assert order.choose is not None
        if order.failure is None and not np.isfinite(values).all():
            order.failure = Overflow(NOT_FINITE)
        if order.failure is None:
            order.chosen.append(order.choose(row, values))
