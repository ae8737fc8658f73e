"""Payloads: kinds and chains, and the relations inside each payload."""

from dataclasses import replace

import pytest

from blyan_proto.block import data, economy, ledger, model
from blyan_proto.block.model import TileRoots, Weights
from blyan_proto.block.payload import (
    KINDS,
    decode_payload,
    encode_payload,
    kind_of,
    payload_digest,
)
from blyan_proto.codec import decode, encode
from blyan_proto.constants import MAX_PAYLOAD_BYTES, MAX_TILES_PER_GROUP
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import DecodeError, ProtocolError
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.types import BlobId, Chain, bitmap, members
from tests.fuzz.mutate import cuts, flips
from tests.fuzz.targets import TARGETS
from tests.strategies import most_bytes
from tests.vectors import make_proto as made

NAMES = {kind.name: kind for kind in KINDS.values()}


@pytest.mark.parametrize("name", NAMES)
def test_cuts_and_changed_bits_fail_cleanly_or_are_canonical(name):
    target = TARGETS[f"payload {name}"]
    raw = made.BLOCKS[name].payload
    assert target.check(raw)
    assert not any(target.check(wrong) for wrong in cuts(raw))
    for wrong in flips(raw):
        target.check(wrong)


def test_every_kind_has_a_sample_and_its_own_code():
    assert {type(payload) for payload in made.PAYLOADS} == {
        kind.payload for kind in KINDS.values()
    }
    for payload in made.PAYLOADS:
        kind = kind_of(payload)
        assert KINDS[kind.code] is kind
        assert decode_payload(kind.code, encode_payload(payload)) == payload


def test_kinds_stand_on_their_chains():
    chains = {
        Chain.META: "model run adoption placement score sealed_score",
        Chain.PARAMETERS: "weights tile_update snapshot",
        Chain.LEDGER: "registration heartbeat transfer bond key_rotation evidence "
        "dispute dispute_verdict reserve capture release reverse stake latency_report "
        "censure",
        Chain.DATASETS: "dataset dataset_vote",
    }
    for chain, names in chains.items():
        assert {kind.name for kind in KINDS.values() if kind.chain is chain} == set(
            names.split()
        )


def test_unknown_kinds_and_versions_are_refused():
    transfer = made.BLOCKS["transfer"].payload
    with pytest.raises(DecodeError, match="unknown kind of block 200"):
        decode_payload(200, transfer)
    with pytest.raises(DecodeError, match="version 2"):
        decode_payload(34, encode(replace(made.PAYLOADS[9], version=2)))
    with pytest.raises(ProtocolError):
        decode_payload(34, made.BLOCKS["bond"].payload)


def test_a_payload_digest_has_its_own_domain():
    assert payload_digest(b"x") == digest(Domain.PAYLOAD, b"x")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"evidence"}))
def test_the_largest_payload_of_every_kind_fits_a_block(name):
    least = 0
    if name == "weights":  # whose roots come without momentum
        least = MAX_TILES_PER_GROUP * (most_bytes(BlobId | None) - 1)
    assert most_bytes(NAMES[name].payload) - least <= MAX_PAYLOAD_BYTES


def test_first_weights_have_no_momentum():
    with pytest.raises(ValueError, match="no momentum"):
        Weights(1, bytes(32), 0, (TileRoots(bytes(32), bytes(32)),))


UPDATE = made.UPDATE
FIRST, SECOND = UPDATE.contributions


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"result": UPDATE.result[:1]}, "number of tiles"),
        ({"blob": None}, "blob"),
        ({"contributions": ()}, "blob"),
        ({"contributions": (SECOND, FIRST)}, "ascending"),
        ({"contributions": (FIRST, replace(FIRST, offset=700))}, "ascending"),
        (
            {"contributions": (FIRST, replace(SECOND, offset=701))},
            "one after the other",
        ),
        ({"contributions": (replace(FIRST, offset=1),)}, "one after the other"),
    ],
)
def test_what_a_tile_update_cannot_say(changed, reason):
    with pytest.raises(ValueError, match=reason):
        replace(UPDATE, **changed)


