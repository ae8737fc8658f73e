"""What peers ask of our experts: checked whole, then computed with everybody's work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from blyan_proto.block.model import Model
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.protocols.expert import MAX_ACTIVATION_BYTES, MAX_ROWS, Forward
from blyan_tile.layout import Layout
from blyand.errors import Busy, NotHere, Unavailable
from blyand.inference.batch import Batcher, Work
from blyand.inference.versions import Versions
from blyand.metrics import Metrics
from blyand.rules.model.model import layout_for

MAX_REQUESTS = 64  # calls of all peers computed or waiting; above it BUSY
MAX_BYTES = 256 << 20  # activations and outputs of these calls
ELEMENT_BYTES = 4  # float32 (DEC-S1)


class ExpertServer:
    """Answers Forward calls. `answer` is what the protocol's server calls."""

    def __init__(
        self,
        model: Callable[[bytes], Model | None],
        versions: Versions,
        batcher: Batcher,
        metrics: Metrics,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._model = model
        self._versions = versions
        self._batcher = batcher
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._requests = 0
        self._bytes = 0
        self._served = metrics.counter("expert_calls_served")
        self._rows = metrics.counter("expert_rows_served")
        self._refused = metrics.counter("expert_calls_refused")

    async def answer(self, peer: str, call: Forward) -> tuple[bytes, ...]:
        """Return each expert's output rows, in the order of the call.

        ProtocolError when the call does not fit the model's layout; NotHere for a model
        or group that is not here, StaleVersion for another version (DEC-B8), Busy above
        the limits of requests and bytes.
        """
        model = self._model(call.model)
        if model is None:
            self._refused.add()
            raise NotHere(f"model {call.model.hex()[:16]} is not known here")
        layout = layout_for(model)
        works = check_call(call, layout, model.architecture.width)
        size = len(call.activations) + sum(
            len(rows) * model.architecture.width * ELEMENT_BYTES for _, _, rows in works
        )
        try:
            self._admit(size)
            orders = [
                Work(
                    layout,
                    layout.groups[group],
                    root,
                    self._versions.find(call.model, group, root),
                    _matrix(call.activations, model.architecture.width),
                    rows,
                )
                for group, root, rows in works
            ]
        except Unavailable:
            self._refused.add()
            raise
        self._requests += 1
        self._bytes += size
        try:
            results = await self._batcher.compute(orders)
        finally:
            self._requests -= 1
            self._bytes -= size
        outputs = []
        for result in results:
            if isinstance(result, Unavailable):
                self._refused.add()
                raise type(result)(str(result))
            outputs.append(result.tobytes())
        self._served.add()
        self._rows.add(sum(len(rows) for _, _, rows in works))
        return tuple(outputs)

    def _admit(self, size: int) -> None:
        if self._requests >= self._max_requests:
            raise Busy(f"{self._requests} calls are under way")
        if self._bytes + size > self._max_bytes and self._requests:
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
    row_bytes = width * ELEMENT_BYTES
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


def _matrix(activations: bytes, width: int) -> np.ndarray:
    return np.frombuffer(activations, "<f4").reshape(-1, width)  # (n, d)
