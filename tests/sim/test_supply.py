"""Whatever is done for ten years, no cap breaks (HZ-65, 67; TOKEN-01, 02)."""

from __future__ import annotations

import pytest

from blyand.rules.economy.book import MAX_SUPPLY_MICRO
from blyand.rules.economy.distribution import DAY_MS
from tests.sim.supply import BLY, SCENARIOS, YEARS, simulate

SPAN_MS = 30 * DAY_MS


@pytest.mark.parametrize("name", SCENARIOS)
def test_ten_years(name):
    economy = simulate(name, SPAN_MS)
    years = economy.years
    assert len(years) in (YEARS, YEARS + 1)
    paid = sum(year.paid_micro for year in years)
    issued = sum(year.issued_micro for year in years)
    if name == "idle":
        assert paid == 0 and years[-1].supply_micro == 500_000_000 * BLY
    else:
        assert 0 < issued <= paid
    if name == "full, near the cap":
        # Burning makes room, so a little more than was missing may be minted.
        assert years[-1].supply_micro <= MAX_SUPPLY_MICRO
    if name == "full, small network":
        assert issued < 1_000 * BLY * (1.1**YEARS - 1) + 1
    if name == "all slashed":
        # The rewards of the last epoch are still to be slashed.
        assert years[-1].supply_micro < 500_100_000 * BLY


def test_a_simulation_would_see_a_cap_that_breaks(monkeypatch):
    monkeypatch.setattr("blyand.rules.economy.supply.ISSUED_ONE_IN", 2)
    with pytest.raises(AssertionError):
        simulate("full, small network", SPAN_MS, years=1)
