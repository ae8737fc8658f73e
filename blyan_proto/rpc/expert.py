"""Experts: which there are, who holds them, at which versions."""

from __future__ import annotations

from blyan_proto.rpc import demand
from blyan_proto.rpc.errors import EXPERT_UNKNOWN, MODEL_AMBIGUOUS, MODEL_UNKNOWN
from blyan_proto.rpc.parts import MODEL_HELP
from blyan_proto.rpc.spec import Address, Id, Method, arg, declare, record


@record
class ListExperts:
    """List the experts of a model."""

    model: str | None = arg(MODEL_HELP, default=None)


@record
class ExpertLine:
    """One expert in a list."""

    name: str = arg("group name, as layer0.expert3")
    layer: int = arg("layer, from 0")
    expert: int = arg("expert in the layer, from 0")
    tiles: int = arg("tiles it is cut into")
    bytes: int = arg("bytes of its float32 weights")
    local: bool = arg("this node holds it")
    holders: int = arg("live holders known, this node included")
    round: int = arg("round of its trained head")
    adopted_round: int = arg("round that inference answers with")


@record
class Experts:
    """The experts of one model."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    experts: list[ExpertLine] = arg("experts, by layer")


list_ = declare(
    Method(
        "expert.list",
        ListExperts,
        Experts,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)


@record
class GetExpert:
    """Show one expert."""

    name: str = arg("group name, as layer0.expert3", positional=True)
    model: str | None = arg(MODEL_HELP, default=None)


@record
class Holder:
    """A node that holds an expert."""

    peer_id: str = arg("libp2p peer id")
    local: bool = arg("it is this node")
    latency_ms: float | None = arg("measured round trip; null for this node or unknown")


@record
class Expert:
    """One expert: its versions and holders."""

    name: str = arg("group name")
    model: str = arg("model name")
    model_id: Id = arg("model block id")
    layer: int = arg("layer, from 0")
    expert: int = arg("expert in the layer, from 0")
    parameters: int = arg("numbers in it")
    tiles: int = arg("tiles it is cut into")
    bytes: int = arg("bytes of its float32 weights")
    local: bool = arg("this node holds it")
    round: int = arg("round of its trained head")
    root: Id = arg("group root of its trained head")
    head: Id = arg("block that made the trained head")
    adopted_round: int = arg("round that inference answers with")
    adopted_root: Id = arg("group root that inference answers with")
    holders: list[Holder] = arg("live holders known")
    primaries: list[str] = arg("peer ids by rank for the round under way; empty: none")


show = declare(
    Method(
        "expert.show",
        GetExpert,
        Expert,
        errors=(EXPERT_UNKNOWN, MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)


@record
class GetHistory:
    """List the finalised versions of an expert, newest first: who made them from what.

    Any group has a history: layer0.trunk, layer0.router and embed too.
    """

    name: str = arg("group name, as layer0.expert3", positional=True)
    model: str | None = arg(MODEL_HELP, default=None)
    limit: int = arg("newest versions to list", default=50, low=1, high=10_000)


@record
class ExpertVersion:
    """One version of a group."""

    round: int | None = arg("round of its run, from 1; null: the first weights")
    block: Id = arg("block that made it")
    account: Address = arg("who made that block: the creator or a primary")
    rank: int | None = arg("rank of that primary in the round; null: no round")
    contributions: int = arg("deltas that it sums up")
    tokens: int = arg("tokens that these were learned from")
    delta_bytes: int = arg("bytes of these deltas")
    root: Id = arg("group root of the weights")
    checkpoint: int = arg("height of the checkpoint that ordered it")
    time_ms: int = arg("author's clock, Unix milliseconds")
    adopted: bool = arg("inference answers with it")


@record
class History:
    """The versions of one group, as far back as their blocks are kept."""

    name: str = arg("group name")
    model: str = arg("model name")
    model_id: Id = arg("model block id")
    parameters: int = arg("numbers in a version")
    bytes: int = arg("bytes of its float32 weights")
    complete: bool = arg("the list reaches back to the first weights")
    versions: list[ExpertVersion] = arg("versions, newest first")


history = declare(
    Method(
        "expert.history",
        GetHistory,
        History,
        errors=(EXPERT_UNKNOWN, MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)


@record
class GetCache:
    """List the experts that are ready to compute on this node."""


@record
class ReadyExpert:
    """One version of an expert in memory."""

    name: str = arg("group name, as layer0.expert3")
    root: Id = arg("group root of the version")
    recipe: str = arg("how its weights are held: f32, bf16, int8 or int4")
    bytes: int = arg("bytes it takes")
    hits: int = arg("times it was found here since it was loaded")
    idle_s: float = arg("seconds since it was last asked for")
    in_use: bool = arg("somebody computes with it right now")


@record
class Cache:
    """The experts that are ready, and how often that helped since the start."""

    budget_bytes: int = arg("most that ready experts may take")
    resident_bytes: int = arg("what they take")
    hits: int = arg("requests that found their expert ready")
    misses: int = arg("requests that did not")
    evictions: int = arg("experts that had to go, or that nobody used for an hour")
    streamed: int = arg("misses for which there was no room: computed from the files")
    experts: list[ReadyExpert] = arg("what is ready, most recently used first")


cache = declare(Method("expert.cache", GetCache, Cache))

usage = demand.usage
groups = demand.groups
suggestions = demand.suggestions
