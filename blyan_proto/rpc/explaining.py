"""What became of a learner's deltas, and the signatures that show it (noun: train)."""

from __future__ import annotations

from blyan_proto.rpc.errors import ACCOUNT_INVALID, RUN_UNKNOWN
from blyan_proto.rpc.spec import Hex, Id, Key, Method, arg, declare, record


@record
class ExplainRound:
    """Explain a learner's round: received, weighted, clipped, refused, and why.

    What a node knows: the updates of the chain, what was handed in to it as a rank, and
    the receipts that it got itself.
    """

    peer: str = arg("learner: peer id, its end, account, or me", positional=True)
    round: int = arg("round, from 1", low=1, positional=True)
    run: Id | None = arg("run block id, hex; default: the newest", default=None)


@record
class Fate:
    """What became of one group's delta."""

    group: str = arg("group name")
    fate: str = arg(
        "listed, clipped, left out, refused, nothing, unknown, open or pruned"
    )
    why: str = arg("in a sentence")
    weight_ppm: int | None = arg("share in the sum, before the clip; null: not listed")
    clip_ppm: int | None = arg("factor on the delta; a million: not clipped")
    norm: float | None = arg("of the delta, where the run clips")
    tokens: int | None = arg("tokens that the update counts for it")
    bytes: int | None = arg("of the encoded delta")
    rank: int | None = arg("rank that published the update; 0 is the primary")
    by: str | None = arg("peer id of who published it")
    signers: int | None = arg("ranks that signed the update")
    update: Id | None = arg("update block id")
    delta: Id | None = arg("digest of the delta's bytes")


@record
class HandIn:
    """A bundle that was handed in, with the signatures of both sides."""

    at_ms: int = arg("when, by this node's clock")
    primary: str = arg("peer id of the rank that it went to")
    verdicts: str = arg("what became of its entries there")
    manifest: Id = arg("digest of the manifest that both signed")
    learner_key: Key | None = arg("the learner's key; null: this node's own bundle")
    learner_signature: Hex | None = arg("purpose `delta bundle`")
    primary_key: Key = arg("the rank's key")
    receipt_signature: Hex = arg("purpose `delta receipt`")


@record
class RoundExplained:
    """A learner's round, group by group."""

    run: Id = arg("run block id")
    round: int = arg("round, from 1")
    peer_id: str = arg("the learner's peer id")
    account: Hex = arg("its account")
    summary: str = arg("what became of it, in a sentence")
    fates: list[Fate] = arg("groups that it was to train, or that list it")
    bundles: list[HandIn] = arg("those that this node received or sent")


explain = declare(
    Method(
        "train.explain",
        ExplainRound,
        RoundExplained,
        errors=(RUN_UNKNOWN, ACCOUNT_INVALID),
    )
)
