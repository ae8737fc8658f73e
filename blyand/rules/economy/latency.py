"""How far nodes are from one another, as nodes say: the median of signed reports.

Classes, not milliseconds, so that all nodes compute the same from the same reports. A
node's class is the lower median of what others said of it within a span of chain time,
and only when at least three did: fewer than half of them move it nowhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from blyan_proto.block.block import Block
from blyan_proto.block.economy import LatencyClass, LatencyReport
from blyan_proto.codec import U64, Size, message
from blyan_proto.types import Account
from blyand.rules.economy.epoch import running
from blyand.rules.records import NODES
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

MAX_REPORTERS = 32  # of one node; whose reports are too old make room
LEAST_REPORTERS = 3
BOUNDS_MS = (10, 30, 80, 200)  # of the classes, from below


@message
class Said:
    """What one reporter said of a node last."""

    reporter: Account
    latency: LatencyClass
    time_ms: U64


@message
class Reports:
    """What others said of one node, by reporter."""

    said: Annotated[tuple[Said, ...], Size(1, MAX_REPORTERS)]


LATENCIES = Table(b"latency", Reports)  # account of the node that was measured


def class_of_ms(rtt_ms: float) -> LatencyClass:
    """Return the class of a measured round trip."""
    return LatencyClass(sum(rtt_ms >= bound for bound in BOUNDS_MS))


def report(
    view: Overlay,
    block: Block,
    payload: LatencyReport,
    time_ms: int,
    epoch_ms: int,
    span_ms: int,
) -> None:
    """Execute a report: at most one of each node in an epoch, and none of newcomers.

    A node reports from the epoch after its registration on.
    """
    reporter = block.header.account
    node = NODES.get(view, reporter)
    if node is None or node.registered_height >= running(view).first_height:
        raise Reject("only who was registered before this epoch reports latencies")
    if time_ms - node.reported_ms < epoch_ms:
        raise Reject("one report of latencies in an epoch is enough")
    NODES.put(view, replace(node, reported_ms=time_ms), reporter)
    for one in payload.latencies:
        if one.node == reporter or NODES.get(view, one.node) is None:
            raise Reject(
                "a report about itself, or about a node that is not registered"
            )
        known = LATENCIES.get(view, one.node)
        said = {
            old.reporter: old
            for old in (known.said if known else ())
            if time_ms - old.time_ms <= span_ms
        }
        if reporter in said or len(said) < MAX_REPORTERS:
            said[reporter] = Said(reporter, one.latency, time_ms)
        ordered = tuple(said[account] for account in sorted(said))
        LATENCIES.put(view, Reports(ordered), one.node)


def class_of(
    view: View, account: bytes, time_ms: int, span_ms: int
) -> LatencyClass | None:
    """Return a node's class now, None while too few reports say one."""
    known = LATENCIES.get(view, account)
    if known is None:
        return None
    classes = sorted(
        one.latency for one in known.said if time_ms - one.time_ms <= span_ms
    )
    if len(classes) < LEAST_REPORTERS:
        return None
    return LatencyClass(classes[(len(classes) - 1) // 2])


def bound_ms(view: View, account: bytes, time_ms: int, span_ms: int) -> int | None:
    """Return the upper bound of a node's class; None for the farthest, or unknown."""
    known = class_of(view, account, time_ms, span_ms)
    return None if known is None else dict(enumerate(BOUNDS_MS)).get(known)
