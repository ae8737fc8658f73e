"""The outer step, operation by operation."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from blyan_tile import outer

VECTORS = Path(__file__).parents[2] / "vectors"
make_tile = SimpleNamespace(**runpy.run_path(str(VECTORS / "make_tile.py")))

WEIGHTS = make_tile.floats("weights", (11, 13), -24)
MOMENTUM = make_tile.floats("momentum", (11, 13), -30)
GRADIENT = make_tile.floats("gradient", (11, 13), -31)


def test_the_step_is_its_definition():
    before = WEIGHTS.copy(), MOMENTUM.copy(), GRADIENT.copy()
    weights, momentum = outer.step(WEIGHTS, MOMENTUM, GRADIENT, 900_000, 500_000)
    rate, mu = np.float32(0.9), np.float32(0.5)
    for at in np.ndindex(WEIGHTS.shape):
        m = np.float32(np.float32(mu * MOMENTUM[at]) + GRADIENT[at])
        change = np.float32(rate * np.float32(GRADIENT[at] + np.float32(mu * m)))
        assert momentum[at] == m
        assert weights[at] == np.float32(WEIGHTS[at] - change)
    for old, kept in zip(before, (WEIGHTS, MOMENTUM, GRADIENT)):
        assert (old == kept).all()
    assert weights.dtype == momentum.dtype == np.float32


def test_no_momentum_yet_counts_as_zeros():
    zeros = np.zeros_like(WEIGHTS)
    first = outer.step(WEIGHTS, None, GRADIENT, 900_000, 500_000)
    second = outer.step(WEIGHTS, zeros, GRADIENT, 900_000, 500_000)
    for one, two in zip(first, second):
        assert one.tobytes() == two.tobytes()


def test_without_momentum_there_is_no_state():
    weights, momentum = outer.step(WEIGHTS, None, GRADIENT, 700_000, 0)
    assert momentum is None
    assert (weights == WEIGHTS - np.float32(0.7) * GRADIENT).all()
    again, dropped = outer.step(WEIGHTS, MOMENTUM, GRADIENT, 700_000, 0)
    assert dropped is None and again.tobytes() == weights.tobytes()


def test_negative_zero_weights_stay():
    weights = np.float32([-0.0, 0.0])
    after, _ = outer.step(weights, None, np.zeros(2, np.float32), 1_000_000, 0)
    assert after.tobytes() == weights.tobytes()


def test_rows_alone_equal_rows_of_the_whole():
    whole = outer.step(WEIGHTS, MOMENTUM, GRADIENT, 900_000, 900_000)
    rows = slice(3, 8)
    alone = outer.step(WEIGHTS[rows], MOMENTUM[rows], GRADIENT[rows], 900_000, 900_000)
    for one, two in zip(whole, alone):
        assert one[rows].tobytes() == two.tobytes()


def test_other_types_and_shapes_are_a_mistake():
    for bad in (WEIGHTS.astype(np.float64), WEIGHTS[:2]):
        with pytest.raises(ValueError):
            outer.step(WEIGHTS, None, bad, 1, 1)
        with pytest.raises(ValueError):
            outer.step(WEIGHTS, bad, GRADIENT, 1, 1)
