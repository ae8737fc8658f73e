"""Second opinions: some answers are compared with what another holder answers (DEC-C10).

A peer whose answers others confirm gets a record, and with it most of the calls; one
whose answers others contradict is left out. The comparison runs beside the requests,
which never wait for it. So that a twentieth of all calls is the most that it takes, it
looks at answers of those first that have no record yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import trio

from blyan_proto.protocols.expert import Forward, Outputs
from blyan_tile.activations import is_close
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.inference.call import read_outputs
from blyand.inference.routes import Routes

WAITING = 8  # answers to be compared; more are not
MOST_TOKENS = 64  # of a call: longer ones say no more
DEADLINE_S = 5.0  # of a second opinion


class Forwarder(Protocol):
    """Calls peers: blyand.protocols.expert.Client."""

    async def forward(self, peer: str, call: Forward, deadline_s: float) -> Outputs: ...


@dataclass(frozen=True)
class _Answer:
    peer: str
    other: str  # to be asked the same
    call: Forward
    outputs: list[np.ndarray]  # each (m, d)


class Opinions:
    """Compares answers; `run` is the service behind it. Use it from the loop only."""

    def __init__(self, client: Forwarder, routes: Routes, lane: Threads) -> None:
        self._client = client
        self._routes = routes
        self._lane = lane
        self._put, self._answers = trio.open_memory_channel[_Answer](WAITING)

    def offer(
        self,
        peer: str,
        call: Forward,
        outputs: list[np.ndarray],
        others: Callable[[], Sequence[str]],
    ) -> None:
        """Maybe ask one of `others`, who hold the same, for a second opinion."""
        ration = self._routes.opinions
        ration.count()
        row_bytes = call.numerics.element_bytes * call.width
        if not ration.left or len(call.activations) > MOST_TOKENS * row_bytes:
            return
        other = self._other(peer, others())
        if other is not None and ration.take():
            try:
                self._put.send_nowait(_Answer(peer, other, call, outputs))
            except trio.WouldBlock:
                pass  # the next one will do

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Compare what is offered, until cancelled."""
        task_status.started()
        async for answer in self._answers:
            await self._compare(answer)

    def _other(self, peer: str, others: Sequence[str]) -> str | None:
        """Return whom to ask: those without a record first, if `peer` has one."""
        able = [one for one in others if self._routes.may_hedge(one) and one != peer]
        new = [one for one in able if not self._routes.of(one).proven]
        proven = [one for one in able if self._routes.of(one).proven]
        order = new + proven if self._routes.of(peer).proven else proven + new
        return order[0] if order else None

    async def _compare(self, answer: _Answer) -> None:
        routes, call = self._routes, answer.call
        try:
            told = await self._client.forward(answer.other, call, DEADLINE_S)
            outputs = await self._lane.run(read_outputs, told, call)
        except Unavailable as error:
            routes.failed(answer.other, error, [wanted.root for wanted in call.experts])
            return
        if await self._lane.run(_agree, answer.outputs, outputs, call):
            routes.right(answer.peer)
            routes.right(answer.other)
            return
        first, second = routes.of(answer.peer), routes.of(answer.other)
        if first.right <= second.right:
            routes.wrong(answer.peer, for_long=first.right < second.right)
        if second.right <= first.right:
            routes.wrong(answer.other, for_long=second.right < first.right)


def _agree(one: list[np.ndarray], other: list[np.ndarray], call: Forward) -> bool:
    return all(is_close(a, b, call.numerics) for a, b in zip(one, other))
