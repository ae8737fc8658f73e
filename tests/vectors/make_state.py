"""Regenerates state.json: the state tree, its proofs and its parts, byte for byte.

    python -m tests.vectors.make_state           writes the file beside this one
    python -m tests.vectors.make_state state     prints it

A changed file is a changed consensus: docs/consensus.md, "State", comes first.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from blyan_proto.attested import Attested
from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.codec import encode, to_plain
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.signing import Purpose
from blyan_proto.state import bucket_of, path_of
from blyan_proto.validators import Validator, Validators, ValidatorSet
from blyand.store.state import State
from tests.vectors.make_proto import KEY, OTHER, hash_of

HERE = Path(__file__).parent
NETWORK = hash_of("network")  # of no genesis: so its format may change
SIGNERS = (KEY, OTHER)
VALIDATORS = Validators(
    tuple(
        Validator(signer.public, weight, hash_of(f"tail {weight}"))
        for signer, weight in zip(SIGNERS, (3, 2))
    )
)


def neighbours() -> tuple[bytes, bytes]:
    """Return two keys that share a bucket."""
    seen: dict[int, bytes] = {}
    for number in itertools.count():
        key = b"table/%d" % number
        other = seen.setdefault(bucket_of(path_of(key)), key)
        if other != key:
            return other, key
    raise AssertionError


FIRST, SECOND = neighbours()
STATES: dict[str, dict[bytes, bytes]] = {
    "empty": {},
    "one": {b"clock/": b"\x01"},
    "neighbours": {FIRST: b"first", SECOND: b"second"},
    "many": {
        **{b"balance/" + hash_of(f"{n}")[:21]: b"%d" % n for n in range(40)},
        FIRST: b"",
        SECOND: bytes(300),
    },
}
PROVED = (FIRST, SECOND, b"absent/")


def final_of(state: State) -> FinalCheckpoint:
    root = ValidatorSet(VALIDATORS.members).root
    checkpoint = Checkpoint(
        version=FORMAT_VERSION,
        network=NETWORK,
        height=12,
        parent=hash_of("parent"),
        round=1,
        proposer=KEY.public,
        time_ms=1_700_000_000_000,
        beacon=hash_of("beacon"),
        preimage=hash_of("preimage"),
        blocks=(hash_of("block"),),
        receipts=(),
        state_root=state.root,
        validators_root=root,
        next_validators_root=root,
    )
    told = VoteStatement(
        FORMAT_VERSION,
        VoteStage.PRECOMMIT,
        checkpoint.height,
        checkpoint.round,
        checkpoint.id,
    )
    votes = tuple(
        Vote(told, who.public, who.sign(Purpose.CHECKPOINT_VOTE, NETWORK, told))
        for who in SIGNERS
    )
    return FinalCheckpoint(checkpoint, votes)


def attested(state: State, key: bytes) -> Attested:
    return Attested(final_of(state), VALIDATORS, key, state.prove(key))


def _state(pairs: dict[bytes, bytes]) -> dict[str, Any]:
    state = State(pairs.items())
    frozen, chunk = state.freeze(), path_of(FIRST)[0]
    part = frozen.part(chunk, None, limit=5)
    return {
        "pairs": {key.hex(): value.hex() for key, value in sorted(pairs.items())},
        "root": state.root.hex(),
        "part": {"raw": encode(part).hex(), "plain": to_plain(part)},
        "proofs": {key.hex(): encode(state.prove(key)).hex() for key in PROVED},
    }


def build() -> dict[str, Any]:
    many = State(STATES["many"].items())
    proof = attested(many, SECOND)
    return {
        "manifest": encode(many.freeze().manifest).hex(),
        "states": {name: _state(pairs) for name, pairs in STATES.items()},
        "attested": {
            "network": NETWORK.hex(),
            "validators_root": ValidatorSet(VALIDATORS.members).root.hex(),
            "raw": encode(proof).hex(),
            "plain": to_plain(proof),
        },
    }


def main(names: list[str]) -> None:
    text = json.dumps(build(), indent=1) + "\n"
    if names:
        print(text, end="")
    else:
        (HERE / "state.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
