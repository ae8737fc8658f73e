"""Answers about penalties: what was taken and why, and evidence from a file."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Censure, Evidence, Offence
from blyan_proto.block.model import SignedClaim
from blyan_proto.checkpoint import SignedProposal, Vote
from blyan_proto.codec import decode
from blyan_proto.constants import FORMAT_VERSION, MAX_PAYLOAD_BYTES, PPM
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.rpc import slash as spec
from blyan_proto.rpc.errors import (
    EVIDENCE_INVALID,
    EVIDENCE_REFUSED,
    SLASH_UNKNOWN,
    RpcError,
)
from blyand.compute import Threads
from blyand.errors import NotHere
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers
from blyand.rpc.ordering import Ordering
from blyand.rules.chain.appointment import voters
from blyand.rules.chain.validators import signers
from blyand.rules.records import CLOCK
from blyand.rules.trust.censure import BALLOTS
from blyand.rules.trust.evidence import FalseEvidence, check_punishable, prove
from blyand.rules.trust.offences import offence_id
from blyand.rules.trust.slashing import SLASHES, Slash, penalties
from blyand.rules.verdict import Reject
from blyand.store.blocks import BlockStore

MAX_FILE_BYTES = 3 * MAX_PAYLOAD_BYTES  # hexadecimal


def bind(
    answers: Answers,
    *,
    genesis: Genesis,
    account: bytes,
    ordering: Ordering,
    blocks: BlockStore,
    make: Callable[..., Awaitable[Block]],
    lane: Threads,
) -> None:
    """Bind slash.*. `account`: this node's."""

    async def ordered(payload: object) -> bytes:
        block = await make(payload)
        refused = await ordering.wait(block.id)
        if refused is not None:
            raise RpcError(EVIDENCE_REFUSED, f"the network refused it: {refused}")
        return block.id

    @answers(spec.list_)
    async def slashes(params: spec.ListSlashes) -> spec.Slashes:
        only = account_called(params.account, account) if params.account else None
        if params.before is not None:
            last = SLASHES.get(ordering.view, params.before)
            if last is None or only not in (None, last.offender):
                text = f"no such penalty {params.before.hex()}: leave out `--before`"
                raise RpcError(SLASH_UNKNOWN, text)
        found = penalties(ordering.view, only, params.before)
        return spec.Slashes(
            slashes=[line_of(one) for one in islice(found, params.limit)]
        )

    @answers(spec.show)
    async def show(params: spec.GetSlash) -> spec.Slash:
        slash = SLASHES.get(ordering.view, params.id)
        if slash is None:
            raise RpcError(
                SLASH_UNKNOWN, f"no penalty {params.id.hex()}; `slash list` has them"
            )
        proof = await lane.run(_proof, blocks, slash)
        return slash_of(slash, proof)

    @answers(spec.submit)
    async def submit(params: spec.Submit) -> spec.Submitted:
        raw = await lane.run(read, params.file)
        evidence = evidence_in(raw)
        view, clock = ordering.view, CLOCK.get(ordering.view)
        assert clock is not None
        try:
            shown = prove(evidence, genesis.id)
        except FalseEvidence as error:
            raise RpcError(EVIDENCE_INVALID, f"it proves nothing: {error}") from error
        try:
            check_punishable(view, evidence, shown, clock.height + 1, clock.time_ms)
        except Reject as error:
            raise RpcError(EVIDENCE_REFUSED, f"not punishable: {error}") from error
        block = await ordered(evidence)
        id = offence_id(evidence.offence, evidence.offender, shown.subject)
        slash = SLASHES.get(ordering.view, id)
        return spec.Submitted(block=block, slash=line_of(slash) if slash else None)

    @answers(spec.censure)
    async def censure(params: spec.Censure) -> spec.Censured:
        if account not in voters(ordering.view):
            raise RpcError(EVIDENCE_REFUSED, "only a validator votes for a censure")
        offender = account_called(params.account, account)
        if offender == account:
            raise RpcError(EVIDENCE_REFUSED, "this node would vote against itself")
        block = await ordered(Censure(FORMAT_VERSION, offender, params.reason[:500]))
        voting, known = signers(ordering.view), BALLOTS.get(ordering.view, offender)
        cast = known.cast if known else ()
        return spec.Censured(
            block=block,
            weight=sum(voting.weight_of(ballot.voter) for ballot in cast),
            total_weight=voting.total,
        )


