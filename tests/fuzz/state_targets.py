"""The decoders of proofs and parts of a state: (decode, encode, samples) by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blyan_proto import codec
from blyan_proto.attested import MAX_ATTESTED_BYTES, Attested, verify_attested
from blyan_proto.errors import BadProof
from blyan_proto.state import (
    MAX_MANIFEST_BYTES,
    MAX_PART_BYTES,
    StateManifest,
    StatePart,
    StateProof,
    path_of,
    verify_state,
)
from blyan_proto.untyped import read_untyped
from blyan_proto.validators import ValidatorSet
from blyand.store.memory import MemoryStore
from blyand.store.restore import Restore
from blyand.store.state import State
from tests.vectors import make_proto as made
from tests.vectors import make_state

STATE = State(make_state.STATES["many"].items())
MANIFEST = STATE.freeze().manifest
PART = STATE.freeze().part(path_of(make_state.FIRST)[0], None)
ATTESTED = make_state.attested(STATE, make_state.FIRST)


def proof(raw: bytes) -> None:
    """The proof of a key under a root that is known."""
    shown = codec.decode(StateProof, raw, MAX_ATTESTED_BYTES)
    verify_state(STATE.root, make_state.FIRST, shown)


def attested(raw: bytes) -> Attested:
    """What a light client takes, which knows the network and its validators."""
    shown = codec.decode(Attested, raw, MAX_ATTESTED_BYTES)
    root = ValidatorSet(make_state.VALIDATORS.members).root
    verify_attested(shown, network=make_state.NETWORK, validators=root)
    return shown


def restored(raw: bytes) -> None:
    """A donor's part of a state, taken over by a joiner."""
    part = codec.decode(StatePart, raw, MAX_PART_BYTES)
    checkpoint = make_state.final_of(STATE).checkpoint
    restore = Restore.begin(MemoryStore(), checkpoint, MANIFEST)
    try:
        restore.put(part)
    except BadProof:
        assert restore.after(part.chunk) is None
        raise


def decoder(cls: type, limit: int) -> Callable[[bytes], Any]:
    return lambda raw: codec.decode(cls, raw, limit)


TARGETS = {
    "state proof": (proof, None, (codec.encode(STATE.prove(make_state.FIRST)),)),
    "attested": (attested, codec.encode, (codec.encode(ATTESTED),)),
    "state manifest": (
        decoder(StateManifest, MAX_MANIFEST_BYTES),
        codec.encode,
        (codec.encode(MANIFEST),),
    ),
    "state part": (
        decoder(StatePart, MAX_PART_BYTES),
        codec.encode,
        (codec.encode(PART),),
    ),
    "state part restored": (restored, None, (codec.encode(PART),)),
    "record without its type": (
        read_untyped,
        None,
        (codec.encode(made.GENESIS), codec.encode(PART)),
    ),
}
