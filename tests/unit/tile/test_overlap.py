"""Copies are found by sketches, honest deltas are not taken for copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_tile.overlap import WIDTH, nearest, sketch

SECRET = b"of this node"
SHAPES = [(96, 64), (64,), (300, 40)]


def change(seed: int) -> list[np.ndarray]:
    source = np.random.default_rng(seed)
    return [source.standard_normal(shape) for shape in SHAPES]


def mixed(one: list[np.ndarray], other: list[np.ndarray], share: float):
    return [x + share * y for x, y in zip(one, other)]


def sketched(tiles: list[np.ndarray], secret: bytes = SECRET) -> np.ndarray:
    made = sketch(tiles, secret)
    assert made is not None and made.shape == (WIDTH,)
    return made


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.floats(0, 0.1))
def test_a_copy_is_found_whatever_its_scale_and_with_some_noise(seed, scale, noise):
    tiles, others = change(seed), [change(seed + n) for n in (1, 2, 3)]
    copy = [scale * x for x in mixed(tiles, others[0], noise)]
    known = [sketched(other) for other in (*others[1:], tiles)]
    assert nearest(sketched(copy), known) == len(known) - 1


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0, 2.0])
def test_what_only_goes_the_same_way_is_no_copy(share):
    """Honest deltas of one base have a part in common, at first the larger one."""
    common = change(0)
    ours = [sketched(mixed(common, change(n), share)) for n in range(1, 5)]
    assert nearest(ours[0], ours[1:]) is None
    assert nearest(ours[0], ours[1:2]) is None


def test_where_all_are_alike_nobody_is_a_copy_unless_it_stands_out():
    common = change(0)
    ours = [sketched(mixed(common, change(n), 0.1)) for n in range(1, 5)]
    assert nearest(ours[0], ours[1:]) is None and nearest(ours[0], ours[1:2]) is None
    assert nearest(ours[0], [ours[1], ours[2], ours[0], ours[3]]) == 2
    assert nearest(ours[0], [ours[0]]) == 0


def test_nothing_is_no_copy_of_nothing_and_the_opposite_none_of_the_original():
    nothing = [np.zeros(shape) for shape in SHAPES]
    assert sketch(nothing, SECRET) is None
    assert nearest(sketched(change(1)), []) is None
    opposite = [-tile for tile in change(1)]
    assert nearest(sketched(opposite), [sketched(change(1))]) is None


def test_another_secret_is_another_sketch():
    assert not np.array_equal(sketched(change(1)), sketched(change(1), b"other"))
