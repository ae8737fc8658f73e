"""Answers about models: create one, list them, show one."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.model import Architecture, Model, RopeScaling
from blyan_proto.errors import ProtocolError
from blyan_proto.rpc import model as spec
from blyan_proto.rpc.errors import (
    MODEL_EXISTS,
    PRESET_UNKNOWN,
    WEIGHTS_INVALID,
    RpcError,
)
from blyan_proto.rpc.parts import Progress
from blyan_proto.rpc.records import nearest
from blyan_tile import packed
from blyan_tile.create import PRESETS, model_of
from blyan_tile.layout import Layout
from blyand.errors import ComputeFault, Unavailable
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.expert import ELEMENT_BYTES, size_of
from blyand.rpc.holders import Holders
from blyand.rpc.ordering import Ordering
from blyand.rpc.publishing import Publishing, check_name, scratch
from blyand.rpc.resolve import model_called
from blyand.rules.model.model import layout_for
from blyand.rules.records import GROUPS, MODELS, ModelRecord, Node
from blyand.rules.view import View
from blyand.training import birth

WEIGHTS_ORDERED_S = 300.0  # from one block ordered to the next


def bind(
    answers: Answers, *, holders: Holders, ordering: Ordering, publishing: Publishing
) -> None:
    """Bind model.*."""
    under_way: set[str] = set()  # names of models that are being created

    @answers(spec.create)
    async def create(params: spec.CreateModel, emit: Emit) -> spec.Created:
        model = _model(params, holders.machine.genesis.parameters.replication)
        weights = params.weights
        if weights is not None:
            model = await publishing.lane.run(_begun_with, model, weights)
        names = {record.model.name for record in MODELS.scan(ordering.view)}
        if model.name in names | under_way:
            raise RpcError(
                MODEL_EXISTS, f"a model is called {model.name!r}; give another --name"
            )
        under_way.add(model.name)
        try:
            born = await _born(publishing, model, params.seed, weights or "", emit)
            await ordered(ordering, born, emit)
        finally:
            under_way.discard(model.name)
        return created_of(model, born)

    @answers(spec.list_)
    async def models(params: spec.ListModels) -> spec.Models:
        view = ordering.view
        records = sorted(MODELS.scan(view), key=lambda r: ordering.place_of(r.id))
        return spec.Models(
            models=[
                line_of(view, record, len(holders.holder.held(record.id)))
                for record in records
            ]
        )

    @answers(spec.show)
    async def show(params: spec.GetModel) -> spec.Model:
        record = model_called(ordering.view, params.model)
        return model_shown(
            ordering.view,
            record,
            holders.holder.held(record.id),
            holders.of(record.id),
        )


def _model(params: spec.CreateModel, replication: int) -> Model:
    name = check_name(params.preset if params.name is None else params.name)
    try:
        return model_of(params.preset, name, replication)
    except KeyError:
        known = ", ".join(PRESETS)
        hint = nearest(params.preset, PRESETS)
        text = f"no preset is called {params.preset!r}{hint} (there are {known})"
        raise RpcError(PRESET_UNKNOWN, text) from None


async def _born(
    publishing: Publishing, model: Model, seed: int, weights: str, emit: Emit
) -> birth.Born:
    async def report(stage: str, done: int, total: int) -> None:
        await emit(Progress(stage=stage, done=done, total=total, unit="groups"))

    async with scratch(publishing) as work:
        try:
            return await birth.create(
                model,
                seed,
                weights,
                publishing.worker,
                publishing.blobs,
                publishing.lane,
                publishing.chain,
                work,
                report,
            )
        except ComputeFault as error:
            raise Unavailable(f"no weights were made: {error}") from error
        except ProtocolError as error:
            raise RpcError(WEIGHTS_INVALID, f"{weights}: {error}") from error


def _begun_with(model: Model, weights: str) -> Model:
    """Return the model with a note of the packed file that it begins with. Blocking."""
    try:
        _, root = packed.read(weights)
    except OSError as error:
        raise RpcError(WEIGHTS_INVALID, f"{weights}: {error.strerror}") from error
    except ProtocolError as error:
        raise RpcError(WEIGHTS_INVALID, f"{weights}: {error}") from error
    return replace(model, note=f"begins with packed weights {root.hex()}")


async def ordered(ordering: Ordering, born: birth.Born, emit: Emit) -> None:
    """Wait until every group has its weights, so that the caller can go on at once.

    TooSlow when none came within `WEIGHTS_ORDERED_S` of the one before.
    """
    refused = await ordering.wait(born.id, WEIGHTS_ORDERED_S)
    if refused is not None:
        raise Unavailable(f"the network refused the model: {refused}")
    total, done = len(born.layout.groups), -1

    def given() -> int:
        record = MODELS.get(ordering.view, born.id)
        return 0 if record is None else record.weights

    while done < total:
        await ordering.until(lambda: given() > done, WEIGHTS_ORDERED_S)
        done = given()
        await emit(Progress("waiting for a checkpoint", done, total, "groups"))


def created_of(model: Model, born: birth.Born) -> spec.Created:
    """Return a model that was published as declared."""
    elements = sum(group.elements for group in born.layout.groups)
    return spec.Created(
        model_id=born.id,
        name=model.name,
        parameters=elements,
        groups=len(born.layout.groups),
        tiles=sum(len(group.tiles) for group in born.layout.groups),
        bytes=ELEMENT_BYTES * elements,
    )


def line_of(view: View, record: ModelRecord, held: int) -> spec.ModelLine:
    """Return one model of a list as declared."""
    layout = layout_for(record.model)
    return spec.ModelLine(
        name=record.model.name,
        model_id=record.id,
        parameters=sum(group.elements for group in layout.groups),
        layers=record.model.architecture.layers,
        experts=record.model.architecture.experts,
        groups=len(layout.groups),
        groups_held=held,
        round=newest_round(view, record),
        adopted_round=record.adopted_round,
    )


def newest_round(view: View, record: ModelRecord) -> int:
    """Return the newest round that any group's finalised head is at."""
    return max((group.rounds for group in GROUPS.scan(view, record.id)), default=0)


