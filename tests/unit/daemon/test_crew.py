"""A learner's inner steps in two processes: the curve of one; the death of one."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from blyan_proto.block.model import Inner
from blyan_tile.jobs import Progress
from blyan_tile.learner import LearnJob, LearnResult, learn
from blyand.compute import open_worker
from blyand.training.crew import Crew
from tests.unit.tile.test_learner import RUN, first_tiles, job_of

ROOT = Path(__file__).parents[3]


def test_two_processes_learn_as_one_and_the_death_of_one_costs_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = replace(RUN, batch=3, inner=Inner.MUON)  # rows that do not divide
    job = job_of(tmp_path, first_tiles(), run=run)
    alone = learn(job, lambda progress: None)

    def again(name: str) -> LearnJob:
        return replace(job, residuals=str(tmp_path / name))

    async def main() -> None:
        async with (
            open_worker("training", nice=0) as first,
            open_worker("training", nice=0) as second,
        ):
            crew = Crew([first, second], ["cpu", "cpu"], is_sharded=False)
            parted = Crew([first, second], ["cpu", "cpu"], is_sharded=True)
            heard: list[Progress] = []
            check(await crew.call(again("both"), heard.append), alone)
            assert [p.done for p in heard] == [1, 2, 3, 4, 5]
            check(await parted.call(again("parted"), lambda progress: None), alone)

            def kill(progress: Progress) -> None:
                if progress.done == 2 and len(heard) == 6:
                    assert second.pid is not None
                    os.kill(second.pid, signal.SIGKILL)
                heard.append(progress)

            late = await crew.call(again("killed"), kill)
            assert heard[-1].done == 5 and second.pid is None
            assert [d.change for d in late.deltas] == [d.change for d in alone.deltas]

    trio.run(main)


def check(both: LearnResult, alone: LearnResult) -> None:
    """The same numbers but for the order in which floats were added."""
    assert abs(both.loss_micro - alone.loss_micro) <= 20  # micro-nats of 5.4 nats
    assert (both.steps, both.tokens) == (alone.steps, alone.tokens)
    assert both.shares == alone.shares
    assert [d.group for d in both.deltas] == [d.group for d in alone.deltas]
