"""The doors to heavy work: threads, and worker processes (DEC-B11).

Threads are for calls that release the interpreter's lock and end within 50 ms. A worker
process is for training, imports and whatever parses foreign formats: it may be slow,
crash or be killed, and the daemon lives.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import trio

from blyan_proto import errors
from blyan_proto.codec import encode
from blyan_proto.framing import FrameReader, frame
from blyan_tile.jobs import Progress
from blyand.errors import ComputeFault, ConfigFault
from blyand.log import BROKEN, fields
from blyand.worker import (
    CHUNK_BYTES,
    GIVEN_UP,
    JOBS,
    MAX_FRAME_BYTES,
    UNLIMITED,
    Begin,
    Failed,
    Limits,
    Row,
    path_of,
    replies,
    resolve,
)

log = logging.getLogger(__name__)

R = TypeVar("R")

DYING_S = 2.0  # from the end of the socket to that of the process


class GivenUp(Exception):
    """A worker's job ended early because `Worker.give_up` asked for it."""


class _Width:
    """A trio.CapacityLimiter that takes no turn of the loop where there is room."""

    def __init__(self, width: int) -> None:
        self._limiter = trio.CapacityLimiter(width)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        try:
            self._limiter.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(borrower)

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)


class Threads:
    """A lane of at most `width` threads. A call is awaited even when cancelled.

    So no thread outlives the resource (store, host) that it works on.
    """

    def __init__(self, name: str, width: int) -> None:
        self.name = name
        self._limiter = cast(trio.CapacityLimiter, _Width(width))  # all that is used

    async def run(self, fn: Callable[..., R], *args: Any) -> R:
        """Return ``fn(*args)``, run in a thread. Its errors propagate as they are."""
        result: R = await trio.to_thread.run_sync(
            fn, *args, limiter=self._limiter, thread_name=self.name
        )
        return result


class Worker:
    """One worker process, started by the first call and again after each death."""

    def __init__(
        self,
        name: str,
        nice: int,
        threads: int,
        jobs: Mapping[str, Row],
        limits: Limits = UNLIMITED,
    ) -> None:
        self.name = name
        self._limits = limits
        self._nice = nice
        self._threads = threads
        self._jobs = jobs
        self._turn = trio.Lock()
        self._sending = trio.Lock()
        self._calls = 0  # begun
        self._process: subprocess.Popen[bytes] | None = None
        self._link: trio.SocketStream | None = None

    @property
    def pid(self) -> int | None:
        """The process that serves now, if one does."""
        return self._process.pid if self._process else None

    async def call(
        self, job: Any, report: Callable[[Progress], None] | None = None
    ) -> Any:
        """Run `job` in the process and return its result; one call at a time.

        `report` is called on the loop for every sign of progress. Cancelling kills
        the process. Raises the ProtocolError that the job raised over foreign bytes,
        and ComputeFault when the job failed otherwise or its process died.
        """
        row = self._jobs.get(path_of(type(job)))
        if row is None:
            raise ComputeFault(f"no worker runs {path_of(type(job))}")
        result = resolve(row.result)
        begin = Begin(path_of(type(job)), row.run, row.result)
        async with self._turn:
            self._calls += 1
            answered = False
            try:
                reply = await self._exchange(begin, job, result, report)
                answered = True
            finally:
                if not answered:
                    await self.stop()
        if isinstance(reply, Failed):
            raise self._raised(reply, begin)
        return reply

    async def give_up(self) -> None:
        """Ask for the call under way to end at its next report, with GivenUp.

        Cheaper than cancelling the call: the process, and what it imported, lives on.
        """
        call = self._calls
        async with self._sending:
            if self._link is None or not self._turn.locked() or self._calls != call:
                return  # it ended meanwhile, and another one may be under way
            try:
                await self._link.send_all(frame(b""))
            except trio.BrokenResourceError:
                pass  # dead: the caller sees it

    def hold(self, still: bool) -> None:
        """Let the process, if there is one, stand still, or go on; it is not told."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP if still else signal.SIGCONT)

    async def stop(self) -> None:
        """Kill the process, if there is one, and wait until it is gone."""
        process, self._process = self._process, None
        link, self._link = self._link, None
        if process is not None and link is not None:
            process.kill()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(link)
                await trio.to_thread.run_sync(process.wait)

    async def _exchange(
        self,
        begin: Begin,
        job: Any,
        result: type,
        report: Callable[[Progress], None] | None,
    ) -> Any:
        if self._process is not None and self._process.poll() is not None:
            await self.stop()  # it died between two calls
        if self._link is None:
            self._start()
        assert self._link is not None and self._process is not None
        answers = replies(result)
        reader = FrameReader(MAX_FRAME_BYTES)
        try:
            async with self._sending:
                await self._link.send_all(frame(encode(begin)) + frame(encode(job)))
            while received := await self._link.receive_some(CHUNK_BYTES):
                reader.feed(received)
                while (body := reader.take()) is not None:
                    reply = answers.decode(body, MAX_FRAME_BYTES)
                    if not isinstance(reply, Progress):
                        return reply
                    if report is not None:
                        report(reply)
        except trio.BrokenResourceError:
            pass  # like an end of the stream: the process is gone
        except errors.ProtocolError as error:
            raise ComputeFault(f"the {self.name} worker speaks nonsense") from error
        cause = await trio.to_thread.run_sync(_cause_of_death, self._process)
        raise ComputeFault(f"the {self.name} worker died ({cause})")

    def _start(self) -> None:
        """Spawn the process.

        From the loop's own thread, though it costs a millisecond or two: the kernel
        kills the child when the *thread* that made it ends.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "blyand.worker"]
        try:
            self._process = subprocess.Popen(
                [
                    *command,
                    str(theirs.fileno()),
                    str(self._nice),
                    str(self._limits.memory_mib),
                    str(self._limits.cpu_s),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **thread_environment(self._threads)},
            )
        except OSError as error:
            ours.close()
            raise ComputeFault(f"cannot start a worker: {error}") from error
        finally:
            theirs.close()
        self._link = trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    def _raised(self, reply: Failed, begin: Begin) -> Exception:
        """Return the error that a job's failure is in this process."""
        if reply.fault == GIVEN_UP:
            return GivenUp(f"the {self.name} worker gave its job up")
        kind = getattr(errors, reply.fault, None) if reply.fault else None
        if isinstance(kind, type) and issubclass(kind, errors.ProtocolError):
            return kind(reply.text)
        if reply.trace:
            log.error(
                "%s in a worker: %s",
                BROKEN,
                reply.text,
                extra=fields(worker=self.name, job=begin.run, trace=reply.trace),
            )
        return ComputeFault(f"the {self.name} worker failed: {reply.text}")


