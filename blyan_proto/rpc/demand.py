"""How experts are used, which belong together, and what should move (noun: expert)."""

from __future__ import annotations

from blyan_proto.rpc.errors import MODEL_AMBIGUOUS, MODEL_UNKNOWN
from blyan_proto.rpc.parts import MODEL_HELP
from blyan_proto.rpc.spec import Id, Method, arg, declare, record


@record
class GetUsage:
    """Show which experts were visited in the last hour, as far as this node saw it."""

    model: str | None = arg(MODEL_HELP, default=None)


@record
class Used:
    """One expert."""

    name: str = arg("group name, as layer0.expert3")
    layer: int = arg("layer, from 0")
    expert: int = arg("expert in the layer, from 0")
    visits: int = arg("tokens that went there, of requests and spans of this node")
    served: int = arg("rows computed here for calls of peers")
    windows: list[int] = arg("visits by ten minutes, the current ones last")


@record
class Usage:
    """Visits of the last hour: the heat map."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    tokens: int = arg("tokens seen in the last hour")
    window_s: float = arg("length of a window, seconds")
    layers: int = arg("layers")
    experts_per_layer: int = arg("experts in each")
    experts: list[Used] = arg("experts, by layer")


usage = declare(
    Method(
        "expert.usage",
        GetUsage,
        Usage,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)


@record
class GetGroups:
    """List the experts that are used together more often than by chance."""

    model: str | None = arg(MODEL_HELP, default=None)


@record
class Together:
    """Experts of one layer that tokens visit together."""

    layer: int = arg("layer, from 0")
    experts: list[int] = arg("experts in the layer, ascending")
    affinity: float = arg("times as often together as by chance, average of all pairs")
    visits: int = arg("tokens that went to any of them in the last hour, summed up")
    whole: list[str] = arg("peer ids that hold all of them, this node's included")


@record
class Groups:
    """Groups by co-use."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    tokens: int = arg("tokens seen in the last hour")
    groups: list[Together] = arg("groups, by layer, the closest first")


groups = declare(
    Method(
        "expert.groups",
        GetGroups,
        Groups,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)


@record
class GetSuggestions:
    """Suggest which experts to copy, which copies to drop, what to move where."""

    model: str | None = arg(MODEL_HELP, default=None)


@record
class Hot:
    """An expert among the hottest 5 %."""

    name: str = arg("group name")
    visits: int = arg("tokens that went there in the last hour")
    holders: int = arg("live holders known, this node included")
    local: bool = arg("this node holds it")
    copied: bool = arg("this node holds it of its own will")


@record
class Moved:
    """An expert that one node had better hold in place of another."""

    name: str = arg("group name")
    source: str = arg("peer id that has too much to do")
    target: str = arg("peer id that has too little")


@record
class Load:
    """What falls on one node."""

    peer_id: str = arg("libp2p peer id")
    experts: int = arg("experts that it holds")
    share_ppm: int = arg("of all visits, an expert's in equal parts on its holders")


@record
class Suggestions:
    """What this node would do about the use it saw. Placement itself stays as it is."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    tokens: int = arg("tokens seen in the last hour")
    hot: list[Hot] = arg("the hottest 5 %, hottest first")
    cold: list[str] = arg("experts here that nobody used for an hour")
    loads: list[Load] = arg("nodes, by peer id")
    imbalance_ppm: int = arg("how far the node that differs most is from the average")
    moves: list[Moved] = arg("what would even out the load; none below 20 %")


suggestions = declare(
    Method(
        "expert.suggestions",
        GetSuggestions,
        Suggestions,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)