def read(path: str) -> bytes:
    """Return what a file holds. RpcError EVIDENCE_INVALID. Blocking."""
    if not Path(path).is_absolute() or "\0" in path:
        raise RpcError(EVIDENCE_INVALID, f"{path!r} is not an absolute path")
    try:
        with open(path, "rb", opener=_regular) as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RpcError(
            EVIDENCE_INVALID,
            f"cannot read {path}: {error.strerror}; name a file on the daemon's machine",
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise RpcError(EVIDENCE_INVALID, f"{Path(path).name} is too large for evidence")
    return raw


def _regular(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def evidence_in(raw: bytes) -> Evidence:
    """Return the evidence that a file holds, as bytes or as hexadecimal text."""
    try:
        text = raw.decode("ascii").strip()
        raw = bytes.fromhex(text)
    except ValueError:
        pass  # canonical bytes
    try:
        return decode(Evidence, raw, MAX_PAYLOAD_BYTES)
    except ProtocolError as error:
        raise RpcError(
            EVIDENCE_INVALID,
            f"the file holds no evidence, neither canonical bytes nor hex of them: {error}",
        ) from error


def line_of(slash: Slash) -> spec.Line:
    """Return a penalty's line."""
    return spec.Line(
        id=slash.id,
        offender=slash.offender,
        offence=slash.offence.name.lower().replace("_", " "),
        height=slash.height,
        time_ms=slash.time_ms,
        taken_micro=slash.taken_micro,
        banned_until_ms=slash.banned_until_ms or None,
    )


def slash_of(slash: Slash, proof: Block | None) -> spec.Slash:
    """Return a penalty with its formula and, where the block is here, its proof."""
    base = slash.unclaimed_micro + slash.bond_micro + slash.unbonding_micro
    parts = (
        ("unclaimed", slash.unclaimed_micro, slash.taken_unclaimed_micro),
        ("bond", slash.bond_micro, slash.taken_bond_micro),
        ("unbonding", slash.unbonding_micro, slash.taken_unbonding_micro),
    )
    return spec.Slash(
        line=line_of(slash),
        formula=(
            f"(unclaimed {slash.unclaimed_micro} + bond {slash.bond_micro} + unbonding "
            f"{slash.unbonding_micro}) * {slash.ppm} // {PPM} = "
            f"{base * slash.ppm // PPM} micro-BLY, burnt"
        ),
        ppm=slash.ppm,
        base_micro=base,
        parts=[
            spec.Part(purse=purse, held_micro=held, taken_micro=taken)
            for purse, held, taken in parts
        ],
        proof=slash.proof,
        reporter=proof.header.account if proof else None,
        signed=list(signed_in(proof)) if proof else [],
    )


def signed_in(proof: Block) -> Iterator[spec.Signed]:
    """Yield what the offender signed, from the block that proved it."""
    evidence = proof.content
    if not isinstance(evidence, Evidence):
        return
    for one in evidence.headers:
        yield spec.Signed(
            what="block header",
            key=one.header.author,
            height=one.header.anchor_height,
            text=f"block {one.header.id.hex()}, height {one.header.height}",
            signature=one.signature,
        )
    kinds = {
        Offence.DOUBLE_VOTE: Vote,
        Offence.DOUBLE_PROPOSAL: SignedProposal,
        Offence.DOUBLE_HEAD: SignedClaim,
    }
    kind = kinds.get(evidence.offence)
    for raw in evidence.statements if kind else ():
        try:
            yield _told(decode(kind, raw, MAX_PAYLOAD_BYTES))  # type: ignore[arg-type]
        except ProtocolError:
            continue  # false evidence may hold anything


def _told(made: Vote | SignedProposal | SignedClaim) -> spec.Signed:
    if isinstance(made, SignedClaim):
        claim = made.claim
        return spec.Signed(
            what="claim",
            key=made.cosignature.signer,
            height=claim.lease_epoch,
            text=(
                f"run {claim.run.hex()}, group {claim.group}, round {claim.round}, rank "
                f"{claim.rank}: result {claim.result.hex()}"
            ),
            signature=made.cosignature.signature,
        )
    statement = made.statement
    choice = statement.checkpoint.hex() if statement.checkpoint else "nil"
    if isinstance(made, Vote):
        stage = made.statement.stage.name.lower()
        what, key = "vote", made.voter
        text = f"{stage} of round {statement.round}: {choice}"
    else:
        what, key = "proposal", made.proposer
        text = f"round {statement.round}: {choice}"
    return spec.Signed(
        what=what,
        key=key,
        height=statement.height,
        text=text,
        signature=made.signature,
    )


def _proof(blocks: BlockStore, slash: Slash) -> Block | None:
    """Return the proving block, None where there is none here (any more). Blocking."""
    if slash.proof is None:
        return None
    try:
        return blocks.get(slash.proof)
    except NotHere:
        return None