@asynccontextmanager
async def open_worker(
    name: str,
    *,
    nice: int = 10,
    threads: int = 1,
    jobs: Mapping[str, Row] = JOBS,
    limits: Limits = UNLIMITED,
) -> AsyncIterator[Worker]:
    """Give a worker for `jobs`; its process ends with the block, whatever it does."""
    worker = Worker(name, nice, threads, jobs, limits)
    try:
        yield worker
    finally:
        await worker.stop()


def _cause_of_death(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(DYING_S)
    except subprocess.TimeoutExpired:
        return "it closed its socket"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables that tensor libraries read when they are imported (DEC-S5)."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # an idle thread sleeps instead of spinning
    }


def choose_threads(threads: int, daemons_on_host: int) -> int:
    """Return how many threads one tensor operation gets; `threads` 0: a fair share."""
    return threads or max(1, usable_cores() // daemons_on_host)


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_memory_bytes(
    memory_mib: int, daemons_on_host: int, device: str = "cpu"
) -> int:
    """Return how much memory of a chosen `device` resident experts may take.

    0: a fair share of half.
    """
    if memory_mib:
        return memory_mib << 20
    total = _machine_bytes()
    if device != "cpu":
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
    return total // 2 // daemons_on_host


def choose_cache_bytes(cache_mib: int, daemons_on_host: int) -> int:
    """Return how much memory keys and values may take; 0: a fair share of an eighth."""
    return cache_mib << 20 or _machine_bytes() // 8 // daemons_on_host


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_device(device: str) -> str:
    """Return "cpu" or "cuda:N" for a setting; imports torch unless it is "cpu".

    Raises ConfigFault for a device that is not there.
    """
    if device == "cpu":
        return device
    if not re.fullmatch(r"auto|cuda(:\d{1,3})?", device, re.ASCII):
        raise ConfigFault(
            f"compute.device is {device!r}, but must be auto, cpu, cuda or cuda:N"
        )
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise ConfigFault(
            f"compute.device is {device}, but {count} CUDA devices are here"
        )
    return f"cuda:{index}"


def training_devices(device: str, processes: int) -> list[str]:
    """Return where each process of a learner computes; imports torch unless "cpu".

    `processes` 0: one, or with "auto" one per CUDA device. Raises ConfigFault like
    `choose_device`, and for more processes than CUDA devices from `device` on.
    """
    first = choose_device(device)
    if first == "cpu":
        return [first] * max(1, processes)
    import torch

    index = int(first.partition(":")[2])
    there = torch.cuda.device_count() - index
    wanted = processes or (there if device == "auto" else 1)
    if wanted > there:
        raise ConfigFault(
            f"training.processes is {wanted}, but {there} CUDA devices are here from "
            f"{first} on; set it to {there} or less"
        )
    return [f"cuda:{index + step}" for step in range(wanted)]
