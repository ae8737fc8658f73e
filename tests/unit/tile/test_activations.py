"""Hidden states on the wire: rounding, whole rows, finite numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import Numerics
from blyan_tile.activations import (
    TOLERANCE,
    is_close,
    is_finite,
    read_rows,
    write_rows,
)

BF16 = Numerics.BF16


def rounded(bits):
    """bfloat16, nearest even, in integers: another way than the code's."""
    bits = np.asarray(bits, np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> 16).astype(
        np.uint16
    )


def test_float32_travels_as_it_is():
    x = np.random.default_rng(0).standard_normal((5, 7), np.float32)
    raw = write_rows(x, Numerics.REFERENCE)
    assert raw == x.tobytes()
    assert read_rows(raw, 7, Numerics.REFERENCE).tobytes() == raw


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
@example([0x3F80_8000, 0x3F81_8000, 0x3F80_7FFF, 0x3F80_8001, 0xBF81_8000, 0x8000])
def test_bfloat16_is_rounded_to_nearest_even(bits):
    x = np.array(bits, np.uint32).view(np.float32)[None]
    x[~np.isfinite(x)] = 1.0
    raw = write_rows(x, BF16)
    assert np.array_equal(np.frombuffer(raw, "<u2"), rounded(x.view(np.uint32)[0]))
    if is_finite(x, BF16):
        back = read_rows(raw, x.shape[1], BF16)
        assert np.array_equal(
            back, torch.from_numpy(x).bfloat16().float().numpy(), equal_nan=False
        )
        assert write_rows(back, BF16) == raw
    else:
        with pytest.raises(DecodeError):
            read_rows(raw, x.shape[1], BF16)


@pytest.mark.parametrize("numerics", Numerics)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_is_refused(numerics, value):
    x = np.zeros((3, 4), np.float32)
    assert is_finite(x, numerics)
    x[1, 2] = value
    assert not is_finite(x, numerics)
    with pytest.raises(DecodeError):
        read_rows(write_rows(x, numerics), 4, numerics)


@pytest.mark.parametrize("numerics", Numerics)
def test_only_whole_rows_are_read(numerics):
    raw = write_rows(np.zeros((3, 4), np.float32), numerics)
    for wrong, width in ((raw[:-1], 4), (b"", 4), (raw, 5), (raw, 0)):
        with pytest.raises(DecodeError):
            read_rows(wrong, width, numerics)


@pytest.mark.parametrize("numerics", Numerics)
def test_close_is_what_rounding_and_recipes_explain(numerics):
    random = np.random.default_rng(1)
    x = random.standard_normal((9, 64), np.float32)
    noise = random.standard_normal((9, 64), np.float32) * TOLERANCE[numerics]
    assert is_close(x, x, numerics) and is_close(x, x + noise / 2, numerics)
    small = x * np.where(np.arange(9) == 4, 1e-3, 1)[:, None].astype(np.float32)
    assert is_close(small, small + noise / 20, numerics)
    for wrong in (x + noise * 3, np.zeros_like(x), x[::-1], -x):
        assert not is_close(x, wrong, numerics)
    one = x.copy()
    one[3] = x[4]
    assert not is_close(x, one, numerics)
