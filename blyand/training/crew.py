"""The worker processes of a learner: one for each accelerator, or as many as wished.

They share every batch of a round (blyan_tile.together). If one dies, the round is trained
again in the first alone, so that a learner is late and not lost.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from blyan_proto.errors import ProtocolError
from blyan_tile.jobs import Progress
from blyan_tile.learner import LearnJob, LearnResult
from blyand.compute import GivenUp, Worker, open_worker
from blyand.errors import ComputeFault

logger = logging.getLogger(__name__)


class Crew:
    """Runs a round's job in one process or in several, as one worker would."""

    def __init__(
        self, workers: Sequence[Worker], devices: Sequence[str], is_sharded: bool
    ) -> None:
        """`devices`: where each of the workers computes. `is_sharded`: each keeps a
        part of every parameter."""
        self._workers = list(workers)
        self._devices = list(devices)
        self._is_sharded = is_sharded

    async def call(
        self, job: LearnJob, report: Callable[[Progress], None]
    ) -> LearnResult:
        """Return the job's result; errors and cancelling as of `Worker.call`."""
        count = min(len(self._workers), job.run.batch)
        if count > 1:
            try:
                return await self._together(job, report, count)
            except ComputeFault as error:
                logger.warning(
                    "%s; round %d is trained again in one process", error, job.round
                )
        job = replace(job, device=self._devices[0])
        result: LearnResult = await self._workers[0].call(job, report)
        return result

    async def give_up(self) -> None:
        """Ask for the job under way to end at its next report, with GivenUp."""
        await self._workers[0].give_up()

    def hold(self, still: bool) -> None:
        """Let all processes stand still, or go on."""
        for worker in self._workers:
            worker.hold(still)

    async def _together(
        self, job: LearnJob, report: Callable[[Progress], None], count: int
    ) -> LearnResult:
        """Run the job in `count` processes; the end of one ends all."""
        results: list[LearnResult] = []
        failures: list[ComputeFault | ProtocolError | GivenUp] = []

        async def take_part(rank: int, meeting: str) -> None:
            part = replace(
                job,
                device=self._devices[rank],
                threads=max(1, job.threads // count),
                processes=count,
                rank=rank,
                meeting=meeting,
                sharded=self._is_sharded,
            )
            try:
                result = await self._workers[rank].call(part, None if rank else report)
            except (ComputeFault, ProtocolError, GivenUp) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
            else:
                if rank == 0:
                    results.append(result)

        with tempfile.TemporaryDirectory() as folder:
            async with trio.open_nursery() as nursery:
                for rank in range(count):
                    nursery.start_soon(take_part, rank, str(Path(folder, "meeting")))
        if failures:
            raise failures[0]
        return results[0]


@asynccontextmanager
async def open_crew(
    devices: Sequence[str], is_sharded: bool, *, nice: int
) -> AsyncIterator[Crew]:
    """Give a crew with a process for each of `devices`; they end with the block."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(open_worker("training", nice=nice))
            for _ in devices
        ]
        yield Crew(workers, devices, is_sharded)
