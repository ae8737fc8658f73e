"""Penalties: what was taken, why, by which formula, and what proved it."""

from __future__ import annotations

from blyan_proto.rpc.errors import EVIDENCE_INVALID, EVIDENCE_REFUSED, SLASH_UNKNOWN
from blyan_proto.rpc.spec import Address, Hex, Id, Key, Method, arg, declare, record


@record
class ListSlashes:
    """Tell every penalty, newest first."""

    account: str = arg("only of this account: in hex, or me", default="")
    limit: int = arg("how many", default=50, low=1, high=1000)
    before: Id | None = arg(
        "only those before this one: the last of an earlier answer", default=None
    )


@record
class Line:
    """One penalty."""

    id: Id = arg("the offence")
    offender: Address = arg("account that paid")
    offence: str = arg("double vote, double proposal, double head, invalid block, …")
    height: int = arg("checkpoint that applied it")
    time_ms: int = arg("chain time of it")
    taken_micro: int = arg("what it cost, micro-BLY")
    banned_until_ms: int | None = arg("chain time; null: no ban")


@record
class Slashes:
    """Penalties."""

    slashes: list[Line] = arg("penalties, newest first")


list_ = declare(Method("slash.list", ListSlashes, Slashes, errors=(SLASH_UNKNOWN,)))


@record
class GetSlash:
    """Explain one penalty, down to the signatures that prove it."""

    id: Id = arg("id of the offence", positional=True)


@record
class Part:
    """One purse and what was taken from it."""

    purse: str = arg("unclaimed, bond or unbonding, in the order of taking")
    held_micro: int = arg("what it held")
    taken_micro: int = arg("what was taken")


@record
class Signed:
    """Something that the offender signed."""

    what: str = arg("vote, proposal, claim or block header")
    key: Key = arg("the key")
    height: int = arg("checkpoint that it is about")
    text: str = arg("what it says")
    signature: Hex = arg("compact r || s")


@record
class Slash:
    """One penalty and its proof."""

    line: Line = arg("as in the list")
    formula: str = arg("how the amount comes about, with the numbers in it")
    ppm: int = arg("share of the base")
    base_micro: int = arg("the base: all three purses")
    parts: list[Part] = arg("purse by purse")
    proof: Id | None = arg("block that proved it; null: missed precommits do")
    reporter: Address | None = arg("account that made this block")
    signed: list[Signed] = arg("what the offender signed, from that block")


show = declare(Method("slash.show", GetSlash, Slash, errors=(SLASH_UNKNOWN,)))


@record
class Submit:
    """Check evidence from a file and make a block of it; wait until it is final.

    Evidence that proves nothing is refused here: on the chain it would cost this node.
    """

    file: str = arg(
        "file with canonical evidence, or hex of it, on the daemon's machine",
        positional=True,
        path=True,
    )


@record
class Submitted:
    """Evidence that took effect."""

    block: Id = arg("the block that made it")
    slash: Line | None = arg("the penalty; null when it was spent already")


submit = declare(
    Method(
        "slash.submit", Submit, Submitted, errors=(EVIDENCE_INVALID, EVIDENCE_REFUSED)
    )
)


@record
class Censure:
    """Vote, as a validator, that another one leaves out valid blocks (never automatic)."""

    account: str = arg("the offender, in hex", positional=True)
    reason: str = arg("what was left out, and when", positional=True)


@record
class Censured:
    """A vote that is final."""

    block: Id = arg("the block that made it")
    weight: int = arg("votes for this censure now; 0: it is decided")
    total_weight: int = arg("of the set; more than two thirds decide")


censure = declare(
    Method("slash.censure", Censure, Censured, errors=(EVIDENCE_REFUSED,))
)
