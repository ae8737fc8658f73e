"""Dozens of hostile behaviours against one daemon that goes on serving an honest peer."""

from __future__ import annotations

import pytest

from tests.functional.attacks.siege import BEHAVIOURS, siege
from tests.long import long

pytestmark = pytest.mark.functional


def test_there_are_many_behaviours():
    assert len(BEHAVIOURS) >= 40


@long
def test_a_daemon_serves_honest_peers_while_strangers_attack(tmp_path):
    with siege(tmp_path / "d") as one:
        first = one.wave()
        second = one.wave()
        print("\n".join(one.table()))
        print(first, second, one.peer.asked, f"{one.peer.slowest_s:.2f} s at most")
        assert not one.failures(), "\n".join(one.failures())
        assert not one.peer.errors, one.peer.errors[:10]
        assert one.peer.asked > 50
        assert (second.tasks, second.files) == (first.tasks, first.files)
        assert second.connections == first.connections == 1
        assert second.resident_mib <= 1.05 * first.resident_mib
