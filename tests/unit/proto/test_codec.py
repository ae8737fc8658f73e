"""The canonical encoding: one byte string per value, nothing allocated on hearsay."""

import enum
import tracemalloc
from types import ModuleType
from typing import Annotated

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blyan_proto import checkpoint, genesis
from blyan_proto.block import block, data, economy, header, ledger, model
from blyan_proto.codec import (
    I64,
    U8,
    U16,
    U64,
    Choice,
    Size,
    decode,
    encode,
    from_plain,
    message,
    to_plain,
)
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_proto.protocols import blobs, blocks, delta, expert, hello, span, sync
from tests.strategies import made, messages

MODULES: tuple[ModuleType, ...] = (
    *(header, block, model, data, economy, ledger, checkpoint, genesis),
    *(hello, blocks, sync, blobs, expert, span, delta),
)
ALL = [cls for module in MODULES for cls in messages(module)]
LIMIT = 1 << 26


class Colour(enum.IntEnum):
    RED = 1
    BLUE = 300


@message
class Inner:
    """A record inside a record."""

    name: Annotated[str, Size(0, 4)]
    flag: bool


@message
class Sample:
    """One field of every kind."""

    small: U8
    large: U64
    signed: I64
    raw: Annotated[bytes, Size(2, 4)]
    text: Annotated[str, Size(0, 40)]
    colour: Colour
    inner: Inner | None
    many: Annotated[tuple[Inner, ...], Size(0, 3)]
    maybe: U16 | None
    list: Annotated[tuple[U16, ...], Size(1, 2)] | None


GOOD = Sample(
    200, 2**64 - 1, -5, b"ab", "é", Colour.BLUE, None, (Inner("x", True),), 7, (9,)
)


def altered(**changed: object) -> bytes:
    plain = msgpack.unpackb(encode(GOOD))
    places = Sample.__match_args__
    for name, value in changed.items():
        plain[places.index(name)] = value
    return bytes(msgpack.packb(plain))


def test_bytes_are_the_array_of_fields_in_declared_order():
    assert msgpack.unpackb(encode(GOOD)) == (
        [200, 2**64 - 1, -5, b"ab", "é", 300, None, [["x", True]], 7, [9]]
    )
    assert decode(Sample, encode(GOOD), LIMIT) == GOOD


@pytest.mark.parametrize(
    "changed",
    [
        {"small": 256},
        {"small": -1},
        {"small": True},
        {"small": 1.0},
        {"small": None},
        {"signed": 2**63},
        {"raw": "ab"},
        {"raw": b"a"},
        {"raw": b"abcde"},
        {"text": b"a"},
        {"text": "é" * 21},
        {"colour": 2},
        {"colour": "RED"},
        {"inner": []},
        {"inner": ["toolong", True]},
        {"inner": ["x", 1]},
        {"inner": ["x", True, None]},
        {"many": None},
        {"many": [["x", True]] * 4},
        {"many": {}},
        {"maybe": []},
        {"list": []},
        {"list": [1, 2, 3]},
        {"list": 1},
    ],
)
def test_a_value_outside_its_type_is_refused(changed):
    with pytest.raises((DecodeError, LimitExceeded), match=next(iter(changed))):
        decode(Sample, altered(**changed), LIMIT)


def test_other_encodings_of_the_same_value_are_refused():
    raw = encode(GOOD)
    assert raw[0] == 0x9A and raw[1:3] == b"\xcc\xc8"
    for other in (
        raw + b"\xc0",  # trailing bytes
        b"\xdc\x00\x0a" + raw[1:],  # a longer array header
        raw[:1] + b"\xcd\x00\xc8" + raw[3:],  # a longer integer
        raw.replace(b"\xc4\x02ab", b"\xc5\x00\x02ab"),  # a longer length of bytes
        raw.replace(b"\xa2\xc3\xa9", b"\xd9\x02\xc3\xa9"),  # a longer length of text
    ):
        with pytest.raises(DecodeError, match="canonical"):
            decode(Sample, other, LIMIT)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x9a",
        b"\xdd\xff\xff\xff\xff",
        b"\x80",
        b"\xc0",
        b"\x01",
        b"\xa1a",
    ],
)
def test_what_is_no_record_is_refused(raw):
    with pytest.raises(ProtocolError):
        decode(Sample, raw, LIMIT)


