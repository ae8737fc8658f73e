"""Blocks: golden bytes, form without state, and the page that describes them."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from blyan_proto import checkpoint, genesis, validators
from blyan_proto.block import block as block_module
from blyan_proto.block import data, economy, gate, header, ledger, model
from blyan_proto.block.block import (
    Block,
    check_block_signature,
    check_wellformed,
    decode_block,
    encode_block,
)
from blyan_proto.block.payload import KINDS
from blyan_proto.codec import encode, from_plain, to_plain
from blyan_proto.constants import MAX_BLOCK_BYTES, MAX_PAYLOAD_BYTES
from blyan_proto.digest import Domain
from blyan_proto.errors import BadSignature, DecodeError, LimitExceeded, ProtocolError
from blyan_proto.signing import Purpose
from blyan_proto.types import Chain, Signature
from tests.documents import fields_in, tables
from tests.fuzz.mutate import cuts, flips
from tests.strategies import hints_of, messages, most_bytes
from tests.vectors import make_proto as made

VECTORS = json.loads((Path(made.HERE) / "blocks.json").read_text())
TRANSFER = made.BLOCKS["transfer"]


def test_the_golden_file_is_what_the_code_makes():
    assert made.build_blocks() == VECTORS


@pytest.mark.parametrize("name", VECTORS["blocks"])
def test_golden_blocks_decode_to_what_they_say(name):
    golden = VECTORS["blocks"][name]
    block = decode_block(bytes.fromhex(golden["raw"]))
    assert block.id.hex() == golden["id"]
    assert block.header == from_plain(header.Header, golden["header"])
    assert to_plain(block.content) == golden["payload"]
    assert encode_block(block).hex() == golden["raw"]
    check_block_signature(block)


def test_cuts_and_changed_bits_fail_cleanly_or_break_the_signature():
    raw = encode_block(TRANSFER)
    for wrong in cuts(raw):
        with pytest.raises(ProtocolError):
            decode_block(wrong)
    for place, wrong in enumerate(itertools.islice(flips(raw), 0, None, 3)):
        try:
            block = decode_block(wrong)
            check_wellformed(block)
        except ProtocolError:
            continue
        assert encode_block(block) == wrong
        if place % 16 == 0:
            with pytest.raises(BadSignature):
                check_block_signature(block)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"chain": Chain.META}, "does not belong on chain A"),
        ({"kind": 200}, "does not belong"),
        ({"payload_type": 1}, "payload type"),
        ({"payload_bytes": 1}, "length"),
        ({"payload_digest": bytes(32)}, "digest"),
    ],
)
def test_a_malformed_block_is_refused_though_signed(changed, reason):
    block = made.make_block(TRANSFER.content, **changed)
    check_block_signature(block)
    with pytest.raises(DecodeError, match=reason):
        check_wellformed(decode_block(encode_block(block)))


def test_a_payload_that_is_not_canonical_is_refused():
    raw = TRANSFER.payload + b"\xc0"
    head = made.make_block(
        TRANSFER.content,
        payload_bytes=len(raw),
        payload_digest=block_module.payload_digest(raw),
    ).header
    block = Block(head, made.KEY.sign(Purpose.BLOCK, made.NETWORK, head), raw)
    with pytest.raises(DecodeError, match="canonical"):
        check_wellformed(block)


def test_a_swapped_payload_is_refused_and_leaves_the_id():
    swapped = replace(TRANSFER, payload=made.BLOCKS["bond"].payload)
    assert swapped.id == TRANSFER.id
    with pytest.raises(DecodeError, match="not the header's"):
        check_wellformed(swapped)


def test_signatures_of_others_and_other_networks_are_refused():
    for block in (
        replace(TRANSFER, signature=made.BLOCKS["bond"].signature),
        made.make_block(TRANSFER.content, author=made.OTHER.public),
        made.make_block(TRANSFER.content, network=made.hash_of("elsewhere")),
    ):
        stolen = replace(block, header=replace(block.header, network=made.NETWORK))
        with pytest.raises(BadSignature):
            check_block_signature(stolen)


def test_the_largest_header_leaves_room_for_the_largest_payload():
    around = most_bytes(header.Header) + most_bytes(Signature) + 1 + 5
    assert around + MAX_PAYLOAD_BYTES <= MAX_BLOCK_BYTES
    with pytest.raises(LimitExceeded):
        decode_block(bytes(MAX_BLOCK_BYTES + 1))


MODULES = (
    header,
    block_module,
    gate,
    model,
    data,
    economy,
    ledger,
    checkpoint,
    genesis,
    validators,
)


def test_the_page_lists_every_field_of_every_record_in_order():
    expected = {
        cls.__name__: list(hints_of(cls))
        for module in MODULES
        for cls in messages(module)
    }
    assert fields_in("block-format.md") == expected


def test_the_page_lists_kinds_domains_and_purposes():
    found = {table[0][0]: table for table in tables("block-format.md")}
    assert {tuple(row) for row in found["code"][1:]} == {
        (str(kind.code), kind.name, kind.chain.letter, kind.payload.__name__)
        for kind in KINDS.values()
    }
    assert {name for row in found["domain"][1:] for name in row[0].split(", ")} == {
        domain.name for domain in Domain
    }
    assert {row[0] for row in found["purpose"][1:]} == {
        purpose.value for purpose in Purpose
    }
    assert {row[0] for row in found["offence"][1:]} == {
        f"{offence.value} {offence.name.lower()}" for offence in economy.PROOF
    }


def test_the_claim_vector():
    assert encode(made.UPDATE.claim).hex() == VECTORS["claim"]["raw"]