def model_shown(
    view: View,
    record: ModelRecord,
    here: frozenset[int],
    nodes: dict[int, list[Node]],
) -> spec.Model:
    """Return one model as declared."""
    layout = layout_for(record.model)
    shape = record.model.architecture
    elements = sum(group.elements for group in layout.groups)
    rounds = {group.group: group.rounds for group in GROUPS.scan(view, record.id)}
    groups = [
        spec.GroupLine(
            name=group.name,
            tiles=size_of(group).tiles,
            bytes=size_of(group).bytes,
            local=group.index in here,
            holders=len(nodes.get(group.index, [])),
            round=rounds.get(group.index, 0),
            adopted_round=record.adopted_round,
        )
        for group in layout.groups
    ]
    return spec.Model(
        name=record.model.name,
        model_id=record.id,
        account=record.creator,
        note=record.model.note,
        tokenizer=record.model.tokenizer,
        dtype=record.model.dtype.name.lower(),
        replication=record.model.replication,
        parameters=elements,
        active_parameters=active_parameters(shape, layout),
        bytes=ELEMENT_BYTES * elements,
        round=max(rounds.values(), default=0),
        adopted_round=record.adopted_round,
        architecture=architecture_of(shape),
        groups=groups,
    )


def active_parameters(shape: Architecture, layout: Layout) -> int:
    """Return how many numbers one token uses: all but the experts it does not visit."""
    elements = sum(group.elements for group in layout.groups)
    idle = shape.experts - shape.experts_per_token
    return elements - shape.mixture_layers * idle * layout.expert_groups[0].elements


def architecture_of(shape: Architecture) -> spec.Architecture:
    """Return an architecture as declared."""
    return spec.Architecture(
        vocabulary=shape.vocabulary,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_width=shape.head_width,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        expert_width=shape.expert_width,
        context=shape.context,
        tied_embeddings=shape.tied_embeddings,
        rope_base=shape.rope_base,
        rope=None if shape.rope is None else rope_of(shape.rope),
        rms_epsilon_ppb=shape.rms_epsilon_ppb,
        normalise_top_k=shape.normalise_top_k,
        query_key_norm=shape.query_key_norm.name.lower(),
        clip_qkv=shape.clip_qkv_micro / 1e6,
        attention_window=shape.attention_window,
        attention_bias=shape.attention_bias.name.lower(),
        shared_width=shape.shared_width,
        shared_gate=shape.shared_gate,
        dense_layers=list(shape.dense_layers),
        dense_width=shape.dense_width,
    )


def rope_of(rope: RopeScaling) -> spec.RopeScaling:
    """Return the stretching of positions as declared."""
    return spec.RopeScaling(
        kind=rope.kind.name.lower(),
        factor_ppb=rope.factor_ppb,
        original_context=rope.original_context,
        low_ppb=rope.low_ppb,
        high_ppb=rope.high_ppb,
        attention_ppb=rope.attention_ppb,
        whole_pairs=rope.whole_pairs,
    )