def test_text_is_unicode_scalar_values():
    with pytest.raises(DecodeError):
        decode(Sample, encode(GOOD).replace(b"\xa2\xc3\xa9", b"\xa2\xed\xa0"), LIMIT)
    with pytest.raises(DecodeError, match="Unicode"):
        encode(Inner("\ud800", True))


def test_extension_types_and_maps_are_refused():
    for item in (b"\xd4\x01a", b"\xd6\xff\x00\x00\x00\x00", b"\x81\xa1a\x01"):
        with pytest.raises(ProtocolError):
            decode(Inner, b"\x92" + item + b"\xc3", LIMIT)


def test_the_limit_is_checked_before_anything_else():
    with pytest.raises(LimitExceeded, match="at most 8"):
        decode(Sample, b"\xc1" * 9, 8)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20),
        b"\x91\xdd\x00\x10\x00\x00" + b"\xc0" * (1 << 20),
        b"\x91\xdc\x07\xd0" + b"\x93\xdc\xff\xff" * (1 << 18),
        b"\x91" * (1 << 20),
    ],
)
def test_a_bomb_allocates_no_more_than_its_own_size(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(blocks.Blocks, bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(bomb)
    finally:
        tracemalloc.stop()


def test_encoding_checks_as_decoding_does():
    for wrong in (
        Inner("toolong", True),
        Inner("x", 1),  # type: ignore[arg-type]
        Inner(b"x", True),  # type: ignore[arg-type]
    ):
        with pytest.raises(ProtocolError):
            encode(wrong)


def test_a_relation_that_does_not_hold_is_a_decode_error():
    with pytest.raises(DecodeError, match="held groups of no model"):
        decode(economy.Heartbeat, msgpack.packb([1, None, b"\x01", 0]), LIMIT)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@settings(
    max_examples=4,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_every_message_survives_bytes_and_json(cls, data):
    value = data.draw(made(cls))
    raw = encode(value)
    assert decode(cls, raw, LIMIT) == value
    assert from_plain(cls, to_plain(value)) == value


def test_plain_values_are_strict():
    plain = to_plain(Inner("x", True))
    assert plain == {"name": "x", "flag": True}
    assert to_plain(GOOD)["raw"] == "6162" and to_plain(GOOD)["colour"] == "blue"
    for wrong in ({"name": "x"}, {**plain, "extra": 1}, [], {"name": 1, "flag": True}):
        with pytest.raises(DecodeError):
            from_plain(Inner, wrong)
    for field, value in (("raw", "zz"), ("raw", "616"), ("colour", "green")):
        with pytest.raises(DecodeError):
            from_plain(Sample, {**to_plain(GOOD), field: value})


def test_a_choice_carries_its_code_first():
    pair = Choice("pair", {1: Inner, 7: Sample})
    raw = pair.encode(Inner("x", True))
    assert msgpack.unpackb(raw) == [1, "x", True]
    assert pair.decode(raw, LIMIT) == Inner("x", True)
    assert pair.decode(pair.encode(GOOD), LIMIT) == GOOD
    for wrong in (
        [],
        [2, "x", True],
        [True, "x", True],
        ["1", "x", True],
        [None],
        [1, "x"],
        [1, "x", True, 0],
        [7, "x", True],
        1,
    ):
        with pytest.raises(ProtocolError):
            pair.decode(msgpack.packb(wrong), LIMIT)
    with pytest.raises(DecodeError, match="canonical"):
        pair.decode(b"\x93\xcc\x01\xa1x\xc3", LIMIT)
    with pytest.raises(LimitExceeded):
        pair.decode(raw, 3)
