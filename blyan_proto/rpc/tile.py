"""Tiles: what this node holds, byte for byte."""

from __future__ import annotations

from blyan_proto.rpc.errors import MODEL_AMBIGUOUS, MODEL_UNKNOWN, TILE_UNKNOWN
from blyan_proto.rpc.parts import MODEL_HELP, Progress
from blyan_proto.rpc.spec import LONG_DEADLINE_S, Id, Method, arg, declare, record


@record
class ListTiles:
    """List the tiles that this node holds, with the roots of their state."""

    model: str | None = arg(MODEL_HELP, default=None)
    group: str | None = arg("only this group, as layer0.expert3", default=None)


@record
class TileLine:
    """One tile in a list."""

    group: str = arg("group name")
    index: int = arg("tile in the group, from 0")
    parameter: str = arg("parameter it is cut from; the first of several")
    shape: list[int] = arg("rows and columns, or one length")
    round: int = arg("round of the version held")
    weights_root: Id = arg("root of the float32 weights")
    momentum_root: Id | None = arg("root of the outer momentum; null: none")


@record
class Tiles:
    """The tiles that this node holds."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    tiles: list[TileLine] = arg("tiles, by group and index")


list_ = declare(
    Method(
        "tile.list",
        ListTiles,
        Tiles,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS, TILE_UNKNOWN),
    )
)


@record
class GetTile:
    """Show one tile."""

    group: str = arg("group name, as layer0.expert3", positional=True)
    index: int = arg("tile in the group, from 0", low=0, positional=True)
    model: str | None = arg(MODEL_HELP, default=None)


@record
class TilePiece:
    """A part of a parameter that stands in a tile."""

    parameter: str = arg("parameter name")
    rows: list[int] = arg("first row and the row after the last; empty if flat")
    columns: list[int] = arg("first column and the column after the last")


@record
class Tile:
    """One tile: where it comes from and its roots."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    group: str = arg("group name")
    index: int = arg("tile in the group, from 0")
    tensor_class: str = arg("matrix, vector, router or embedding")
    dtype: str = arg("element type")
    shape: list[int] = arg("rows and columns, or one length")
    bytes: int = arg("bytes of its weights")
    leaves: int = arg("Merkle leaves of 256 KiB")
    pieces: list[TilePiece] = arg("parameters it holds")
    round: int = arg("round of the version held")
    block: Id = arg("block that made this version")
    single: bool = arg("it is final, and nobody but its author recomputed it")
    disputed: bool = arg("a holder computed another result; validators judge it")
    weights_root: Id = arg("root of the float32 weights")
    momentum_root: Id | None = arg("root of the outer momentum; null: none")


show = declare(
    Method(
        "tile.show",
        GetTile,
        Tile,
        errors=(TILE_UNKNOWN, MODEL_UNKNOWN, MODEL_AMBIGUOUS),
    )
)


@record
class GetRoots:
    """Tell one digest over all tiles held, and one root per group, at a finalised round.

    Two nodes that hold the same groups at the same round answer the same digest.
    """

    model: str | None = arg(MODEL_HELP, default=None)
    round: int | None = arg("finalised round; default: the newest", default=None, low=0)


@record
class GroupRoot:
    """One group's root at that round."""

    group: str = arg("group name")
    round: int = arg("round of the version held at that point")
    tiles: int = arg("tiles in it")
    root: Id = arg("digest over the tiles' weight and momentum roots")


@record
class Roots:
    """Everything held, in one digest."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    round: int = arg("the round")
    checkpoint: int = arg("height of the checkpoint that finalised it")
    tiles: int = arg("tiles covered")
    digest: Id = arg("digest over the group roots, in layout order")
    groups: list[GroupRoot] = arg("by group")


roots = declare(
    Method("tile.roots", GetRoots, Roots, errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS))
)


@record
class ReplayGroup:
    """Prove a version of a group: compute it again from the oldest snapshot held here.

    Every update is made again from its base and its deltas, and must give its roots.
    """

    group: str = arg("group name", positional=True)
    model: str | None = arg(MODEL_HELP, default=None)
    from_genesis: bool = arg(
        "begin at the first weights; needs a reachable archive where they are pruned",
        default=False,
    )
    version: Id | None = arg(
        "prove this version, a block id of `tile history`; default: the head",
        default=None,
    )


@record
class Replayed:
    """How far a group's finalised head follows from what is here."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    group: str = arg("group name")
    start: Id = arg("block that made the version it began at")
    from_genesis: bool = arg("these were the first weights")
    head: Id = arg("block that made the version: the finalised head by default")
    updates: int = arg("updates computed again")
    tiles: int = arg("tiles of the group")
    sound: bool = arg("every update gave the roots that it names")
    problem: str | None = arg("what did not follow; null if all did")


replay = declare(
    Method(
        "tile.replay",
        ReplayGroup,
        Replayed,
        errors=(TILE_UNKNOWN, MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        streams=Progress,
        deadline_s=LONG_DEADLINE_S,
    )
)


@record
class GetHistory:
    """Tell every version of a group that the chain knows, newest first."""

    group: str = arg("group name, as layer0.expert3", positional=True)
    model: str | None = arg(MODEL_HELP, default=None)
    limit: int = arg("most versions", default=50, low=1, high=10_000)


@record
class HistoryLine:
    """One version of a group, and the update that made it."""

    round: int = arg("rounds of its run behind it; 0: first weights")
    block: Id = arg("block that made it")
    kind: str = arg("weights or update")
    run: Id | None = arg("run that it is of; null: first weights")
    rank: int | None = arg("rank that published it")
    deltas: int = arg("deltas that it lists")
    bytes: int = arg("of those deltas")
    snapshot: bool = arg("holders keep its tiles durable, as one of the last two")
    here: bool = arg("its tiles are on this disk now")
    root: Id = arg("digest over the roots of its tiles")


@record
class History:
    """A group's versions, newest first."""

    model: str = arg("model name")
    model_id: Id = arg("model block id")
    group: str = arg("group name")
    from_genesis: bool = arg("the list ends at the first weights")
    pruned: bool = arg(
        "older payloads went here; a node with the role archive has them"
    )
    chain_updates: int = arg("updates since the newest snapshot")
    chain_bytes: int = arg("bytes of their deltas")
    versions: list[HistoryLine] = arg("versions, newest first")


history = declare(
    Method(
        "tile.history",
        GetHistory,
        History,
        errors=(TILE_UNKNOWN, MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        deadline_s=LONG_DEADLINE_S,
    )
)
