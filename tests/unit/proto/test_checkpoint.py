"""Checkpoints and votes: golden bytes, what an id covers, what fits."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from blyan_proto.checkpoint import (
    MAX_FINAL_CHECKPOINT_BYTES,
    BlobReceipt,
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
)
from blyan_proto.codec import decode, encode, to_plain
from blyan_proto.constants import MAX_CHECKPOINT_BYTES
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import BadSignature, ProtocolError
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.validators import Validator, ValidatorSet
from tests.fuzz.mutate import cuts, flips
from tests.fuzz.targets import TARGETS
from tests.strategies import most_bytes
from tests.vectors import make_proto as made

GOLDEN = json.loads((Path(made.HERE) / "blocks.json").read_text())["final_checkpoint"]


def test_golden_bytes_both_ways():
    final = decode(FinalCheckpoint, bytes.fromhex(GOLDEN["raw"]), 4096)
    assert final == made.FINAL and to_plain(final) == GOLDEN["plain"]
    assert final.checkpoint.id.hex() == GOLDEN["id"]
    assert encode(final).hex() == GOLDEN["raw"]


def test_cuts_and_changed_bits_fail_cleanly_or_are_canonical():
    target, raw = TARGETS["final_checkpoint"], bytes.fromhex(GOLDEN["raw"])
    assert not any(target.check(wrong) for wrong in cuts(raw))
    for wrong in flips(raw):
        target.check(wrong)


def test_every_field_is_in_the_id():
    ids = {made.CHECKPOINT.id}
    for field in fields(Checkpoint):
        value = getattr(made.CHECKPOINT, field.name)
        if field.name == "version":
            continue
        if isinstance(value, bytes):
            value = bytes([value[0] ^ 1]) + value[1:]
        else:
            value = value[:-1] if isinstance(value, tuple) else value + 1
        ids.add(replace(made.CHECKPOINT, **{field.name: value}).id)
    assert len(ids) == len(fields(Checkpoint))


def test_an_unknown_version_is_refused():
    with pytest.raises(ValueError, match="version 3"):
        replace(made.CHECKPOINT, version=3)


def test_a_vote_covers_stage_height_round_and_checkpoint():
    vote = made.vote(made.CHECKPOINT.id)
    said = vote.statement
    changes = (
        {},
        {"stage": VoteStage.PREVOTE},
        {"height": 13},
        {"round": 1},
        {"checkpoint": None},
    )
    good = []
    for change in changes:
        statement = replace(said, **change)
        try:
            check_signature(
                Purpose.CHECKPOINT_VOTE,
                made.NETWORK,
                statement,
                vote.voter,
                vote.signature,
            )
            good.append(change)
        except BadSignature:
            pass
    assert good == [{}]


def test_a_receipt_is_for_one_block():
    receipt = made.CHECKPOINT.receipts[0]
    check_signature(
        Purpose.BLOB_RECEIPT,
        made.NETWORK,
        receipt.statement,
        receipt.signer,
        receipt.signature,
    )
    other = BlobReceipt(bytes(32), receipt.signer, receipt.signature)
    with pytest.raises(BadSignature):
        check_signature(
            Purpose.BLOB_RECEIPT,
            made.NETWORK,
            other.statement,
            other.signer,
            other.signature,
        )


def test_the_root_of_a_validator_set_covers_order_weight_and_key():
    first = made.VALIDATOR
    second = Validator(made.OTHER.public, 3, bytes(32))
    assert ValidatorSet((first,)).root == digest(Domain.SET, encode(first))
    sets = [(first,), (first, second), (second, first), (replace(first, weight=2),), ()]
    assert len({ValidatorSet(members).root for members in sets}) == len(sets)


def test_the_largest_checkpoint_fits_its_limits():
    assert most_bytes(Checkpoint) <= MAX_CHECKPOINT_BYTES
    assert most_bytes(FinalCheckpoint) <= MAX_FINAL_CHECKPOINT_BYTES
    with pytest.raises(ProtocolError):
        decode(FinalCheckpoint, encode(FinalCheckpoint(made.CHECKPOINT, ())), 4096)
    assert most_bytes(Vote) < 256
