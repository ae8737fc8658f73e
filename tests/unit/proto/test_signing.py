"""Signatures: one purpose, one network, one statement, one form."""

import pytest

from blyan_proto.codec import U8, message
from blyan_proto.errors import BadSignature
from blyan_proto.signing import (
    Purpose,
    SigningKey,
    account_of,
    check_signature,
    signing_digest,
)

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
NETWORK, OTHER_NETWORK = b"\x01" * 32, b"\x02" * 32
KEY, OTHER = SigningKey(bytes(31) + b"\x01"), SigningKey(bytes(31) + b"\x02")


@message
class Statement:
    """Something to sign."""

    version: U8
    number: U8


SAID = Statement(1, 7)
SIGNATURE = KEY.sign(Purpose.BLOCK, NETWORK, SAID)


def test_a_signature_verifies_for_what_it_is_and_nothing_else():
    check_signature(Purpose.BLOCK, NETWORK, SAID, KEY.public, SIGNATURE)
    for purpose in Purpose:
        if purpose is not Purpose.BLOCK:
            with pytest.raises(BadSignature):
                check_signature(purpose, NETWORK, SAID, KEY.public, SIGNATURE)
    for network, said, key in (
        (OTHER_NETWORK, SAID, KEY),
        (NETWORK, Statement(1, 8), KEY),
        (NETWORK, SAID, OTHER),
    ):
        with pytest.raises(BadSignature):
            check_signature(Purpose.BLOCK, network, said, key.public, SIGNATURE)


def test_purposes_are_distinct():
    assert len({purpose.value for purpose in Purpose}) == len(Purpose)
    digests = {signing_digest(purpose, NETWORK, SAID) for purpose in Purpose}
    assert len(digests) == len(Purpose)


def test_the_other_s_is_refused():
    r, s = SIGNATURE[:32], int.from_bytes(SIGNATURE[32:], "big")
    assert s <= ORDER // 2
    high = r + (ORDER - s).to_bytes(32, "big")
    with pytest.raises(BadSignature, match="high-S"):
        check_signature(Purpose.BLOCK, NETWORK, SAID, KEY.public, high)


@pytest.mark.parametrize(
    "signature",
    [
        bytes(64),
        bytes(32) + SIGNATURE[32:],
        SIGNATURE[:32] + bytes(32),
        ORDER.to_bytes(32, "big") + SIGNATURE[32:],
        b"\xff" * 32 + SIGNATURE[32:],
        b"\xff" * 64,
        SIGNATURE[:63],
        SIGNATURE + b"\x00",
        b"",
    ],
    ids=["zero", "r 0", "s 0", "r n", "r max", "max", "short", "long", "empty"],
)
def test_what_is_no_signature_is_refused(signature):
    with pytest.raises(BadSignature):
        check_signature(Purpose.BLOCK, NETWORK, SAID, KEY.public, signature)


@pytest.mark.parametrize(
    "key",
    [
        bytes(33),
        b"\xff" * 33,
        b"\x02" + b"\xff" * 32,  # not below the field's prime
        b"\x02" + bytes(31) + b"\x05",  # not on the curve
        b"\x04" + KEY.public[1:],
        KEY.public[:32],
        b"",
    ],
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(BadSignature):
        check_signature(Purpose.BLOCK, NETWORK, SAID, key, SIGNATURE)


def test_every_changed_bit_is_noticed():
    for place in range(0, 512, 5):
        changed = bytearray(SIGNATURE)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(BadSignature):
            check_signature(Purpose.BLOCK, NETWORK, SAID, KEY.public, bytes(changed))


def test_signing_is_deterministic():
    assert KEY.sign(Purpose.BLOCK, NETWORK, SAID) == SIGNATURE
    assert SigningKey(KEY.secret).public == KEY.public


def test_an_account_is_the_ethereum_address_of_its_key():
    assert KEY.account.hex() == "7e5f4552091a69125d5dfcb7b8c2659029395bdf"
    assert account_of(OTHER.public).hex() == "2b5ad5c4795c026514f8317c7a215e218dccd6cf"
