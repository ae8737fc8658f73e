"""Counters and gauges."""

from __future__ import annotations

import pytest

from blyand import metrics
from blyand.metrics import Metrics


def test_series_are_found_again_and_read_together() -> None:
    made = Metrics()
    made.counter("blocks").add()
    made.counter("blocks").add(2)
    made.counter("bytes", protocol="/a", way="up").add(5)
    made.gauge("peers").set(4)
    assert made.snapshot() == {
        "blocks": 3,
        'bytes{protocol="/a",way="up"}': 5,
        "peers": 4,
    }
    with pytest.raises(ValueError):
        made.counter("blocks").add(-1)


def test_labels_from_outside_cannot_grow_it_without_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 3)
    made = Metrics()
    for number in range(10):
        made.counter("bytes", peer=str(number)).add()
    assert made.snapshot()['bytes{peer="other"}'] == 7
    assert len(made.snapshot()) == 4
