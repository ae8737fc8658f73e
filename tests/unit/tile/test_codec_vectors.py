"""Delta codecs against a second, slow reader of the page, and against fixed bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block import sending
from blyan_proto.errors import DecodeError
from blyan_tile import compress
from tests.second import delta
from tests.vectors import make_codecs

GOLDEN = json.loads(
    (Path(make_codecs.__file__).with_name("tile_codecs.json")).read_text()
)


def test_the_page_says_what_the_vectors_say():
    assert make_codecs.build() == GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_vectors(name):
    vector = GOLDEN[name]
    raw, shape = bytes.fromhex(vector["raw"]), tuple(vector["shape"])
    compress.check(*compress.header_of(raw), raw, shape)
    units = compress.decode(raw, shape) * 2.0 ** -vector["exponent"]
    integers = units.astype("<i4")
    assert (integers == units).all()
    assert blake3(integers.tobytes()).hexdigest() == vector["integers_blake3"]
    norm, scale = compress.norm_squared(raw, shape)
    assert norm == int(vector["norm_squared"])
    assert scale == 2 * vector["exponent"] or not norm
    for wrong in (raw[:-1], raw + b"\0", raw + b"\1"):
        with pytest.raises(DecodeError):
            compress.decode(wrong, shape)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(
        ["LR4:3", "LRC:9", "SC:9/1", "SC:900/2", "Q:1", "Q:2", "Q:4", "Q:8"]
    )
    | st.sampled_from(["ROWS:LR4/2", "ROWS:LRC/9", "ROWS:Q/2"]),
    st.sampled_from([(1, 1), (3, 5), (17, 40), (2, 4100), (70, 61)]),
    st.integers(0, 2**32),
)
def test_both_readers_agree_on_what_is_sent(form, shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    raw, _ = compress.encode(*sending.parse(form), x)
    whole, exponent = delta.read(raw, shape)
    values = np.array(whole, np.float64).reshape(shape) * 2.0**exponent
    assert (compress.decode(raw, shape) == values).all()


def hostile(name: str) -> tuple[tuple[int, int], bytes]:
    return tuple(GOLDEN[name]["shape"]), bytes.fromhex(GOLDEN[name]["raw"])


def refused(raw: bytes, shape: tuple[int, int], match: str) -> None:
    with pytest.raises(DecodeError, match=match):
        compress.decode(raw, shape)
    with pytest.raises(DecodeError, match=match):
        compress.norm_squared(raw, shape)


def test_hostile_sc():
    shape, raw = hostile("sc 64x64")
    refused(raw[:5] + b"\x0d" + raw[6:], shape, "bytes of SC")  # 13 low bits
    refused(raw[:3] + b"\x61\0" + raw[5:], shape, "exponent")
    refused(raw[:1] + b"\0\x20" + raw[3:], shape, "no setting")
    refused(raw[:1] + b"\x40\x30" + raw[3:], shape, "no setting")  # 3 bits
    refused(raw[:-1] + b"\0", shape, "numbers in")
    refused(raw[:-1] + b"\xff", shape, "numbers in")
    beyond = delta.sc(1 << 12 | 1, 0, 12, b"\1", [0], [64 * 64])
    refused(beyond, shape, "position 4096 of 4096")
    long = delta.sc(1 << 12 | 1, 0, 0, b"\1", [0], [60 * 64])
    refused(long, shape, "bytes of SC")  # 480 bytes of zeros for one position
    full = delta.sc(1 << 12 | 1024, 0, 0, b"\1", [0] * 4, range(4))
    compress.decode(full, (2, 8))
    refused(full[:7] + b"\x10" + full[8:], (2, 8), "padding")


def test_hostile_lrc():
    shape, raw = hostile("lrc 40x33")
    refused(raw[:1] + b"\0" + raw[2:], shape, "components of LRC 0")
    refused(raw[:4] + b"\x22" + raw[5:], shape, "components")  # 34 of at most 33
    refused(raw[:4] + b"\x1e" + raw[5:], shape, "LRC")  # more than there are bits
    refused(raw[:2] + b"\x61\0" + raw[4:], shape, "exponent")
    refused(raw[:10] + b"\x80" + raw[11:], shape, "low bits")
    refused(raw[:-1] + b"\0", shape, "numbers in")
    refused(raw[:10], shape, "with 5 components")
    zeros = [0] * 8
    for top, q, match in ((127, 127, "too large to be exact"), (-128, 1, "code 255")):
        factors = [([top, *zeros], [q, *zeros])]
        refused(delta.lrc(9, 0, b"\xff", [(3, 3)], factors), (9, 9), match)
    near = delta.lrc(9, 0, b"\xff", [(3, 3)], [([127, *zeros], [1] * 9)])
    assert compress.decode(near, (9, 9)).max() == 127 * 255
    shape, raw = hostile("lrc 9x130 nothing")
    refused(raw + b"\0", shape, "without a component")


def test_extreme_levels_stay_exact():
    side = 1024
    factors = [([127] * side, [-64] * side)]
    raw = delta.lrc(255, 96, b"\xff", [(7, 6)], factors)
    whole = 127 * 64 * 255  # 2^21 would be refused
    values = compress.decode(raw, (side, side))
    assert (values == -whole * 2.0**96).all()
    assert compress.norm_squared(raw, (side, side)) == (side**2 * whole**2, 192)


def test_hostile_q_and_rows():
    shape, raw = hostile("q 3x5 odd")
    refused(raw[:-1] + bytes((raw[-1] | 0x40,)), shape, "padding")
    refused(raw[:1] + b"\3" + raw[2:], shape, "bytes of Q")
    refused(raw[:2] + b"\0\x80" + raw[4:], shape, "exponent")
    shape, raw = hostile("rows 11x9 lr4 6")
    refused(raw[:4] + b"\x0a" + raw[5:], shape, "padding")
    refused(raw[:4] + b"\0" + raw[5:], shape, "LR4")  # one row fewer than is there
    refused(raw[:5] + b"\4" + raw[6:], shape, "inside ROWS")
    refused(raw[:6] + b"\3" + raw[7:], shape, "inside ROWS")
    refused(raw[:2] + b"\5" + raw[3:], shape, "no setting")  # ROWS inside ROWS
    shape, raw = hostile("rows 11x9 none")
    refused(raw + raw, shape, "without a row")
