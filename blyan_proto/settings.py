"""Settings of the genesis: numbers of systems that came after its first version.

Every setting has a default; a genesis names those that differ. A node must understand
all that it is given: an unknown name makes the genesis unusable for it.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """A setting that this software knows."""

    default: int
    low: int
    high: int
    meaning: str  # with its unit


SETTINGS: dict[str, Known] = {
    "clock_bound_ms": Known(
        10_000, 10, 3_600_000, "farthest that a proposal's time is from a voter's clock"
    ),
    "epoch_span_ms": Known(
        3_600_000, 1_000, 2_592_000_000, "consensus epoch: rewards, validator set"
    ),
}
