"""Frames: any split of the stream, and lengths judged before bytes are kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.errors import LimitExceeded
from blyan_proto.framing import PREFIX_BYTES, FrameReader, frame


def take_all(reader: FrameReader) -> list[bytes]:
    return list(iter(reader.take, None))


def test_a_frame_is_a_length_and_a_body():
    assert frame(b"abc") == b"\x00\x00\x00\x03abc"
    assert frame(b"") == bytes(4)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=20), max_size=6),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
)
def test_any_split_gives_the_same_frames(bodies, steps):
    stream, reader, found = b"".join(map(frame, bodies)), FrameReader(20), []
    place = 0
    while place < len(stream):
        step = steps[place % len(steps)]
        reader.feed(stream[place : place + step])
        place += step
        found += take_all(reader)
    assert found == bodies and not reader.partial


def test_byte_by_byte_it_says_what_it_needs():
    reader, stream = FrameReader(10), frame(b"hello")
    for place, byte in enumerate(stream):
        left = len(stream) - place if place >= PREFIX_BYTES else PREFIX_BYTES - place
        assert reader.needed == left
        assert reader.take() is None
        reader.feed(bytes([byte]))
        assert reader.partial
    assert reader.take() == b"hello"
    assert reader.needed == PREFIX_BYTES and not reader.partial


def test_a_length_above_the_limit_is_refused_at_its_prefix():
    FrameReader(3).feed(frame(b"abc"))
    for length in (4, 2**31, 2**32 - 1):
        reader = FrameReader(3)
        reader.feed(length.to_bytes(4, "big")[:3])
        with pytest.raises(LimitExceeded, match="at most 3"):
            reader.feed(length.to_bytes(4, "big")[3:])


def test_a_bad_second_frame_is_found_when_the_first_is_taken():
    reader = FrameReader(3)
    reader.feed(frame(b"abc") + b"\xff\xff\xff\xff")
    with pytest.raises(LimitExceeded):
        reader.take()
