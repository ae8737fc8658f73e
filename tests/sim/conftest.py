"""What simulations share: short hash chains, and the same order of tasks every time.

A simulation makes hundreds of checkpoints, not a quarter million.
"""

from __future__ import annotations

import pytest
import trio._core._run as scheduler


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 4096)


@pytest.fixture(autouse=True)
def same_order(monkeypatch):
    """trio draws the order in which tasks run; here from a seed, as pytest-trio does."""
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    scheduler._r.seed(0)
