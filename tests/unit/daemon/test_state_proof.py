"""Proofs of single keys: ours and the second reader agree on what holds and what does not."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto import codec
from blyan_proto.attested import MAX_ATTESTED_BYTES, Attested, verify_attested
from blyan_proto.checkpoint import FinalCheckpoint, Vote, VoteStage, VoteStatement
from blyan_proto.digest import node_digest
from blyan_proto.errors import BadProof, DecodeError, ProtocolError
from blyan_proto.signing import Purpose
from blyan_proto.state import (
    MAX_PROOF_ENTRIES,
    MAX_PROVED_BYTES,
    StateProof,
    bucket_hash,
    bucket_of,
    path_of,
    value_digest,
    verify_state,
)
from blyan_proto.untyped import read_untyped
from blyan_proto.validators import Validator, Validators, ValidatorSet
from blyand.errors import NotHere
from blyand.store.state import State
from tests.second import light
from tests.second.canonical import Malformed, decode
from tests.unit.daemon.chain_world import key
from tests.unit.daemon.test_store_state import CROWDED
from tests.vectors import make_proto as made
from tests.vectors import make_state

KEYS = [key(f"validator {n}") for n in range(4)]
WEIGHTS = (3, 2, 2, 2)
SET = Validators(
    tuple(Validator(k.public, w, bytes(32)) for k, w in zip(KEYS, WEIGHTS))
)
ROOT = ValidatorSet(SET.members).root
PAIRS = {**{name: b"value of " + name for name in CROWDED}, b"empty": b""}
ABSENT = (b"nothing", CROWDED[0] + b"x")


@pytest.fixture(scope="module")
def state():
    return State(PAIRS.items())


def vote(checkpoint, signer, /, **changed):
    told = VoteStatement(1, VoteStage.PRECOMMIT, checkpoint.height, 0, checkpoint.id)
    told = replace(told, **changed)
    signature = signer.sign(Purpose.CHECKPOINT_VOTE, made.NETWORK, told)
    return Vote(told, signer.public, signature)


def checkpoint_of(state):
    return replace(
        made.FINAL.checkpoint,
        state_root=state.root,
        validators_root=ROOT,
        proposer=KEYS[1].public,
    )


def attested(state, name, signers=KEYS[:3]):
    checkpoint = checkpoint_of(state)
    votes = tuple(vote(checkpoint, signer) for signer in signers)
    final = FinalCheckpoint(checkpoint, votes)
    return Attested(final, SET, name, state.prove(name))


def believed(raw, **trusted):
    """What our light client reads out of the bytes of a proof; ProtocolError."""
    found = codec.decode(Attested, raw, MAX_ATTESTED_BYTES)
    trusted = trusted or {"network": made.NETWORK, "validators": ROOT}
    return verify_attested(found, **trusted)


def second(raw):
    """The same, read by the pages. Malformed, Refused."""
    return light.check_attested(decode("Attested", raw), made.NETWORK, ROOT)


def test_the_vectors():
    golden = json.loads((make_state.HERE / "state.json").read_text())
    assert make_state.build() == golden, "a changed state tree is a changed consensus"


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.dictionaries(
        st.sampled_from(CROWDED) | st.binary(min_size=1, max_size=3),
        st.binary(max_size=4),
        max_size=20,
    ),
    asked=st.sampled_from(CROWDED) | st.binary(min_size=1, max_size=3),
)
def test_what_is_there_and_what_is_not_is_provable(pairs, asked):
    state = State(pairs.items())
    for name in (asked, *pairs):
        proof = state.prove(name)
        assert verify_state(state.root, name, proof) == pairs.get(name)
        with pytest.raises(BadProof):
            verify_state(bytes(32), name, proof)


@pytest.mark.parametrize("name", [CROWDED[0], b"empty", *ABSENT])
def test_both_readers_believe_the_same(state, name):
    raw = codec.encode(attested(state, name))
    assert believed(raw) == second(raw) == PAIRS.get(name)
    assert believed(raw, checkpoint=checkpoint_of(state).id) == PAIRS.get(name)
    assert len(raw) < 4000


def test_every_flipped_byte_of_a_proof_is_refused(state):
    source = random.Random(1)
    for name in (CROWDED[0], b"empty", *ABSENT):
        raw = codec.encode(state.prove(name))
        for place in range(len(raw)):
            bad = bytearray(raw)
            bad[place] ^= 1 << source.randrange(8)
            with pytest.raises(ProtocolError):
                proof = codec.decode(StateProof, bytes(bad), len(raw))
                verify_state(state.root, name, proof)


def test_mutated_proofs_are_refused_by_both_readers(state):
    source, name = random.Random(2), CROWDED[1]
    raw = codec.encode(attested(state, name))
    places = source.sample(range(len(raw)), 20)
    for place in [*places, raw.index(b"value of")]:
        bad = bytearray(raw)
        bad[place] ^= 1 << source.randrange(8)
        with pytest.raises(ProtocolError):
            believed(bytes(bad))
        with pytest.raises((Malformed, light.Refused, AssertionError)):
            second(bytes(bad))


def lies(state):
    """Proofs that decode, and claim what is not so."""
    good, other = attested(state, CROWDED[0]), attested(state, CROWDED[1])
    final, proof = good.final, good.proof
    entries = proof.entries
    yield "absent", replace(good, proof=replace(proof, value=None))
    yield "another value", replace(good, proof=replace(proof, value=b"more"))
    yield "another key", replace(good, key=CROWDED[1])
    yield "a key that is absent", replace(good, key=b"nothing")
    nothing = replace(state.prove(b"nothing"), value=b"something")
    yield "a value of nothing", replace(good, key=b"nothing", proof=nothing)
    yield "fewer entries", replace(good, proof=replace(proof, entries=entries[1:]))
    yield "turned", replace(good, proof=replace(proof, entries=entries[::-1]))
    yield "twice", replace(good, proof=replace(proof, entries=(entries[0], *entries)))
    strange = replace(other.proof, entries=(*entries, path_of(b"a") + bytes(32)))
    yield "a stranger in the bucket", replace(good, proof=strange)
    yield "no quorum: 5 of 9", replace(
        good, final=replace(final, votes=final.votes[:2])
    )
    yield "no quorum: 6 of 9", attested(state, CROWDED[0], KEYS[1:])
    votes = final.votes
    yield "a vote twice", replace(
        good, final=replace(final, votes=(*votes[:2], votes[0]))
    )
    outsider = vote(final.checkpoint, key("outsider"))
    yield "an outsider", replace(good, final=replace(final, votes=(*votes, outsider)))
    for changed in (
        {"stage": VoteStage.PREVOTE},
        {"height": final.checkpoint.height + 1},
        {"round": 9},
        {"checkpoint": None},
        {"checkpoint": bytes(32)},
    ):
        wrong = vote(final.checkpoint, KEYS[2], **changed)
        yield str(changed), replace(
            good, final=replace(final, votes=(*votes[:2], wrong))
        )
    heavier = replace(SET.members[0], weight=9)
    members = Validators((heavier, *SET.members[1:]))
    yield "another set", replace(good, validators=members)
    moved = replace(final.checkpoint, state_root=State().root)
    yield "another root", replace(good, final=FinalCheckpoint(moved, votes))
    abroad = replace(final.checkpoint, network=bytes(32))
    votes = tuple(vote(abroad, signer) for signer in KEYS)
    yield "another network", replace(good, final=FinalCheckpoint(abroad, votes))


def test_lies_are_refused_by_both_readers(state):
    count = 0
    for what, lie in lies(state):
        raw, count = codec.encode(lie), count + 1
        with pytest.raises(ProtocolError):
            believed(raw)
            pytest.fail(f"{what} is believed")
        with pytest.raises(light.Refused):
            second(raw)
            pytest.fail(f"{what} is believed by the second reader")
    assert count == 21


def test_a_root_over_what_is_no_bucket_proves_nothing(state):
    """Nobody makes such a root, but if a quorum did, one key would have two values."""
    name, good = CROWDED[0], state.prove(CROWDED[0])
    own = next(e for e in good.entries if e[:32] == path_of(name))
    other = path_of(name) + value_digest(b"other")
    strange = path_of(CROWDED[2])
    assert bucket_of(strange) != bucket_of(path_of(name))
    for entries in (
        tuple(sorted((own, other))),
        (own, bytes([0, 0]) + own[2:]),
        tuple(sorted((own, strange + bytes(32)))),
        good.entries[::-1],
    ):
        proof, hashed = replace(good, entries=entries), bucket_hash(entries)
        for level, sibling in enumerate(good.siblings):
            is_right = bucket_of(path_of(name)) >> level & 1
            hashed = node_digest(sibling + hashed if is_right else hashed + sibling)
        assert len(entries) > 1
        with pytest.raises(BadProof, match="bucket"):
            verify_state(hashed, name, proof)
        with pytest.raises(light.Refused, match="order|bucket"):
            light.check_state(hashed, name, decode("StateProof", codec.encode(proof)))


def test_nothing_is_believed_of_somebody_unnamed(state):
    raw = codec.encode(attested(state, b"empty"))
    for trusted in ({"network": made.NETWORK}, {"validators": ROOT}):
        with pytest.raises(ValueError, match="name a checkpoint"):
            believed(raw, **trusted)
    with pytest.raises(ProtocolError, match="another checkpoint"):
        believed(raw, checkpoint=bytes(32))
    with pytest.raises(ProtocolError, match="another validator set"):
        believed(raw, network=made.NETWORK, validators=bytes(32))
    with pytest.raises(ProtocolError, match="another network"):
        believed(raw, network=bytes(32), validators=ROOT)


def test_the_largest_proof_is_below_a_megabyte(state, monkeypatch):
    name, source = b"large", random.Random(3)
    prefix = path_of(name)[:2]
    entries = sorted(prefix + source.randbytes(62) for _ in range(MAX_PROOF_ENTRIES))
    value = bytes(MAX_PROVED_BYTES)
    proof = StateProof(tuple(entries), (bytes(32),) * 16, value)
    final = replace(made.FINAL, votes=made.FINAL.votes * 128)
    full = Attested(final, SET, name, proof)
    assert len(codec.encode(full)) + 128 * 80 + 176 * 1024 < MAX_ATTESTED_BYTES
    state = State({name: value + b"1"}.items())
    with pytest.raises(NotHere, match="too large"):
        state.prove(name)
    assert bucket_of(path_of(name)) == int.from_bytes(prefix, "big")


@pytest.mark.parametrize("value", [made.GENESIS, made.FINAL, SET])
def test_a_record_is_shown_without_its_type(value):
    plain = codec.to_plain(value)

    def flat(told):
        if isinstance(told, dict):
            return [flat(item) for item in told.values()]
        return [flat(item) for item in told] if isinstance(told, list) else told

    shown = read_untyped(codec.encode(value))
    told = flat(plain)
    assert str(shown).count("[") == str(told).count("[")
    if value is not made.FINAL:  # enumerations are numbers there
        assert shown == told


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_anything_else_is_no_record(raw):
    try:
        read_untyped(raw)
    except DecodeError:
        pass
    with pytest.raises(DecodeError):
        read_untyped(b"\x91" * 40 + b"\xc0")
