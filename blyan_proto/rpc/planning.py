"""What it would take to answer with a model, before anything is fetched (noun: model)."""

from __future__ import annotations

from blyan_proto.rpc.errors import CHECKPOINT_INVALID, MODEL_AMBIGUOUS, MODEL_UNKNOWN
from blyan_proto.rpc.parts import MODEL_HELP
from blyan_proto.rpc.spec import Method, arg, declare, record


@record
class GetPlan:
    """Tell what fits where, how many hops a token takes, and how fast it may be.

    Nothing is fetched. Give a model of the network, or the folder of a checkpoint.
    """

    model: str | None = arg(MODEL_HELP, default=None, positional=True)
    directory: str | None = arg(
        "folder on the daemon's machine with a config.json: a model not imported yet",
        default=None,
        path=True,
    )
    context: int = arg(
        "tokens of one answer, for its keys and values", default=2048, low=1
    )


@record
class NodePlan:
    """What one node holds, or would."""

    node: str = arg("peer id")
    local: bool = arg("it is this node")
    experts: int = arg("experts")
    trunk_bytes: int = arg("embeddings, attention and routers, as stored")
    expert_bytes: int = arg("its experts, as stored")
    round_trip_ms: float | None = arg("measured; null: this node, or not connected")


@record
class RecipePlan:
    """The experts of this node as one recipe holds them."""

    recipe: str = arg("f32, bf16, int8 or int4")
    placed_bytes: int = arg("those that are placed here")
    fits: bool = arg("they fit into inference.memory_mib")
    all_bytes: int = arg("all of the model")
    all_fit: bool = arg("all would fit here")
    tokens_per_s: float | None = arg("with all of them here; null: they do not fit")


@record
class Way:
    """One way of a token through the layers."""

    way: str = arg("local, experts or spans")
    hops: float | None = arg("round trips per token; null: it cannot be gone")
    calls: float | None = arg("calls to peers per token; null: it cannot be gone")
    tokens_per_s: float | None = arg("predicted for one answer; null: see why")
    why: str = arg("what stands in the way, or what the number rests on")


@record
class Plan:
    """What fits, and how fast it may be."""

    model: str = arg("model name")
    verdict: str = arg("the whole in one sentence")
    parameters: int = arg("numbers in it")
    bytes: int = arg("of all weights as stored")
    layers: int = arg("layers")
    experts: int = arg("experts in a layer")
    experts_per_token: int = arg("of them that a token visits")
    replication: int = arg("holders of each expert")
    disk_bytes: int = arg("that this node would keep, with its placement")
    disk_free_bytes: int = arg("that it may still use")
    disk_fits: bool = arg("there is room")
    memory_bytes: int = arg("for experts that are ready: inference.memory_mib")
    cache_bytes: int = arg("keys and values of one answer, all layers")
    nodes: list[NodePlan] = arg("nodes, this one first")
    recipes: list[RecipePlan] = arg("this node's memory, by recipe")
    ways: list[Way] = arg("ways of a token")


plan = declare(
    Method(
        "model.plan",
        GetPlan,
        Plan,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS, CHECKPOINT_INVALID),
    )
)
