"""Evidence: what an offender signed shows what it did, to everybody alike (DEC-A13).

`prove` looks at nothing but the evidence: it holds by itself, whoever submits it, and
one that does not hold is its reporter's own offence (SLASH-03). Whether what it shows is
still punishable is a question to state, and nobody's fault.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Evidence, Offence
from blyan_proto.block.header import INLINE, Header, SignedHeader
from blyan_proto.block.model import SignedClaim, UpdateClaim
from blyan_proto.block.payload import KINDS, decode_payload, payload_digest
from blyan_proto.checkpoint import SignedProposal, Vote
from blyan_proto.codec import decode, encode
from blyan_proto.constants import MAX_PAYLOAD_BYTES
from blyan_proto.errors import BadSignature, ProtocolError
from blyan_proto.signing import Purpose, check_signature
from blyand.rules.economy.rotation import answers_for
from blyand.rules.records import NODES
from blyand.rules.trust.horizon import oldest_height
from blyand.rules.trust.offences import record
from blyand.rules.trust.slashing import is_spent
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

T = TypeVar("T")


class Proven(NamedTuple):
    """What evidence shows."""

    key: bytes  # that signed
    height: int  # of the checkpoint that it is about
    subject: bytes  # names the deed


class FalseEvidence(Exception):
    """Evidence that shows nothing: the fault of whoever submits it."""


def prove(evidence: Evidence, network: bytes) -> Proven:
    """Return what the evidence shows, or raise FalseEvidence. Needs no state."""
    try:
        return _PROVERS[evidence.offence](evidence, network)
    except BadSignature as error:
        raise FalseEvidence(f"the offender did not sign this: {error}") from error
    except ProtocolError as error:
        raise FalseEvidence(f"not what an offender signs: {error}") from error


def punish(
    view: Overlay, block: Block, evidence: Evidence, height: int, now_ms: int
) -> None:
    """Execute an evidence block: record what it shows, or the reporter's offence.

    Reject where it comes too late, or where somebody was faster.
    """
    reporter = block.header.account
    if NODES.get(view, reporter) is None:
        raise Reject("only a registered node reports an offence")
    try:
        shown = prove(evidence, block.header.network)
    except FalseEvidence as error:
        _note_false(view, reporter, block.id, height, now_ms, error)
        return
    check_punishable(view, evidence, shown, height, now_ms)
    if not record(
        view, evidence.offence, evidence.offender, shown.subject, height, block.id
    ):
        raise Reject("this offence is known")


def _note_false(
    view: Overlay,
    reporter: bytes,
    block: bytes,
    height: int,
    now_ms: int,
    error: FalseEvidence,
) -> None:
    """Record that a reporter accused without proof: once in a checkpoint, and in a ban.

    Reject otherwise: a reporter without a bond must not fill state for nothing.
    """
    false, subject = Offence.FALSE_EVIDENCE, height.to_bytes(8, "little")
    if is_spent(view, reporter, false, height, now_ms) or not record(
        view, false, reporter, subject, height, block
    ):
        raise Reject(f"the evidence shows nothing: {error}") from error


def check_punishable(
    view: View, evidence: Evidence, shown: Proven, height: int, now_ms: int
) -> None:
    """Reject what is proven but cannot be punished, now or any more."""
    offender = evidence.offender
    if NODES.get(view, offender) is None:
        raise Reject("the offender is not registered")
    if shown.height > height:
        raise Reject("evidence of a height that is to come")
    if shown.height < oldest_height(view):
        raise Reject("the offence is older than a bond's way back")
    if not answers_for(view, offender, shown.key, shown.height):
        raise Reject("the key that signed was not the offender's at that height")
    if is_spent(view, offender, evidence.offence, shown.height, now_ms):
        raise Reject("the offender is punished for offences of this kind already")


def double_vote(first: Vote, second: Vote, offender: bytes) -> Evidence:
    """Return the evidence that two votes are."""
    return _pair(Offence.DOUBLE_VOTE, first, second, offender)


def double_proposal(
    first: SignedProposal, second: SignedProposal, offender: bytes
) -> Evidence:
    """Return the evidence that two proposals are."""
    return _pair(Offence.DOUBLE_PROPOSAL, first, second, offender)


def double_head(first: SignedClaim, second: SignedClaim, offender: bytes) -> Evidence:
    """Return the evidence that two claims of one lease are."""
    return _pair(Offence.DOUBLE_HEAD, first, second, offender)


def _pair(offence: Offence, first: Any, second: Any, offender: bytes) -> Evidence:
    statements = tuple(sorted((encode(first), encode(second))))
    return Evidence(1, offence, offender, (), statements)


def _prove_votes(evidence: Evidence, network: bytes) -> Proven:
    first, second = _statements(evidence, Vote)
    one, other = first.statement, second.statement
    _require(first.voter == second.voter, "two votes of two validators")
    _require(
        replace(one, checkpoint=None) == replace(other, checkpoint=None)
        and one.checkpoint != other.checkpoint,
        "two votes that do not conflict",
    )
    for vote in (first, second):
        check_signature(
            Purpose.CHECKPOINT_VOTE, network, vote.statement, vote.voter, vote.signature
        )
    subject = encode(replace(one, checkpoint=None))
    return Proven(first.voter, one.height, subject)


def _prove_proposals(evidence: Evidence, network: bytes) -> Proven:
    first, second = _statements(evidence, SignedProposal)
    one, other = first.statement, second.statement
    _require(first.proposer == second.proposer, "two proposals of two validators")
    _require(
        (one.height, one.round) == (other.height, other.round)
        and one.checkpoint != other.checkpoint,
        "two proposals that do not conflict",
    )
    for made in (first, second):
        check_signature(
            Purpose.CHECKPOINT_PROPOSAL,
            network,
            made.statement,
            made.proposer,
            made.signature,
        )
    subject = one.height.to_bytes(8, "little") + one.round.to_bytes(4, "little")
    return Proven(first.proposer, one.height, subject)


def _prove_heads(evidence: Evidence, network: bytes) -> Proven:
    first, second = _statements(evidence, SignedClaim)
    signer = first.cosignature.signer
    _require(signer == second.cosignature.signer, "two claims of two ranks")
    places = [place_of(signed.claim) for signed in (first, second)]
    _require(
        places[0] == places[1] and first.claim != second.claim,
        "two claims that do not conflict",
    )
    for signed in (first, second):
        signature = signed.cosignature.signature
        check_signature(Purpose.TILE_UPDATE, network, signed.claim, signer, signature)
    # A lease is named by the height of the checkpoint that gave it.
    return Proven(signer, first.claim.lease_epoch, places[0])


def place_of(claim: UpdateClaim) -> bytes:
    """Return what of a claim a rank signs once: the group, the round, the lease."""
    nothing = bytes(32)
    return encode(
        replace(
            claim,
            parent=nothing,
            base=nothing,
            contributions=nothing,
            result=nothing,
            blob=None,
        )
    )


def _prove_block(evidence: Evidence, network: bytes) -> Proven:
    (signed,), (shown,) = evidence.headers, evidence.statements
    header = signed.header
    _require(header.network == network, "a block of another network")
    if payload_digest(shown) == header.payload_digest:
        _require(_misnames(header, shown), "the block is well-formed")
    else:
        _check_parent(header, decode(Header, shown, MAX_PAYLOAD_BYTES))
    _check_header(signed)
    return Proven(header.author, header.anchor_height, header.id)


def _misnames(header: Header, payload: bytes) -> bool:
    """True when the payload that a header names is not what the header says it is.

    A kind that this version does not know shows nothing.
    """
    kind = KINDS.get(header.kind)
    if kind is None:
        return False
    if kind.chain != header.chain or header.payload_type != INLINE:
        return True
    if header.payload_bytes != len(payload):
        return True
    try:
        decode_payload(header.kind, payload)
    except ProtocolError:
        return True
    return False


def _check_parent(header: Header, parent: Header) -> None:
    """A parent shows that the header lies about its height, or its chain."""
    _require(parent.id in header.parents, "a block that is no parent of the block")
    above = header.height - parent.height
    fits = above == 1 if len(header.parents) == 1 else above >= 1
    _require(
        parent.chain != header.chain or not fits, "the parent and the block go together"
    )


def _check_header(signed: SignedHeader) -> None:
    header = signed.header
    check_signature(
        Purpose.BLOCK, header.network, header, header.author, signed.signature
    )


def _statements(evidence: Evidence, kind: type[T]) -> tuple[T, T]:
    first, second = evidence.statements
    return (
        decode(kind, first, MAX_PAYLOAD_BYTES),
        decode(kind, second, MAX_PAYLOAD_BYTES),
    )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise FalseEvidence(otherwise)


_PROVERS = {
    Offence.DOUBLE_VOTE: _prove_votes,
    Offence.DOUBLE_PROPOSAL: _prove_proposals,
    Offence.DOUBLE_HEAD: _prove_heads,
    Offence.INVALID_BLOCK: _prove_block,
}
