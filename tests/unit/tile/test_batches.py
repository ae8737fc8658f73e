"""Assignments are pure; sequences are gathered across the views of several archives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.errors import LimitExceeded
from blyan_tile.batches import assign, gather, held_out_windows
from blyan_tile.create import run_preset

RUN = run_preset("tiny", bytes(32), (bytes(32),), 4, 11)
KNOWN = [63853, 51793]
BEACON, LEARNER = bytes(range(32)), b"L" * 20


def test_an_assignment_is_the_same_on_every_node() -> None:
    starts = assign(BEACON, 3, LEARNER, RUN, 100_000)
    assert starts.shape == (RUN.inner_steps, RUN.batch)
    assert starts[0].tolist() == KNOWN  # a change here splits the network
    others = [
        assign(BEACON[::-1], 3, LEARNER, RUN, 100_000),
        assign(BEACON, 4, LEARNER, RUN, 100_000),
        assign(BEACON, 3, b"M" * 20, RUN, 100_000),
        assign(BEACON, 3, LEARNER, replace(RUN, seed=12), 100_000),
    ]
    assert not any(np.array_equal(starts, other) for other in others)


def test_every_start_leaves_room_for_its_sequence() -> None:
    for size in (RUN.sequence + 1, RUN.sequence + 2, 1000):
        starts = assign(BEACON, 0, LEARNER, RUN, size)
        assert starts.min() >= 0
        assert starts.max() + RUN.sequence + 1 <= size
    with pytest.raises(LimitExceeded):
        assign(BEACON, 0, LEARNER, RUN, RUN.sequence)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6), st.data())
def test_gather_reads_the_parts_as_one(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    length = data.draw(st.integers(1, len(whole)))
    starts = data.draw(
        st.lists(st.integers(0, len(whole) - length), min_size=1, max_size=5)
    )
    views = [np.frombuffer(part, np.uint8) for part in parts]
    got = gather(views, np.array(starts), length)
    assert got.dtype == np.int64
    assert [bytes(row.tolist()) for row in got] == [
        whole[start : start + length] for start in starts
    ]


def test_held_out_windows_spread_over_the_side() -> None:
    text = np.arange(1000, dtype=np.uint32).astype(np.uint8)
    windows = held_out_windows([text[:300], text[300:]], 64, 640)
    assert windows.shape == (10, 65)
    assert windows[0, 0] == 0 and windows[1, 0] == 93
    assert held_out_windows([text[:65]], 64).tolist() == [list(range(65))]
    with pytest.raises(LimitExceeded):
        held_out_windows([text[:64]], 64)
