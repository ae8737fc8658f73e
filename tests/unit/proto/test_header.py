"""Headers: what makes an id, what is refused, what work is."""

from dataclasses import fields, replace

import pytest

from blyan_proto.block.header import Header
from blyan_proto.block.work import FIRST_NONCE, find_nonce, has_work, work_digest
from blyan_proto.codec import decode, encode
from blyan_proto.errors import DecodeError, ProtocolError
from blyan_proto.types import Chain
from tests.fuzz.mutate import cuts, flips
from tests.vectors import make_proto as made

HEADER = made.BLOCKS["tile_update"].header


def test_every_field_is_in_the_id():
    changed = {
        "network": bytes(32),
        "chain": Chain.LEDGER,
        "parents": (),
        "meta_ref": None,
        "subject": "layer0.expert2",
        "anchor": bytes(32),
        "payload_digest": bytes(32),
        "account": bytes(20),
        "author": bytes(33),
    }
    ids = {HEADER.id}
    for field in fields(Header):
        if field.name == "version":
            continue
        value = changed.get(field.name, getattr(HEADER, field.name))
        if field.name not in changed:
            value += 1
        extra = {"height": 0} if field.name == "parents" else {}
        ids.add(replace(HEADER, **{field.name: value}, **extra).id)
    assert len(ids) == len(fields(Header))


def test_cuts_and_changed_bits_fail_cleanly_or_name_another_block():
    raw = encode(HEADER)
    for wrong in cuts(raw):
        with pytest.raises(ProtocolError):
            decode(Header, wrong, 2048)
    decoded = 0
    for wrong in flips(raw):
        try:
            other = decode(Header, wrong, 2048)
        except ProtocolError:
            continue
        assert encode(other) == wrong and other.id != HEADER.id
        decoded += 1
    assert decoded > 1000  # most bits are of digests, keys and numbers


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"version": 2}, "version 2"),
        ({"parents": HEADER.parents[::-1]}, "ascending"),
        ({"parents": HEADER.parents[:1] * 2}, "distinct"),
        ({"parents": ()}, "height 0"),
    ],
)
def test_what_a_header_cannot_say(changed, reason):
    with pytest.raises(ValueError, match=reason):
        replace(HEADER, **changed)


def test_too_many_parents_are_refused():
    crowded = replace(HEADER, parents=tuple(bytes([i]) * 32 for i in range(9)))
    with pytest.raises(ProtocolError, match="Header.parents"):
        encode(crowded)


def test_an_unknown_chain_is_refused():
    raw = encode(HEADER)
    place = 3 + 1 + 34  # array of 19, version, network
    assert raw[place] == HEADER.chain
    with pytest.raises(DecodeError, match="Header.chain"):
        decode(Header, raw[:place] + b"\x04" + raw[place + 1 :], 2048)


def test_work_is_leading_zero_bits_of_the_digest():
    nonce = next(n for n in range(5000) if has_work(replace(HEADER, nonce=n), 6))
    header = replace(HEADER, nonce=nonce)
    zeros = 256 - work_digest(header).bit_length()
    assert zeros >= 6
    assert all(has_work(header, bits) for bits in range(zeros + 1))
    assert not has_work(header, zeros + 1) and not has_work(header, 255)
    assert header.id != HEADER.id


def test_a_nonce_is_found_where_the_whole_header_shows_it():
    for bits in (1, 5, 9):
        nonce = find_nonce(HEADER, bits, FIRST_NONCE, 1 << 16)
        before = range(FIRST_NONCE, nonce)
        assert has_work(replace(HEADER, nonce=nonce), bits)
        assert not any(has_work(replace(HEADER, nonce=n), bits) for n in before)
    assert find_nonce(HEADER, 0, FIRST_NONCE, 1) == FIRST_NONCE
    assert find_nonce(HEADER, 250, FIRST_NONCE, 100) is None


def test_the_expected_tries_are_two_to_the_bits():
    """400 headers at 6 bits: the mean of a geometric law, five deviations of the mean."""
    tries = []
    for sequence in range(1, 401):
        header = replace(HEADER, sequence=sequence)
        found = find_nonce(header, 6, FIRST_NONCE, 1 << 12)
        tries.append(found - FIRST_NONCE + 1)
    assert abs(sum(tries) / len(tries) - 64) < 5 * 64 / 20
