"""Threads and worker processes: results, failures, deaths, and no child left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio

from blyan_proto.errors import BadProof
from blyan_tile.jobs import Progress
from blyand.compute import (
    GivenUp,
    Threads,
    choose_device,
    choose_memory_bytes,
    choose_threads,
    open_worker,
    training_devices,
)
from blyand.errors import ComputeFault, ConfigFault
from blyand.worker import JOBS as WORKER_JOBS
from blyand.worker import path_of, replies, resolve
from tests.unit.daemon.worker_jobs import JOBS, Answer, Order

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_worker_answers_reports_and_is_kept() -> None:
    async def main() -> None:
        seen: list[Progress] = []
        async with open_worker("test", nice=3, threads=2, jobs=JOBS) as worker:
            first: Answer = await worker.call(Order("add", 41), seen.append)
            second: Answer = await worker.call(Order("add", 1))
            assert (first.number, second.number) == (42, 2)
            assert first.pid == second.pid == worker.pid != os.getpid()
            assert first.nice >= 3 and first.threads == "2"
            assert seen == [Progress(41, first.pid, "add")]
        assert worker.pid is None
        assert gone(first.pid)

    trio.run(main)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own policy")
def test_the_nicest_worker_takes_what_nobody_else_wants() -> None:
    async def main() -> None:
        async with open_worker("test", nice=20, jobs=JOBS) as worker:
            made: Answer = await worker.call(Order("add", 41))
            assert os.sched_getscheduler(made.pid) == os.SCHED_IDLE
            assert made.nice == 19

    trio.run(main)


def test_failures_reach_the_caller_by_whose_fault_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with open_worker("test", jobs=JOBS) as worker:
            with pytest.raises(BadProof, match="not what it hashes to"):
                await worker.call(Order("lie", 0))
            with pytest.raises(ComputeFault, match="no space"):
                await worker.call(Order("disk", 0))
            assert "BROKEN" not in caplog.text
            pid = worker.pid
            with pytest.raises(ComputeFault, match="ZeroDivisionError: oops"):
                await worker.call(Order("bug", 0))
            assert "BROKEN" in caplog.text
            assert worker.pid == pid
            with pytest.raises(ComputeFault, match="no worker runs"):
                await worker.call(Progress(0, 0, ""))

    trio.run(main)


def test_a_crashed_worker_is_started_again() -> None:
    async def main() -> None:
        async with open_worker("test", jobs=JOBS) as worker:
            with pytest.raises(ComputeFault, match=f"signal {int(signal.SIGABRT)}"):
                await worker.call(Order("crash", 0))
            answer: Answer = await worker.call(Order("add", 1))
            assert answer.number == 2
            os.kill(answer.pid, signal.SIGKILL)  # between two calls
            os.waitid(os.P_PID, answer.pid, os.WEXITED | os.WNOWAIT)
            assert (await worker.call(Order("add", 2))).number == 3

    trio.run(main)


def test_cancelling_kills_a_busy_worker() -> None:
    async def main() -> None:
        async with open_worker("test", jobs=JOBS) as worker:
            pids: list[int] = []
            with trio.CancelScope() as scope:

                def report(progress: Progress) -> None:
                    pids.append(progress.total)
                    scope.cancel()

                await worker.call(Order("hang", 0), report)
            assert scope.cancelled_caught
            assert gone(pids[0])
            assert (await worker.call(Order("add", 1))).number == 2

    trio.run(main)


PARENT = """
import trio
from blyand.compute import open_worker
from blyand.worker import JOBS as WORKER_JOBS
from blyand.worker import path_of, replies, resolve
from tests.unit.daemon.worker_jobs import JOBS, Order

async def main():
    async with open_worker("test", jobs=JOBS) as worker:
        await worker.call(Order("hang", 0), lambda p: print(p.total, flush=True))

trio.run(main)
"""


def test_giving_up_between_two_jobs_harms_neither() -> None:
    """A learner gives a round up at any moment, and begins the next one at once."""

    async def main() -> None:
        async with open_worker("test", nice=0, jobs=JOBS) as worker:
            given_up = 0

            async def hurry() -> None:
                while True:
                    await worker.give_up()
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hurry)
                for number in range(200):
                    try:
                        answer: Answer = await worker.call(Order("add", number))
                        assert answer.number == number + 1
                    except GivenUp:
                        given_up += 1
                nursery.cancel_scope.cancel()
            assert given_up
            answer = await worker.call(Order("add", 1))
            assert answer.number == 2

    trio.run(main)


def test_no_child_outlives_a_killed_daemon() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    trio.run(wait_until, lambda: gone(child))


def test_every_registered_job_exists_and_names_no_torch() -> None:
    for job, row in WORKER_JOBS.items():
        assert path_of(resolve(job)) == job
        assert path_of(resolve(row.result)) == row.result
        assert callable(resolve(row.run))
        replies(resolve(row.result))
    script = (
        "import sys; from blyand.worker import JOBS, resolve\n"
        "for job, row in JOBS.items(): resolve(job); resolve(row.result)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_threads_run_at_most_width_calls_and_are_not_abandoned() -> None:
    async def main() -> None:
        lane = Threads("cpu", 2)
        assert await lane.run(pow, 2, 10) == 1024
        with pytest.raises(ZeroDivisionError):
            await lane.run(divmod, 1, 0)
        running, finished = threading.Event(), threading.Event()

        def work() -> None:
            running.set()
            release.wait(5)
            finished.set()

        release = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run, work)
            await trio.to_thread.run_sync(running.wait)
            nursery.cancel_scope.cancel()
            release.set()
        assert finished.is_set()

    trio.run(main)


def test_threads_and_device_are_chosen_from_the_settings() -> None:
    assert choose_threads(3, 8) == 3
    assert choose_threads(0, 10_000) == 1
    assert choose_memory_bytes(3, 2) == 3 << 20
    assert choose_memory_bytes(0, 1) >= 2 * choose_memory_bytes(0, 2) > 0
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ConfigFault, match="must be auto, cpu, cuda or cuda:N"):
        choose_device("gpu")


def test_a_learner_takes_every_device_that_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert training_devices("cpu", 0) == ["cpu"]
    assert training_devices("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert training_devices("auto", 0) == ["cuda:0", "cuda:1", "cuda:2"]
    assert training_devices("auto", 2) == ["cuda:0", "cuda:1"]
    assert training_devices("cuda:1", 0) == ["cuda:1"]
    assert training_devices("cuda:1", 2) == ["cuda:1", "cuda:2"]
    with pytest.raises(ConfigFault, match="set it to 2 or less"):
        training_devices("cuda:1", 3)


def gone(pid: int) -> bool:
    """True if the process ended; one that nobody has reaped yet counts."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


async def wait_until(condition: object, limit_s: float = 5.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        await trio.sleep(0.01)
