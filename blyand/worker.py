"""The worker process: ``python -m blyand.worker FD NICE MEMORY CPU``, one job at a time
(DEC-B11).

Strategy. A thread reads the socket to the daemon; the main thread runs the jobs. When
the socket ends, the daemon is gone or done with us, and the reading thread ends the
process at once, even in the middle of a step: there is nothing here worth saving.
A job's code is imported here, never in the daemon; its messages name it there.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from blyan_proto import errors
from blyan_proto.codec import Choice, Size, decode, message
from blyan_proto.errors import ProtocolError
from blyan_proto.framing import FrameReader, frame
from blyan_proto.types import Name, Text
from blyan_tile.jobs import Progress

MAX_FRAME_BYTES = 64 << 20  # a job or a result; tensors go by file and mmap instead
CHUNK_BYTES = 1 << 18
GIVEN_UP = "given up"  # Failed.fault of a job that the daemon gave up
MOST_NICE = 19
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Row:
    """The function that runs a job and the class of its result, as "module:name"."""

    run: str
    result: str


_IMPORT, _EXPORT = "blyan_tile.model.import_hf", "blyan_tile.model.export_hf"

# Class of the job -> who runs it. Names, so that the daemon never imports torch here.
JOBS: Mapping[str, Row] = {
    f"{module}:{job}": Row(f"{module}:{run}", f"{module}:{result}")
    for module, job, run, result in (
        ("blyan_tile.learner", "LearnJob", "learn", "LearnResult"),
        ("blyan_tile.reexecution", "RepeatJob", "repeat", "Repeated"),
        ("blyan_tile.create", "CreateJob", "create", "CreateResult"),
        ("blyan_tile.corpus", "ArchiveJob", "build", "ArchiveResult"),
        ("blyan_tile.grammar", "LexiconJob", "learn_tokens", "Done"),
        ("blyan_tile.grammar", "BeginJob", "begin_grammar", "Masked"),
        ("blyan_tile.grammar", "StepJob", "step_grammar", "Masked"),
        ("blyan_tile.grammar", "EndJob", "end_grammar", "Done"),
        ("blyan_tile.template", "RenderJob", "render", "Rendered"),
        ("blyan_tile.vocabulary", "OpenJob", "open_vocabulary", "Opened"),
        ("blyan_tile.vocabulary", "EncodeJob", "encode_text", "Encoded"),
        (_IMPORT, "ImportJob", "import_checkpoint", "ImportResult"),
        (_EXPORT, "ExportJob", "export_model", "ExportResult"),
        ("blyan_tile.packed", "PackJob", "pack", "PackResult"),
    )
}


@dataclass(frozen=True)
class Limits:
    """What a worker may take; where it takes more, its process ends."""

    memory_mib: int = 0  # of address space; 0: no limit
    cpu_s: int = 0  # of one job; 0: no limit

    def enter(self) -> None:
        """Bound the memory of this process from now on; its end leaves no core file."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if self.memory_mib:
            size = self.memory_mib << 20
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

    def begin(self) -> None:
        """Bound the processor time from now on; the kernel ends the process after it."""
        if self.cpu_s:
            used = math.ceil(time.process_time())
            resource.setrlimit(
                resource.RLIMIT_CPU, (used + self.cpu_s, resource.RLIM_INFINITY)
            )


UNLIMITED = Limits()


@message
class Begin:
    """Announces the job in the next frame and names the code for it."""

    job: Name
    run: Name
    result: Name


@message
class Failed:
    """A job raised. `fault` is the ProtocolError's class, or empty: not the bytes'."""

    fault: Annotated[str, Size(0, 128)]
    text: Text
    trace: Annotated[str, Size(0, 65536)]  # not empty: a bug


def replies(result: type) -> Choice:
    """Return what a worker may answer to a job with this class of result."""
    return Choice("worker reply", {0: Progress, 1: Failed, 2: result})


def resolve(path: str) -> Any:
    """Return what "module:name" stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def path_of(cls: type) -> str:
    """Return "module:name" of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def cut(text: str, size: int) -> str:
    """Return the first `size` bytes of a text, whole characters only."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


def _read(
    link: socket.socket, frames: queue.SimpleQueue[bytes], give_up: threading.Event
) -> None:
    """Pass frames on; end the process with the socket.

    An empty frame asks for the job under way to be given up at its next report.
    """
    reader = FrameReader(MAX_FRAME_BYTES)
    try:
        while received := link.recv(CHUNK_BYTES):
            reader.feed(received)
            while (body := reader.take()) is not None:
                if body:
                    frames.put(body)
                else:
                    give_up.set()
    finally:
        os._exit(0)


class _GivenUp(Exception):
    """The daemon no longer wants the job's result."""


def _answer(
    begin: Begin, body: bytes, link: socket.socket, give_up: threading.Event
) -> None:
    """Run one job and send its reply. The boundary where a job's bug is contained."""
    try:
        answers = replies(resolve(begin.result))
        job = decode(resolve(begin.job), body, MAX_FRAME_BYTES)

        def report(progress: Progress) -> None:
            if give_up.is_set():
                raise _GivenUp
            link.sendall(frame(answers.encode(progress)))

        reply = resolve(begin.run)(job, report)
        raw = answers.encode(reply)
    except Exception as error:
        raw = _FAILURES.encode(_failure(error))
    link.sendall(frame(raw))


def _failure(error: Exception) -> Failed:
    if isinstance(error, _GivenUp):
        return Failed(GIVEN_UP, "given up", "")
    text = cut(f"{type(error).__name__}: {error}", 512)
    if isinstance(error, ProtocolError):
        known = (c.__name__ for c in type(error).__mro__ if c.__module__ == _ERRORS)
        return Failed(next(known), cut(str(error), 512), "")
    if isinstance(error, (OSError, MemoryError)):
        return Failed("", text, "")
    return Failed("", text, cut("".join(traceback.format_exception(error)), 65536))


_ERRORS = errors.__name__
_FAILURES = Choice("worker failure", {1: Failed})  # one of `replies`


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the daemon dies, where it can.

    The socket's end says the same; this also reaches a job that keeps the
    interpreter's lock, so that the reading thread never runs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _yield(nice: int) -> None:
    """Take a niceness; 20 where the kernel knows it: only what nobody else wants.

    Then whoever wakes up runs at once, where niceness alone leaves us our slice.
    """
    os.nice(min(nice, MOST_NICE))
    if nice > MOST_NICE and sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Serve jobs from the socket ``sys.argv[1]`` until it ends."""
    # The daemon alone decides when we end: a Ctrl-C reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    _yield(int(sys.argv[2]))
    limits = Limits(*map(int, sys.argv[3:]))
    limits.enter()
    link = socket.socket(fileno=int(sys.argv[1]))
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    give_up = threading.Event()
    reading = threading.Thread(target=_read, args=(link, frames, give_up), daemon=True)
    reading.start()
    while True:
        begin = decode(Begin, frames.get(), MAX_FRAME_BYTES)
        give_up.clear()
        limits.begin()
        _answer(begin, frames.get(), link, give_up)


if __name__ == "__main__":
    main()
