"""A few pairs of the NAT matrix, in network namespaces of the test's own."""

from __future__ import annotations

import pytest

from tests.functional.nat.world import run_world, table, why_not

REASON = why_not()


@pytest.mark.functional
@pytest.mark.skipif(bool(REASON), reason=f"network namespaces: {REASON}")
def test_nodes_behind_nats_come_together():
    found = run_world(("full-cone", "symmetric"), ("none", "port-restricted"))
    assert found["states"] == {
        "none": "public",
        "full-cone": "public",
        "port-restricted": "private",
        "symmetric": "private",
    }
    assert found["paths"] == {
        "full-cone/none": "direct",
        "full-cone/port-restricted": "direct",
        "symmetric/none": "direct (back)",
        "symmetric/port-restricted": "relay",
    }, table(found)
    assert found["moved"] == "relay"  # one of its two relays was killed