def test_the_claim_binds_all_that_makes_the_result():
    other = made.hash_of("other")
    changes = [
        {"model": other},
        {"run": other},
        {"group": 6},
        {"round": 4},
        {"lease_epoch": 42},
        {"rank": 1},
        {"parent": other},
        {"base": made.roots("other")},
        {"result": made.roots("other")},
        {"blob": other},
        {"contributions": (FIRST,)},
        {"contributions": (FIRST, replace(SECOND, weight_ppm=1))},
        {"contributions": (FIRST, replace(SECOND, tokens=1))},
        {"contributions": (FIRST, replace(SECOND, clip_ppm=1))},
    ]
    claims = {encode(replace(UPDATE, **change).claim) for change in changes}
    assert len(claims | {encode(UPDATE.claim)}) == len(changes) + 1
    assert replace(UPDATE, cosignatures=UPDATE.cosignatures[:1]).claim == UPDATE.claim
    for cosignature in UPDATE.cosignatures:
        check_signature(
            Purpose.TILE_UPDATE,
            made.NETWORK,
            UPDATE.claim,
            cosignature.signer,
            cosignature.signature,
        )


def test_evidence_has_the_shape_of_its_offence():
    votes = made.PAYLOADS[12].statements
    for offence in economy.Offence:
        if economy.PROOF.get(offence) != (0, 2):
            with pytest.raises(ValueError, match=offence.name.lower()):
                economy.Evidence(1, offence, made.KEY.account, (), votes)
    signed = economy.SignedHeader(made.ROOT_BLOCK.header, made.ROOT_BLOCK.signature)
    bad = economy.Evidence(
        1, economy.Offence.INVALID_BLOCK, made.KEY.account, (signed,), (b"junk",)
    )
    assert decode_payload(37, encode_payload(bad)) == bad


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "a/../b", "a/./b", "..", "a\0b"]
)
def test_an_archive_holds_plain_relative_paths_only(path):
    with pytest.raises(ValueError):
        encode(data.ArchiveFile(path, 0, 1, False))
        raise ValueError("an empty path is refused by its type")


def test_an_archive_index_is_sorted_and_without_gaps():
    first, second, third = made.INDEX.files
    for files in (
        (second, first),
        (first, first),
        (second, third),
        (replace(first, offset=1),),
        (first, replace(second, offset=11)),
    ):
        with pytest.raises(ValueError):
            data.ArchiveIndex(1, files)
    assert decode(data.ArchiveIndex, encode(data.ArchiveIndex(1, ())), 64).files == ()


def test_a_heartbeat_without_a_model_holds_nothing():
    economy.Heartbeat(1, None, b"", 0)
    with pytest.raises(ValueError, match="held groups of no model"):
        economy.Heartbeat(1, None, b"\x00", 0)


def test_a_stake_block_either_locks_or_unlocks():
    for lock, unlock in ((0, 0), (1, 1)):
        with pytest.raises(ValueError, match="either locks or unlocks"):
            ledger.Stake(1, lock, unlock)


def test_a_delivery_lists_groups_once_and_a_quality_up_to_one():
    one, two = made.DELIVERY.usage
    for usage in ((two, one), (one, one)):
        with pytest.raises(ValueError, match="ascending"):
            replace(made.DELIVERY, usage=usage)
    with pytest.raises(ValueError, match="quality"):
        replace(made.DELIVERY, quality_ppm=1_000_001)


def test_bitmaps_count_from_the_lowest_bit():
    assert bitmap({0, 9}, 10) == b"\x01\x02"
    assert members(b"\x01\x02") == {0, 9}
    assert bitmap(set(), 0) == b"" and members(b"") == frozenset()
    assert members(bitmap(set(range(13)), 13)) == set(range(13))


def test_dtypes_say_their_width():
    widths = {dtype.name: dtype.bytes for dtype in model.Dtype}
    assert widths == {"F16": 2, "I8": 1, "F8": 1, "F32": 4, "BF16": 2, "U8": 1}
