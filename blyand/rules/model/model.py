"""A model is born: the model block, then the first weights of each of its groups."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.model import Dtype, Model, Placement, TileRootsList, Weights
from blyan_proto.codec import encode
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import ProtocolError
from blyan_tile.layout import Layout, group_root, layout_of
from blyan_tile.tokenizer import BYTES
from blyand.rules.records import GROUPS, MODELS, Group, ModelRecord
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

_LAYOUTS: dict[bytes, Layout] = {}


def layout_for(model: Model) -> Layout:
    """Return the layout of a model, computed once per distinct model payload."""
    key = encode(model)
    if key not in _LAYOUTS:
        if len(_LAYOUTS) >= 64:
            _LAYOUTS.clear()
        _LAYOUTS[key] = layout_of(model)
    return _LAYOUTS[key]


def create(
    view: Overlay, block: Block, payload: Model, height: int, replication: int = 1
) -> None:
    """Execute a model block; `replication` is the genesis's, for a model without one."""
    if payload.dtype not in (Dtype.F32, Dtype.F16, Dtype.BF16):
        raise Reject(
            f"a model's weights are stored as floats, not {payload.dtype.name}"
        )
    if payload.tokenizer != BYTES and payload.companions is None:
        raise Reject("a tokenizer is bytes or the root of a blob, in hex")
    if payload.architecture.experts_per_token > payload.architecture.experts:
        raise Reject("more experts per token than experts")
    try:
        layout = layout_for(payload)
    except ProtocolError as error:
        raise Reject(f"impossible architecture: {error}") from error
    MODELS.put(
        view,
        ModelRecord(
            id=block.id,
            model=replace(payload, replication=payload.replication or replication),
            creator=block.header.account,
            groups=len(layout.groups),
            weights=0,
            adopted_round=0,
            adopted_height=height,
            heads_root=None,
            run=None,
        ),
        block.id,
    )


def add_weights(view: Overlay, block: Block, payload: Weights, height: int) -> None:
    """Execute a weights block: the creator gives a group its first version, once."""
    record = require_model(view, payload.model)
    if block.header.account != record.creator:
        raise Reject("only the model's creator gives first weights")
    groups = layout_for(record.model).groups
    if payload.group >= len(groups):
        raise Reject(f"the model has no group {payload.group}")
    if len(payload.tiles) != len(groups[payload.group].tiles):
        raise Reject(f"{groups[payload.group].name} has another number of tiles")
    if GROUPS.get(view, payload.model, payload.group) is not None:
        raise Reject(f"{groups[payload.group].name} has its first weights already")
    GROUPS.put(
        view,
        Group(
            model=payload.model,
            group=payload.group,
            head=block.id,
            run=None,
            rounds=0,
            tiles=payload.tiles,
            adopted=payload.tiles,
            adopted_head=block.id,
            snapshot=block.id,
        ),
        payload.model,
        payload.group,
    )
    record = replace(record, weights=record.weights + 1)
    if record.weights == record.groups:
        heads = [group.adopted for group in GROUPS.scan(view, record.id)]
        record = replace(record, heads_root=heads_root(heads), adopted_height=height)
    MODELS.put(view, record, record.id)


def change_placement(
    view: Overlay, block: Block, payload: Placement, replication: int
) -> None:
    """Execute a placement block: the creator changes the replication."""
    record = require_model(view, payload.model)
    if block.header.account != record.creator:
        raise Reject("only the model's creator changes its placement")
    if payload.expert_limit:
        raise Reject("a limit of experts on a node is not in this version")
    wanted = payload.replication or replication
    model = replace(record.model, replication=wanted)
    MODELS.put(view, replace(record, model=model), record.id)


def require_model(view: View, id: bytes) -> ModelRecord:
    """Return a model's record or Reject."""
    record = MODELS.get(view, id)
    if record is None:
        raise Reject(f"unknown model {id.hex()[:16]}")
    return record


def heads_root(heads: list[TileRootsList]) -> bytes:
    """Return the digest that names one version of the whole model (DEC-B8)."""
    return digest(
        Domain.MODEL, *(group_root([t.weights for t in tiles]) for tiles in heads)
    )
