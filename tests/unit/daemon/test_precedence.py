"""Answers before learning: when the others stand still, and that they go on again."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from blyand.compute import open_worker
from blyand.metrics import Metrics
from blyand.precedence import LINGER_S, MOST_S, PATIENCE_S, FirstLane, Quiet
from tests.unit.daemon.worker_jobs import JOBS, Answer, Order

ROOT = Path(__file__).parents[3]


class Lane(FirstLane):
    """A lane whose calls last as long as the test lets them; notes who stood still."""

    def __init__(self, least_percent: int, metrics: Metrics | None = None) -> None:
        self.said: list[tuple[float, bool]] = []
        self.gone_on = trio.Event()  # replaced whenever they are stopped
        super().__init__("infer", 1, self._note, least_percent, metrics or Metrics())

    def _note(self, still: bool) -> None:
        self.said.append((round(trio.current_time() - self.began_s, 6), still))
        if still:
            self.gone_on = trio.Event()
        else:
            self.gone_on.set()

    async def compute(self, seconds: float) -> None:
        """Take the part of `run` around the thread, for a while."""
        await self.run(self._sleep, seconds)

    def _sleep(self, seconds: float) -> None:
        trio.from_thread.run(trio.sleep, seconds)

    began_s = 0.0


def play(lane: Lane, script: list[tuple[float, float]]) -> list[tuple[float, bool]]:
    """Compute from each start for each length, in virtual time; return what was said."""

    async def one(at: float, seconds: float) -> None:
        await trio.sleep(at)
        await lane.compute(seconds)

    async def main() -> None:
        lane.began_s = trio.current_time()
        async with trio.open_nursery() as services:
            await services.start(lane.serve)
            async with trio.open_nursery() as calls:
                for at, seconds in script:
                    calls.start_soon(one, at, seconds)
            if lane.said:
                await lane.gone_on.wait()
            services.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    return lane.said


def test_they_stand_still_from_the_first_call_until_it_is_quiet_again() -> None:
    metrics = Metrics()
    said = play(Lane(5, metrics), [(1.0, 0.1), (1.12, 0.2)])  # 20 ms apart: one hold
    assert [still for _, still in said] == [True, False]
    assert said[0][0] == 1.0
    assert 1.32 + LINGER_S <= said[1][0] <= 1.32 + 3 * LINGER_S
    held = metrics.snapshot()["training_held_milliseconds"]
    assert held == pytest.approx(1000 * (said[1][0] - 1.0), abs=1)


ONE_LONG = [(0.0, 20.0)]
TOKENS = [(0.2 * token, 0.19) for token in range(60)]  # quiet for 10 ms between


@pytest.mark.parametrize("least", [5, 50])
@pytest.mark.parametrize("script", [ONE_LONG, TOKENS])
def test_who_always_answers_still_learns_for_its_part_of_the_time(
    least: int, script: list[tuple[float, float]]
) -> None:
    said = play(Lane(least), script)
    assert said[-1][1] is False
    stills = [at for at, still in said if still]
    others = [at for at, still in said if not still]
    turns = [begin - end for end, begin in zip(others, stills[1:])]
    assert all(end - begin <= MOST_S + 1e-6 for begin, end in zip(stills, others))
    assert len(turns) > 1
    given = turns[0] / (turns[0] + MOST_S)
    assert given == pytest.approx(least / 100, rel=0.1)


def test_nothing_is_held_when_training_may_go_on_beside() -> None:
    assert play(Lane(100), [(0.0, 5.0)]) == []


def test_without_a_part_of_its_own_it_waits_for_the_end() -> None:
    said = play(Lane(0), [(0.0, 20.0)])
    assert [still for _, still in said] == [True, False]
    assert said[1][0] >= 20.0


@pytest.mark.parametrize(
    "script, begins_s",
    [([(0.0, 0.3)], 0.3 + LINGER_S), (TOKENS, PATIENCE_S), ([], 0.0)],
    ids=["after an answer", "between tokens", "nobody asks"],
)
def test_what_can_wait_begins_when_it_is_quiet(
    script: list[tuple[float, float]], begins_s: float
) -> None:
    """And then it holds nobody up: neither those that learn, nor what waits as well."""
    lane = Lane(5)
    began: list[float] = []

    async def later() -> None:
        await trio.sleep(0.001 if script else 0)
        for _ in range(2):
            await Quiet(lane).run(lambda: began.append(trio.from_thread.run_sync(now)))

    def now() -> float:
        return trio.current_time() - lane.began_s

    async def main() -> None:
        lane.began_s = trio.current_time()
        async with trio.open_nursery() as services:
            await services.start(lane.serve)
            async with trio.open_nursery() as calls:
                calls.start_soon(later)
                for at, seconds in script:
                    calls.start_soon(answer, at, seconds)
            if lane.said:
                await lane.gone_on.wait()
            services.cancel_scope.cancel()

    async def answer(at: float, seconds: float) -> None:
        await trio.sleep(at)
        await lane.compute(seconds)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert begins_s <= began[0] <= begins_s + 0.25  # a call may be under way
    assert bool(lane.said) == bool(script)
    if script != TOKENS:
        assert began[1] == pytest.approx(began[0], abs=0.001)
        assert all(at < MOST_S / 2 for at, _ in lane.said), "the others go on, too"


def test_a_lane_that_ends_leaves_nobody_standing() -> None:
    lane = Lane(0)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lane.serve)
            nursery.start_soon(lane.compute, math.inf)
            await trio.testing.wait_all_tasks_blocked()
            assert lane.said[-1][1] is True
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert lane.said[-1][1] is False


def test_a_worker_stands_still_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    async def main() -> None:
        async with open_worker("test", nice=0, jobs=JOBS) as worker:
            worker.hold(True)  # nobody is there yet
            first: Answer = await worker.call(Order("add", 1))
            worker.hold(True)
            while state_of(first.pid) != "T":
                await trio.sleep(0.01)
            with trio.move_on_after(0.1) as waited:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(late, worker)
                    await worker.call(Order("add", 41))
            assert not waited.cancelled_caught
            worker.hold(True)
        assert not os.path.exists(f"/proc/{first.pid}")  # one that stands still ends

    async def late(worker: object) -> None:
        await trio.sleep(0.02)
        worker.hold(False)  # type: ignore[attr-defined]

    trio.run(main)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1][0]
