"""Telling the network how far others are from this node, when that has changed.

At most one report in an epoch, and only about peers whose class is another than this
node said last, or whose report is about to lapse. On one machine nothing ever changes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import trio

from blyan_proto.block.economy import MAX_LATENCIES, Latency, LatencyReport
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Genesis
from blyand.errors import Unavailable
from blyand.rules.economy.epoch import running
from blyand.rules.economy.latency import LATENCIES, class_of_ms
from blyand.rules.records import CLOCK, NODES
from blyand.rules.verdict import Ignore
from blyand.rules.view import View

logger = logging.getLogger(__name__)

CHECK_S = 60.0
LAPSING = 3, 4  # of the span: a report of that age is made again


class Surveyor:
    """Measures by what the connections measure anyway."""

    def __init__(
        self,
        account: bytes,
        genesis: Genesis,
        view: Callable[[], View],
        distances: Callable[[], Mapping[bytes, float]],
        make: Callable[[LatencyReport], Awaitable[object]],
        is_following: Callable[[], bool],
    ) -> None:
        """`distances`: account -> round trip in ms, of the nodes connected now."""
        self._account = account
        self._epoch_ms = genesis.setting("epoch_span_ms")
        self._span_ms = genesis.setting("latency_span_ms")
        self._view = view
        self._distances = distances
        self._make = make
        self._is_following = is_following

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Report what has changed, for ever."""
        task_status.started()
        while True:
            await trio.sleep(min(CHECK_S, self._epoch_ms / 1000))
            report = self.due() if self._is_following() else None
            if report is None:
                continue
            try:
                await self._make(report)
            except (Ignore, Unavailable) as error:
                logger.info("no latencies reported now: %s", error)

    def due(self) -> LatencyReport | None:
        """Return the report that this node may make now and has a reason for."""
        view = self._view()
        node, clock = NODES.get(view, self._account), CLOCK.get(view)
        assert clock is not None
        if node is None or node.registered_height >= running(view).first_height:
            return None
        if clock.time_ms - node.reported_ms < self._epoch_ms:
            return None
        changed = [
            Latency(account, latency)
            for account, rtt_ms in self._distances().items()
            if account != self._account
            and NODES.get(view, account) is not None
            and (latency := class_of_ms(rtt_ms))
            != self._said(view, account, clock.time_ms)
        ]
        changed.sort(key=lambda one: one.node)
        if not changed:
            return None
        return LatencyReport(FORMAT_VERSION, tuple(changed[:MAX_LATENCIES]))

    def _said(self, view: View, account: bytes, time_ms: int) -> int | None:
        """Return the class that this node reported last, while that counts for long."""
        known = LATENCIES.get(view, account)
        share, whole = LAPSING
        for said in known.said if known else ():
            if said.reporter == self._account:
                is_lapsing = (time_ms - said.time_ms) * whole > self._span_ms * share
                return None if is_lapsing else said.latency
        return None
