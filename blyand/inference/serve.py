"""What peers ask of our experts: checked whole, then computed with everybody's work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from blyan_proto.block.model import Model
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.protocols.expert import (
    MAX_ACTIVATION_BYTES,
    MAX_ROWS,
    Forward,
    Outputs,
)
from blyan_tile.activations import read_rows, write_rows
from blyan_tile.layout import Layout
from blyan_tile.slice import Slice
from blyan_tile.stream import hidden_units
from blyand.compute import Threads
from blyand.errors import Busy, NotHere, Unavailable
from blyand.inference.ask import INLINE_BYTES
from blyand.inference.batch import Batcher, Work
from blyand.inference.usage import Usage
from blyand.inference.versions import Versions
from blyand.metrics import Metrics
from blyand.rules.model.model import layout_for
from blyand.rules.net.route import may_enter

R = TypeVar("R")
Rows = bytes | np.ndarray

MAX_REQUESTS = 64  # calls of all peers computed or waiting; above it BUSY
MAX_BYTES = 256 << 20  # activations and outputs of these calls, in memory
ELEMENT_BYTES = 4  # float32, whatever travels
MOST_WAITING_MS = 2**16 - 1


class ExpertServer:
    """Answers Forward calls. `answer` is what the protocol's server calls."""

    def __init__(
        self,
        model: Callable[[bytes], Model | None],
        versions: Versions,
        batcher: Batcher,
        lane: Threads,
        metrics: Metrics,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
        usage: Usage | None = None,
    ) -> None:
        """`lane` is for what copies much."""
        self._usage = usage or Usage()
        self._model = model
        self._versions = versions
        self._batcher = batcher
        self._lane = lane
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._requests: Counter[str] = Counter()  # by peer
        self._bytes = 0
        self._served = metrics.counter("expert_calls_served")
        self._rows = metrics.counter("expert_rows_served")
        self._refused = metrics.counter("expert_calls_refused")

    async def answer(self, peer: str, call: Forward) -> Outputs:
        """Return each expert's output rows, in the order of the call.

        ProtocolError when the call does not fit the model's layout, or has numbers that
        are not finite; NotHere for a model or group that is not here, StaleVersion for
        another version (DEC-B8), Busy above the limits of requests and bytes, or above
        the peer's share of them.
        """
        model = self._model(call.model)
        if model is None:
            self._refused.add()
            raise NotHere(f"model {call.model.hex()[:16]} is not known here")
        layout, width = layout_for(model), model.architecture.width
        wanted = check_call(call, layout, width)
        total = sum(len(rows) for _, _, rows in wanted)
        size = ELEMENT_BYTES * width * (_tokens(call) + total)
        try:
            self._admit(peer, size)
            tiles = [self._versions.find(call.model, g, root) for g, root, _ in wanted]
        except Unavailable:
            self._refused.add()
            raise
        self._requests[peer] += 1
        self._bytes += size
        try:
            x = await self._convert(read_rows, call.activations, width, call.numerics)
            works = [
                Work(
                    layout,
                    layout.groups[group],
                    root,
                    made_of,
                    x,
                    rows,
                    call.numerics,
                    Slice(call.slice, call.slices),
                )
                for (group, root, rows), made_of in zip(wanted, tiles)
            ]
            results = await self._batcher.compute(works, peer)
            outputs = [await self._written(result, call) for result in results]
        finally:
            self._requests[peer] -= 1
            if not self._requests[peer]:
                del self._requests[peer]
            self._bytes -= size
        self._served.add()
        self._rows.add(total)
        for group, _, rows in wanted:
            self._usage.serve(
                call.model, model.architecture, layout.groups[group], len(rows)
            )
        waiting_ms = min(MOST_WAITING_MS, int(self._batcher.waiting_s * 1e3))
        return Outputs(waiting_ms, tuple(outputs))

    async def _written(self, result: np.ndarray | Unavailable, call: Forward) -> bytes:
        if isinstance(result, Unavailable):
            self._refused.add()
            raise type(result)(str(result))
        return await self._convert(write_rows, result, call.numerics)

    async def _convert(self, fn: Callable[..., R], rows: Rows, *args: Any) -> R:
        """Return fn(rows, *args): in the lane if it copies much."""
        size = rows.nbytes if isinstance(rows, np.ndarray) else len(rows)
        if size > INLINE_BYTES:
            return await self._lane.run(fn, rows, *args)
        return fn(rows, *args)

    def _admit(self, peer: str, size: int) -> None:
        taken, mine = self._requests.total(), self._requests[peer]
        if not may_enter(mine, taken, self._max_requests):
            raise Busy(f"{taken} calls are under way, {mine} of them yours")
        if self._bytes + size > self._max_bytes and taken:
            raise Busy(f"{self._bytes} bytes of calls are under way")


def check_call(
    call: Forward, layout: Layout, width: int
) -> list[tuple[int, bytes, np.ndarray]]:
    """Return (group, root, rows (m,) int64) of each expert of a well-formed call.

    DecodeError and LimitExceeded for one that is not: the groups must be distinct
    experts of one layer; rows ascending and inside; the answer within a message.
    """
    if call.width != width:
        raise DecodeError(f"activations of width {call.width}, the model's is {width}")
    row_bytes = width * call.numerics.element_bytes
    count, rest = divmod(len(call.activations), row_bytes)
    if rest or not count:
        raise DecodeError(f"{len(call.activations)} bytes are no rows of {width}")
    if count > MAX_ROWS:
        raise LimitExceeded(f"{count} rows, at most {MAX_ROWS}")
    works: list[tuple[int, bytes, np.ndarray]] = []
    layers: set[int | None] = set()
    total = 0
    for wanted in call.experts:
        if wanted.group >= len(layout.groups):
            raise DecodeError(f"the model has no group {wanted.group}")
        group = layout.groups[wanted.group]
        if group.expert is None:
            raise DecodeError(f"{group.name} is no expert")
        if any(wanted.group == before for before, _, _ in works):
            raise DecodeError(f"{group.name} twice in one call")
        if call.slices > 1 and call.slices > hidden_units(group):
            raise DecodeError(f"{call.slices} slices of {group.name}")
        layers.add(group.layer)
        rows = np.frombuffer(wanted.rows, "<u2").astype(np.int64)  # (m,)
        if rows[-1] >= count or (np.diff(rows) <= 0).any():
            raise DecodeError("row numbers are not ascending, or outside the call")
        total += len(rows)
        works.append((wanted.group, wanted.root, rows))
    if len(layers) > 1:
        raise DecodeError("experts of several layers in one call")
    if total * row_bytes > MAX_ACTIVATION_BYTES:
        raise LimitExceeded(f"an answer of {total * row_bytes} bytes")
    return works


def _tokens(call: Forward) -> int:
    return len(call.activations) // (call.width * call.numerics.element_bytes)
