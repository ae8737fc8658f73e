"""Short hash chains: a simulation makes hundreds of checkpoints, not a quarter million."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 4096)
