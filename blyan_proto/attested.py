"""One record of executed state with all that a light client needs to believe it.

From the votes of a checkpoint over its state root down to the value of one key, or its
absence: self-contained, below a megabyte (SYNC-06), checked without any state.
"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.codec import Size, message
from blyan_proto.errors import BadProof
from blyan_proto.quorum import check_quorum
from blyan_proto.state import MAX_KEY_BYTES, StateProof, verify_state
from blyan_proto.validators import Validators, ValidatorSet

MAX_ATTESTED_BYTES = 1_000_000


@message
class Attested:
    """What stands under a key in the state after a final checkpoint."""

    final: FinalCheckpoint
    validators: Validators  # the set that signed it
    key: Annotated[bytes, Size(1, MAX_KEY_BYTES)]
    proof: StateProof


def verify_attested(
    attested: Attested,
    *,
    checkpoint: bytes | None = None,
    network: bytes | None = None,
    validators: bytes | None = None,
) -> bytes | None:
    """Return the value under the key, None when it is absent there.

    Believed is what the caller names: a checkpoint's id, or a network's id with the root
    of its validator set, or all. BadProof, BadSignature. ValueError when that is too
    little to believe anything.
    """
    if checkpoint is None and (network is None or validators is None):
        raise ValueError("name a checkpoint, or a network and its validator set")
    told, signers = attested.final.checkpoint, ValidatorSet(attested.validators.members)
    if checkpoint not in (None, told.id):
        raise BadProof("the proof is of another checkpoint")
    if validators not in (None, signers.root):
        raise BadProof("the proof is of another validator set")
    check_quorum(attested.final, network or told.network, signers)
    return verify_state(told.state_root, attested.key, attested.proof)
