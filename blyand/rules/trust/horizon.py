"""How far back an offence is punished: as long as a bond is on its way back.

What is signed names heights, not times; so state remembers at which height every epoch
of that span began.
"""

from __future__ import annotations

from blyan_proto.codec import U64, message
from blyan_proto.genesis import Genesis
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View

FORGOTTEN_AT_ONCE = 64  # epochs that one epoch's end drops


@message
class Beginning:
    """Where an epoch began."""

    height: U64
    time_ms: U64


@message
class Horizon:
    """The oldest epoch that counts."""

    epoch: U64


BEGINNINGS = Table(b"epoch-began", Beginning)  # number of the epoch
HORIZON = Table(b"horizon", Horizon)  # one record


def begin(view: Overlay, time_ms: int) -> None:
    """Write the beginning of the first epoch."""
    BEGINNINGS.put(view, Beginning(0, time_ms), 0)
    HORIZON.put(view, Horizon(0))


def oldest_height(view: View) -> int:
    """Return the height below which nothing is punished any more."""
    horizon = HORIZON.get(view)
    assert horizon is not None
    oldest = BEGINNINGS.get(view, horizon.epoch)
    assert oldest is not None
    return oldest.height


def advance(
    view: Overlay, genesis: Genesis, ended: int, height: int, time_ms: int
) -> None:
    """Epoch `ended` closes at this checkpoint: drop epochs that were over for too long."""
    BEGINNINGS.put(view, Beginning(height + 1, time_ms), ended + 1)
    before_ms = time_ms - genesis.setting("unbond_span_ms")
    horizon = HORIZON.get(view)
    assert horizon is not None
    oldest = horizon.epoch
    for _ in range(FORGOTTEN_AT_ONCE):
        following = BEGINNINGS.get(view, oldest + 1)
        if following is None or following.time_ms > before_ms:
            break
        BEGINNINGS.remove(view, oldest)
        oldest += 1
    HORIZON.put(view, Horizon(oldest))
