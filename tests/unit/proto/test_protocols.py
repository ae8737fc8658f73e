"""Stream protocols: golden messages, limits that hold what they must, and their pages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blyan_proto import holdings
from blyan_proto.checkpoint import Proposal
from blyan_proto.codec import Choice, decode, encode, from_plain, to_plain
from blyan_proto.constants import LEAF_BYTES
from blyan_proto.errors import BadSignature, ProtocolError
from blyan_proto.holdings import Holdings
from blyan_proto.merkle import EMPTY
from blyan_proto.protocols import (
    audit,
    blobs,
    blocks,
    cosign,
    delta,
    edge,
    expert,
    hello,
    providers,
    reach,
    span,
    sync,
    votes,
)
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose, check_signature
from tests.documents import DOCS, fields_in
from tests.fuzz.mutate import cuts, flips
from tests.strategies import hints_of, messages, most_bytes
from tests.vectors import make_proto as made

GOLDEN = json.loads((Path(made.HERE) / "messages.json").read_text())
MODULES = {
    "hello": hello,
    "providers": providers,
    "blocks": blocks,
    "reach": reach,
    "sync": sync,
    "blobs": blobs,
    "expert": expert,
    "span": span,
    "delta": delta,
    "cosign": cosign,
    "edge": edge,
    "audit": audit,
    "votes": votes,
}


def decode_sample(name: str, raw: bytes) -> object:
    value, choice = made.MESSAGES[name]
    if choice is not None:
        return choice.decode(raw, 1 << 20)
    return decode(type(value), raw, 1 << 20)


def encode_sample(name: str, value: object) -> bytes:
    choice = made.MESSAGES[name][1]
    return encode(value) if choice is None else choice.encode(value)


def test_the_golden_file_is_what_the_code_makes():
    assert made.build_messages() == GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_messages_both_ways(name):
    raw = bytes.fromhex(GOLDEN[name]["raw"])
    value = decode_sample(name, raw)
    assert value == made.MESSAGES[name][0]
    assert type(value).__name__ == GOLDEN[name]["type"]
    assert to_plain(value) == GOLDEN[name]["plain"]
    assert from_plain(type(value), GOLDEN[name]["plain"]) == value
    assert encode_sample(name, value) == raw


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - {"blocks", "checkpoints"}))
def test_cuts_and_changed_bits_fail_cleanly_or_are_canonical(name):
    raw = bytes.fromhex(GOLDEN[name]["raw"])
    for wrong in cuts(raw):
        with pytest.raises(ProtocolError):
            decode_sample(name, wrong)
    for wrong in flips(raw):
        try:
            value = decode_sample(name, wrong)
        except ProtocolError:
            continue
        assert encode_sample(name, value) == wrong


def test_every_message_has_a_vector_or_is_part_of_one():
    declared = {**MODULES, "votes": holdings}
    seen = {type(value) for value, _ in made.MESSAGES.values()}
    parts = {
        blocks.Range,
        blocks.Sum,
        blocks.Held,
        hello.Greeting,
        hello.Address,
        expert.ExpertRows,
        edge.Addressed,
        edge.Span,
        delta.Delta,
        delta.Entry,
        delta.Manifest,
        delta.EntryVerdict,
        audit.LoggedStep,
        audit.LogEntry,
        audit.LogStatement,
        audit.SignedLog,
        audit.ShownStep,
        delta.ReceiptClaim,
        holdings.RoundHoldings,
        holdings.Voters,
    }
    found = {cls for module in declared.values() for cls in messages(module)}
    assert seen | parts == found | {Proposal}  # declared beside the checkpoint


def test_ids_name_their_protocol_and_version():
    for name, module in MODULES.items():
        assert module.PROTOCOL_ID == f"/blyan/{name}/1"


@pytest.mark.parametrize(
    "cls, limit",
    [
        (hello.Hello, hello.MAX_MESSAGE_BYTES),
        (hello.KnownPeers, hello.MAX_MESSAGE_BYTES),
        (blocks.GetBlocks, blocks.MAX_REQUEST_BYTES - 1),
        (blocks.Compare, blocks.MAX_REQUEST_BYTES - 1),
        (sync.GetCheckpoints, sync.MAX_REQUEST_BYTES - 1),
        (blobs.GetOutline, blobs.MAX_REQUEST_BYTES - 1),
        (blobs.GetLeaves, blobs.MAX_REQUEST_BYTES - 1),
        (blobs.OutlineOf, blobs.MAX_ANSWER_BYTES),
        (blobs.Leaf, LEAF_BYTES + 64),
        (delta.Receipt, 64 * 1024),
        (Holdings, votes.MAX_MESSAGE_BYTES - 1),
        (audit.Ask, audit.MAX_REQUEST_BYTES - 1),
        (audit.Shown, audit.MAX_ANSWER_BYTES - 1),
        (cosign.Cosigned, cosign.MAX_ANSWER_BYTES - 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_largest_honest_message_fits_its_limit(cls, limit):
    assert most_bytes(cls) <= limit


def test_a_full_expert_call_fits_its_limit():
    most = expert.MAX_ROWS
    rows = b"".join(row.to_bytes(2, "little") for row in range(most))
    call = expert.Forward(
        bytes(32),
        expert.Numerics.REFERENCE,
        1024,
        (expert.ExpertRows(1, bytes(32), rows),) * 2,
        bytes(expert.MAX_ACTIVATION_BYTES),
    )
    raw = expert.REQUEST.encode(call)
    assert len(raw) <= expert.MAX_MESSAGE_BYTES
    assert expert.REQUEST.decode(raw, expert.MAX_MESSAGE_BYTES) == call


def test_a_full_step_of_a_span_fits_its_limit():
    raw = bytes(span.MAX_ACTIVATION_BYTES)
    step = span.REQUEST.encode(span.Step(bytes(16), 2**32 - 1, span.MAX_ROWS, raw))
    assert len(step) <= span.MAX_MESSAGE_BYTES
    assert len(span.ANSWER.encode(span.Stepped(raw))) <= span.MAX_MESSAGE_BYTES


def test_what_no_session_can_be_is_refused():
    fine = made.MESSAGES["open"][0]
    with pytest.raises(ValueError, match="without layers"):
        replace(fine, end=fine.first)
    with pytest.raises(ValueError, match="without room"):
        replace(fine, capacity=0)
    with pytest.raises(ValueError, match="more rows back"):
        span.Step(bytes(16), 0, span.MAX_ROWS + 1, bytes(4))


def test_the_versions_of_a_span_are_those_of_its_layers_and_of_its_model():
    roots = [made.hash_of("one"), made.hash_of("two")]
    name = span.versions_digest(made.MODEL_ID, 1, 2, roots)
    others = [
        span.versions_digest(made.NETWORK, 1, 2, roots),
        span.versions_digest(made.MODEL_ID, 0, 2, roots),
        span.versions_digest(made.MODEL_ID, 1, 3, roots),
        span.versions_digest(made.MODEL_ID, 1, 2, roots[::-1]),
    ]
    assert len({name, *others}) == 5


@pytest.mark.parametrize("count", [0, 17, 65_535])
def test_leaves_come_sixteen_at_most(count):
    with pytest.raises(ProtocolError, match="count"):
        encode(blobs.GetLeaves(bytes(32), 0, count))


@pytest.mark.parametrize("index", [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1])
@pytest.mark.parametrize("size", [1, 255, 256, 65_535, 65_536, 262_144])
def test_a_leaf_is_its_head_and_its_body(index, size):
    head = blobs.leaf_head(index, size)
    assert head + bytes(size) == encode(blobs.Leaf(index, bytes(size)))


def test_a_leaf_beyond_a_u32_has_no_head():
    with pytest.raises(ValueError):
        blobs.leaf_head(2**32, 1)


def test_half_a_row_number_is_refused():
    with pytest.raises(ValueError, match="half a row"):
        expert.ExpertRows(1, bytes(32), b"\x00\x00\x01")


@pytest.mark.parametrize(
    "choice",
    [
        blocks.REQUEST,
        sync.REQUEST,
        blobs.REQUEST,
        expert.REQUEST,
        expert.ANSWER,
        span.REQUEST,
        span.ANSWER,
        delta.REQUEST,
        delta.ANSWER,
        audit.REQUEST,
        audit.ANSWER,
        votes.MESSAGE,
    ],
    ids=lambda choice: choice.name,
)
def test_unknown_codes_are_refused(choice: Choice):
    for raw in (b"\x91\x00", b"\x91\x7f", b"\x90", b"\x01", b"\x91\xc0"):
        with pytest.raises(ProtocolError):
            choice.decode(raw, 64)


def test_signed_messages_are_signed_for_their_purpose():
    said = made.MESSAGES["hello"][0]
    check_signature(
        Purpose.HELLO, made.NETWORK, said.greeting, made.KEY.public, said.signature
    )
    bundle = made.MESSAGES["bundle"][0]
    signed = (bundle.manifest, bundle.signer, bundle.signature)
    check_signature(Purpose.DELTA_BUNDLE, made.NETWORK, *signed)
    with pytest.raises(BadSignature):
        check_signature(Purpose.DELTA_RECEIPT, made.NETWORK, *signed)
    assert bundle.manifest.entries[0].delta == bundle.deltas[0].digest


def test_a_learner_without_a_log_says_so():
    manifest = delta.Manifest(
        made.RUN_ID, 0, bytes(20), (delta.Entry(0, None),), EMPTY, EMPTY
    )
    assert manifest.log == EMPTY


def test_result_codes_are_fixed():
    assert [code.name for code in sorted(ResultCode)] == [
        "OK",
        "INVALID_REQUEST",
        "SERVER_ERROR",
        "UNAVAILABLE",
        "BUSY",
        "STALE_VERSION",
        "ABSENT",
        "PRUNED",
    ]
    assert list(map(int, ResultCode)) == list(range(8))


@pytest.mark.parametrize("name", MODULES)
def test_the_page_lists_every_message_with_its_fields(name):
    module, page = MODULES[name], f"protocols/{name}.md"
    declared = holdings if name == "votes" else module
    expected = {cls.__name__: list(hints_of(cls)) for cls in messages(declared)}
    assert fields_in(page) == expected
    text = (DOCS / page).read_text()
    assert text.startswith(f"# {module.PROTOCOL_ID}\n")
    assert f"{module.DEADLINE_S:g} s" in text
    for constant, value in vars(module).items():
        if constant.startswith("MAX_") and constant.endswith("_BYTES"):
            assert f"{value:,}" in text or str(value) in text, constant
