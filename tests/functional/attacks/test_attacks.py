"""Dozens of hostile behaviours against one daemon that goes on serving an honest peer."""

from __future__ import annotations

import pytest

from tests.functional.attacks.siege import BEHAVIOURS, Footprint, siege
from tests.functional.harness import wait_for
from tests.long import long

pytestmark = pytest.mark.functional

# They end when a deadline of the daemon's does: half a minute of a wave.
PATIENT = {
    "before_hello",
    "blobs_that_nobody_has",
    "checkpoints_that_are_lies",
    "flood_of_requests",
    "frames_in_drops",
    "gossip_above_the_bound",
    "gossip_of_two_gigabytes",
    "gossip_that_is_no_protobuf",
    "hello_of_another_network",
    "http_request",
    "no_hello",
    "noise_frame_that_never_comes",
    "offers_and_wishes",
    "one_byte_at_a_time",
    "plaintext",
    "silence",
    "streams_that_are_hoarded",
}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(sorted(BEHAVIOURS.keys() - PATIENT), id="quick"),
        pytest.param(sorted(BEHAVIOURS), id="all", marks=long),
    ],
)
def test_a_daemon_serves_honest_peers_while_strangers_attack(tmp_path, names):
    assert len(names) >= 40 and BEHAVIOURS.keys() > PATIENT
    with siege(tmp_path / "d") as one:
        first = one.wave(names)
        second = one.wave(names)
        print("\n".join(one.table()))
        print(first, second, one.peer.asked, f"{one.peer.slowest_s:.2f} s at most")
        assert not one.failures(), "\n".join(one.failures())
        assert not one.peer.errors, one.peer.errors[:10]
        assert one.peer.asked > 50
        # what a leak holds does not come back; what is under way does
        wait_for(lambda: no_more(one.look(), first), f"no more than {first}")
        assert second.connections == first.connections == 1
        assert second.resident_mib <= 1.05 * first.resident_mib


def no_more(now: Footprint, before: Footprint) -> bool:
    return now.tasks <= before.tasks and now.files <= before.files
