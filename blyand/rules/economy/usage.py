"""Which experts answered whom in the running epoch, as their payers say (REWARD-02).

Counted when a payment for a service takes effect. What one account pays itself is left
out, and rewards never exceed what the payers left with the network for good: whoever
pays itself through a second account loses by it (HZ-41).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from blyan_proto.codec import U32, message
from blyan_proto.constants import PPM
from blyan_proto.types import members
from blyand.rules.economy import reward
from blyand.rules.economy.statement import MAX_LINES, Line
from blyand.rules.records import NODES
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View


@message
class Tally:
    """How many lines the running epoch has."""

    lines: U32


USES = Table(b"use", Line)  # model, group, server; of the running epoch
TALLY = Table(b"uses", Tally)  # one record


# Far above what moves a reward, far below what a record can hold.
MAX_CALLS = 1_000_000  # counted of one service for one expert
MAX_RESPONSE_MS = 60_000
MAX_LINE_CALLS = 10**12


class Served(NamedTuple):
    """One paid service, as its payer signed it."""

    server: bytes  # account
    payer: bytes  # account
    model: bytes | None
    calls: tuple[tuple[int, int], ...]  # (group, calls > 0), ascending by group
    response_ms: int  # mean time of a call, measured by the payer
    quality_ppm: int  # the payer's verdict
    fee_micro: int  # what the network kept of the payment, burnt or pooled


def count(view: Overlay, served: Served, time_ms: int) -> None:
    """Count one paid service. Never rejects: what does not count is left out.

    The fee is spread over the experts by their calls, rounded down.
    """
    server, model = served.server, served.model
    node = NODES.get(view, server)
    if server == served.payer or node is None or model is None or node.model != model:
        return
    held = members(node.held)
    total = sum(calls for _, calls in served.calls)
    response_ms = min(MAX_RESPONSE_MS, served.response_ms)
    for group, called in served.calls:
        calls, fee = min(MAX_CALLS, called), served.fee_micro * called // max(1, total)
        if group not in held or not calls:
            continue
        line = _line(view, model, group, server, is_paid=fee > 0)
        if line is not None and line.calls <= MAX_LINE_CALLS:
            _put(
                view,
                replace(
                    line,
                    calls=line.calls + calls,
                    waited_ms=line.waited_ms + calls * response_ms,
                    quality=line.quality + calls * served.quality_ppm,
                    fee_micro=line.fee_micro + fee,
                    last_ms=time_ms,
                ),
            )


def _line(
    view: Overlay, model: bytes, group: int, server: bytes, *, is_paid: bool
) -> Line | None:
    """Return the line as it stands; None where there is no room for another.

    Only a fee begins one: without any it would earn nothing, and take others' room.
    """
    line = USES.get(view, model, group, server)
    if line is not None:
        return line
    if not is_paid:
        return None
    tally = TALLY.get(view) or Tally(0)
    if tally.lines >= MAX_LINES:
        return None
    return Line(model, group, server, 0, 0, 0, 0, 0)


def _put(view: Overlay, line: Line) -> None:
    if USES.get(view, line.model, line.group, line.server) is None:
        tally = TALLY.get(view) or Tally(0)
        TALLY.put(view, Tally(tally.lines + 1))
    USES.put(view, line, line.model, line.group, line.server)


def lines(view: View, base_micro: int, time_ms: int) -> list[Line]:
    """Return the running epoch's lines, each with what the formula gives at `time_ms`.

    Ascending by model, group, server.
    """
    found = list(USES.scan(view))
    experts: dict[tuple[bytes, int], tuple[int, int]] = {}
    for line in found:
        calls, fees = experts.get((line.model, line.group), (0, 0))
        experts[line.model, line.group] = calls + line.calls, fees + line.fee_micro
    return [
        replace(
            line,
            micro=_worth(line, *experts[line.model, line.group], base_micro, time_ms),
        )
        for line in found
    ]


def _worth(line: Line, calls: int, fees: int, base_micro: int, time_ms: int) -> int:
    """Return what a line is worth, of an expert with so many calls and fees in all."""
    return reward.server(
        base_micro,
        calls,
        line.fee_micro,
        fees,
        line.waited_ms // line.calls,
        line.quality // line.calls,
        time_ms - line.last_ms,
    )


def earned(line: Line, alpha_ppm: int) -> int:
    """Return what a line earns: the formula weighed by alpha, at most its fees."""
    return min(line.fee_micro, line.micro * alpha_ppm // PPM)


def forget(view: Overlay, counted: Iterable[Line]) -> None:
    """Begin to count anew, with the next epoch; `counted` are all lines of this one."""
    for line in counted:
        USES.remove(view, line.model, line.group, line.server)
    TALLY.remove(view)
