"""Consensus: how the validators stand with the next checkpoint."""

from __future__ import annotations

from blyan_proto.rpc.spec import Id, Key, Method, arg, declare, record


@record
class GetStatus:
    """Tell how the validators stand with the next checkpoint, as this node sees it."""


@record
class Member:
    """One validator of the set that signs the next checkpoint."""

    key: Key = arg("the key that it votes with")
    peer_id: str = arg("its libp2p peer id, by the newest key of its account")
    weight: int = arg("weight of its vote")
    me: bool = arg("it is this node")
    connected: bool = arg("a stream to it is open; true of this node itself")
    proposed: bool = arg("the current round's proposal is its, and is here")
    prevote: str = arg("in the current round: none, nil, or a checkpoint's id")
    precommit: str = arg("likewise")


@record
class Last:
    """The newest final checkpoint."""

    height: int = arg("its height")
    id: Id = arg("its id")
    round: int = arg("round whose votes made it final")
    time_ms: int = arg("chain time, Unix, ms")
    age_s: float = arg("seconds from its chain time to this node's clock")
    latency_s: float | None = arg(
        "from the begin of its height to its execution here; null where this node had "
        "no vote"
    )
    signers: int = arg("validators whose precommits this node has with it")
    weight: int = arg("their weight, by today's set")
    proposer: Key = arg("validator that proposed it first")


@record
class Consensus:
    """The agreement on the next checkpoint."""

    height: int = arg("height of the next checkpoint")
    round: int | None = arg("current round; null before the first")
    step: str = arg("none, propose, prevote or precommit: what was last done in it")
    votes: bool = arg("this node votes at this height")
    waits: str = arg("why there is no checkpoint yet")
    heard_weight: int = arg("weight of those as far as this node in the round")
    total_weight: int = arg("weight of the set")
    quorum_weight: int = arg("least weight that decides")
    validators: list[Member] = arg(
        "the set that signs the next checkpoint, in its order"
    )
    last: Last | None = arg("the newest final checkpoint; null before the first")


status = declare(Method("consensus.status", GetStatus, Consensus))
