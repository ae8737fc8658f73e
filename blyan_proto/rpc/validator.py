"""Validators: who signs, with what weight, how well; and becoming one."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    ACCOUNT_INVALID,
    VALIDATOR_REFUSED,
    VALIDATOR_UNKNOWN,
)
from blyan_proto.rpc.spec import Address, Id, Key, Method, arg, declare, record

ACCOUNT_HELP = "account in hex, or me"


@record
class ListValidators:
    """Tell who signs checkpoints, who will, and who waits to."""


@record
class Line:
    """One validator or candidate."""

    account: Address = arg("the account")
    key: Key = arg("the key that signs")
    weight: int = arg("votes in the set appointed last; 0: not in it")
    status: str = arg(
        "signing, joining, leaving, banned; candidate; or what keeps it out: bond, chain, "
        "unheard (in this epoch), none (no such role)"
    )
    bond_micro: int = arg("locked, micro-BLY")
    owed: int = arg("checkpoints of this epoch that were its to sign")
    signed: int = arg("those whose precommit a checkpoint names")
    uptime_ppm: int = arg("share signed, as rewards count it")
    silent_ms: int = arg("chain time since its last signature; 0 when it signs")


@record
class Validators:
    """The set and those around it."""

    height: int = arg("newest checkpoint")
    epoch: int = arg("the epoch under way")
    epoch_ends_ms: int = arg("chain time after which a checkpoint ends it")
    total_weight: int = arg("of the set that signs the next checkpoint")
    quorum_weight: int = arg("least weight that makes a checkpoint final")
    validators: list[Line] = arg("members of the set, in its order, then the others")


list_ = declare(Method("validator.list", ListValidators, Validators))


@record
class GetValidator:
    """Tell everything about one validator."""

    account: str = arg(ACCOUNT_HELP, default="me", positional=True)


@record
class Release:
    """Bond on its way back."""

    due_ms: int = arg("free at the end of the epoch in which this chain time is")
    micro: int = arg("how much, before any slash")


@record
class Validator:
    """One registered node, as a validator."""

    line: Line = arg("as in the list")
    roles: list[str] = arg("what it registered for")
    registered_height: int = arg("checkpoint of its first registration")
    beacon_tail: Id | None = arg("end of its newest hash chain; null: it has none")
    tail_height: int = arg("checkpoint that registered it")
    unbonding_micro: int = arg("on its way back, micro-BLY")
    releases: list[Release] = arg("when")
    needed_micro: int = arg("bond that it needs to be a candidate")
    banned_until_ms: int | None = arg("chain time; null: not banned")
    ban: str = arg("what it is banned for, and what ends it; empty when it is not")
    slashes: list[Id] = arg(
        "the newest 50 penalties, newest first; `slash show` explains one"
    )


show = declare(
    Method(
        "validator.show",
        GetValidator,
        Validator,
        errors=(ACCOUNT_INVALID, VALIDATOR_UNKNOWN),
    )
)


@record
class Register:
    """Register this node as a validator, also after a ban, and wait until it is final.

    It enters at the end of the next epoch at the earliest; `validator list` shows when.
    """

    bond_micro: int | None = arg(
        "bond to have, micro-BLY; default: what a validator needs",
        default=None,
        low=0,
        high=2**63,
    )


@record
class Registered:
    """A registration that took effect."""

    block: Id = arg("the block that made it")
    bond_micro: int = arg("the account's bond now")
    status: str = arg("as in `validator list`")


register = declare(
    Method("validator.register", Register, Registered, errors=(VALIDATOR_REFUSED,))
)


@record
class Retire:
    """Register this node without the role; it signs until the epoch's end."""


retire = declare(
    Method("validator.retire", Retire, Registered, errors=(VALIDATOR_REFUSED,))
)


@record
class ChangeBond:
    """Lock some of this node's money, or begin to release some of its bond."""

    lock_micro: int = arg("to lock in addition", default=0, low=0, high=2**63)
    release_micro: int = arg("to begin to release", default=0, low=0, high=2**63)


@record
class Bonded:
    """The bond after a change that is final."""

    block: Id = arg("the block that made it")
    bond_micro: int = arg("locked")
    unbonding_micro: int = arg("on its way back")
    free_micro: int = arg("what the account can spend")


bond = declare(
    Method("validator.bond", ChangeBond, Bonded, errors=(VALIDATOR_REFUSED,))
)
