"""Whether a node may go on from what it knows, or is a newcomer (DEC-A11, HZ-31).

Validators may leave once their bonds are free; then nothing keeps them from signing
another history from where they left. So what was trusted once is trusted for one trust
span, and no longer: after that somebody has to say which checkpoint is the right one.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

OWN = "own"  # in place of a pin: the whole network was off, go on from what is here
WHERE = (
    "blyand run --checkpoint HEIGHT:HASH, as `blyanctl sync checkpoint` shows it on a "
    "node that you trust"
)


class Pin(NamedTuple):
    """The checkpoint that an operator vouches for."""

    height: int
    id: bytes

    def __str__(self) -> str:
        return f"{self.height}:{self.id.hex()}"


class Known(NamedTuple):
    """The newest checkpoint that this node verified; the genesis at height 0."""

    height: int
    id: bytes
    time_ms: int

    def __str__(self) -> str:
        return str(Pin(self.height, self.id))


class Start(enum.Enum):
    """How a node begins."""

    GO_ON = "from what it has executed"
    JOIN = "by the state of a checkpoint"


class Refused(Exception):
    """A node that must not begin so; the text says what to do."""


def parse_pin(text: str) -> Pin:
    """Return the checkpoint that HEIGHT:HASH names, or raise Refused."""
    height, _, id = text.strip().partition(":")
    try:
        pin = Pin(int(height), bytes.fromhex(id.removeprefix("0x")))
    except ValueError:
        pin = Pin(0, b"")
    if not 0 < pin.height < 2**63 or len(pin.id) != 32:
        raise Refused(f"{text!r} names no checkpoint; write HEIGHT:HASH, or {OWN}")
    return pin


def is_young(time_ms: int, now_ms: int, span_ms: int) -> bool:
    """True while a checkpoint of that time may be trusted."""
    return now_ms - time_ms <= span_ms


def start(
    known: Known,
    pin: Pin | None,
    now_ms: int,
    span_ms: int,
    *,
    vouched: bool,
    decides: bool,
) -> Start:
    """Return how to begin, or raise Refused with one sentence.

    `vouched`: the operator says that what is here is the newest there is. `decides`:
    nothing becomes final without this node, so nobody can have gone on otherwise.
    """
    if pin is not None and pin.height == known.height and pin.id != known.id:
        raise Refused(
            f"this home holds another checkpoint {pin.height} than {pin}: it followed "
            "another history; look again where you have the pin from, or use a new home"
        )
    if pin is not None and pin.height > known.height:
        return Start.JOIN
    if vouched or decides or is_young(known.time_ms, now_ms, span_ms):
        return Start.GO_ON
    age, span = duration(now_ms - known.time_ms), duration(span_ms)
    if known.height:
        raise Refused(
            f"the newest checkpoint of this node is {age} old, and after {span} it may "
            f"no longer be trusted; start it with {WHERE}; if the whole network was off, "
            f"--checkpoint {OWN} goes on from here, {known}"
        )
    raise Refused(
        f"the genesis of this network is {age} old, and after {span} no newcomer may "
        f"trust it alone; start this node with {WHERE}"
    )


def check_pin(pin: Pin, time_ms: int, now_ms: int, span_ms: int) -> None:
    """Raise Refused when the checkpoint that a pin names is too old to join by."""
    if not is_young(time_ms, now_ms, span_ms):
        raise Refused(
            f"checkpoint {pin} is {duration(now_ms - time_ms)} old, and after "
            f"{duration(span_ms)} it may no longer be trusted; take a newer one: {WHERE}"
        )


def duration(ms: int) -> str:
    """Return a span as people say it."""
    for unit, of in (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000)):
        if ms >= 2 * of:
            return f"{ms // of} {unit}"
    return f"{max(0, ms) // 1000} seconds"
