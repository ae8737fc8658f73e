"""Jobs for the tests of the worker process."""

from __future__ import annotations

import os
from collections.abc import Callable

from blyan_proto.codec import U32, message
from blyan_proto.errors import BadProof
from blyan_proto.types import Text
from blyan_tile.jobs import Progress
from blyand.worker import Row, path_of


@message
class Order:
    """What the worker shall do: one of the words below."""

    what: Text
    number: U32


@message
class Answer:
    number: U32
    pid: U32
    nice: U32
    threads: Text


def obey(order: Order, report: Callable[[Progress], None]) -> Answer:
    report(Progress(order.number, os.getpid(), order.what))
    if order.what == "hang":
        while True:
            pass
    if order.what == "lie":
        raise BadProof("not what it hashes to")
    if order.what == "disk":
        raise OSError("no space")
    if order.what == "bug":
        raise ZeroDivisionError("oops")
    if order.what == "crash":
        os.abort()
    return Answer(
        order.number + 1, os.getpid(), os.nice(0), os.environ["OMP_NUM_THREADS"]
    )


JOBS = {path_of(Order): Row(f"{__name__}:obey", path_of(Answer))}
