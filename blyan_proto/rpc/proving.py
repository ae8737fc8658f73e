"""chain.prove: one record of the executed state, with all that makes it believable."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    CHECKPOINT_UNKNOWN,
    EXPERT_UNKNOWN,
    MODEL_AMBIGUOUS,
    MODEL_UNKNOWN,
)
from blyan_proto.rpc.spec import (
    Hex,
    Id,
    JsonObject,
    Key,
    Method,
    arg,
    declare,
    record,
)

PURSES = ("free", "bond", "unbonding", "held", "unclaimed", "staked", "unstaking")


@record
class ProveState:
    """Prove what stands under one key of the executed state, from its checkpoint's votes.

    `blyanctl verify` checks the printed JSON (`--json`) without a daemon.
    """

    what: str = arg(
        "balance of an account, expert of a model, or any record",
        positional=True,
        choices=("balance", "expert", "record"),
    )
    name: str = arg(
        "account in hex, name of a pool, or me; group, as layer0.expert3; table/key, the "
        "key in hex",
        positional=True,
    )
    model: str | None = arg("the expert's model, by name or id", default=None)
    purse: str = arg("which of the account's purses", default="free", choices=PURSES)


@record
class Proved:
    """What stands under the key, and the proof of it."""

    key: Hex = arg("the key: its table, `/`, its parts")
    value: Hex | None = arg("the record there, canonical; null: the key is absent")
    record: JsonObject | None = arg("its fields; null: the key is absent")
    height: int = arg("checkpoint after which the state is")
    checkpoint: Id = arg("its id")
    time_ms: int = arg("its chain time, Unix milliseconds")
    state_root: Id = arg("root of the state after it")
    network: Id = arg("genesis id")
    validators_root: Id = arg("root of the set that signed it")
    signers: list[Key] = arg("validators whose votes made it final")
    proof_bytes: int = arg("length of the proof")
    proof: Hex = arg("everything above and why it is so: an Attested")


prove = declare(
    Method(
        "chain.prove",
        ProveState,
        Proved,
        errors=(CHECKPOINT_UNKNOWN, EXPERT_UNKNOWN, MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)
