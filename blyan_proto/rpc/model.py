"""Models: create one, list them, show one."""

from __future__ import annotations

from blyan_proto.rpc import packing, planning
from blyan_proto.rpc.errors import (
    CHECKPOINT_INVALID,
    EXPORT_REFUSED,
    MODEL_AMBIGUOUS,
    MODEL_EXISTS,
    MODEL_UNKNOWN,
    PRESET_UNKNOWN,
    WEIGHTS_INVALID,
)
from blyan_proto.rpc.parts import MODEL_HELP, Progress
from blyan_proto.rpc.spec import (
    LONG_DEADLINE_S,
    Address,
    Id,
    Method,
    arg,
    declare,
    record,
)


@record
class CreateModel:
    """Create a model with random or with packed weights and publish it."""

    preset: str = arg(
        "size of the model: tiny, demo, …", default="demo", positional=True
    )
    name: str | None = arg("its name; default: the preset's", default=None)
    seed: int = arg("seed of its first weights", default=0, low=0, high=2**63)
    weights: str | None = arg(
        "file of first weights, as `model pack` writes it; default: random ones",
        default=None,
        path=True,
    )


@record
class Created:
    """A model that is published."""

    model_id: Id = arg("model block id")
    name: str = arg("model name")
    parameters: int = arg("numbers in it")
    groups: int = arg("groups: trunks, routers, experts, embeddings")
    tiles: int = arg("tiles in all groups")
    bytes: int = arg("bytes of its float32 weights")


create = declare(
    Method(
        "model.create",
        CreateModel,
        Created,
        errors=(PRESET_UNKNOWN, MODEL_EXISTS, WEIGHTS_INVALID),
        streams=Progress,
        deadline_s=LONG_DEADLINE_S,
    )
)


@record
class ImportModel:
    """Publish a Hugging Face checkpoint of safetensors; goes on where it was stopped."""

    directory: str = arg(
        "folder on the daemon's machine, with config.json and tokenizer.json",
        positional=True,
        path=True,
    )
    name: str | None = arg("its name; default: the folder's", default=None)


@record
class Imported:
    """A checkpoint that is published."""

    model: Id = arg("model block id, as infer.generate takes it")
    name: str = arg("model name")
    family: str = arg("model_type of its config.json")
    dtype: str = arg("element type of most of its weights: f32, f16 or bf16")
    parameters: int = arg("numbers in it")
    groups: int = arg("groups: trunks, routers, experts, embeddings")
    tiles: int = arg("tiles in all groups")
    bytes: int = arg("bytes of its weights as stored")


import_ = declare(
    Method(
        "model.import",
        ImportModel,
        Imported,
        errors=(MODEL_EXISTS, CHECKPOINT_INVALID),
        streams=Progress,
        deadline_s=None,
    )
)


@record
class ExportModel:
    """Write a model's adopted weights as a Hugging Face checkpoint of safetensors."""

    model: str = arg("model name or block id", positional=True)
    directory: str = arg(
        "new or empty folder on the daemon's machine", positional=True, path=True
    )
    dtype: str | None = arg(
        "element type of all tensors; default: as imported, f32 once trained",
        default=None,
        choices=("f32", "f16", "bf16"),
    )
    shard_mib: int = arg("most MiB in one file", default=4096, low=1, high=1 << 30)


@record
class Exported:
    """A model that was written."""

    model: Id = arg("model block id")
    directory: str = arg("where it is")
    files: int = arg("files written")
    tensors: int = arg("tensors in them")
    bytes: int = arg("bytes of all tensors")
    round: int = arg("round of these weights")


export = declare(
    Method(
        "model.export",
        ExportModel,
        Exported,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS, EXPORT_REFUSED),
        streams=Progress,
        deadline_s=None,
    )
)


@record
class ListModels:
    """List the models of this network."""


@record
class ModelLine:
    """One model in a list."""

    name: str = arg("model name")
    model_id: Id = arg("model block id")
    parameters: int = arg("numbers in it")
    layers: int = arg("layers")
    experts: int = arg("experts per layer")
    groups: int = arg("groups in all")
    groups_held: int = arg("groups this node holds")
    round: int = arg("newest round trained")
    adopted_round: int = arg("round that inference answers with")


@record
class Models:
    """The models of this network."""

    models: list[ModelLine] = arg("models, oldest first")


list_ = declare(Method("model.list", ListModels, Models, public=True))


@record
class GetModel:
    """Show one model."""

    model: str | None = arg(MODEL_HELP, default=None, positional=True)


@record
class RopeScaling:
    """How rotary positions are stretched to a longer context."""

    kind: str = arg("linear, llama3 or yarn")
    factor_ppb: int = arg("of stretching, parts per billion")
    original_context: int = arg("tokens before the stretching; 0 for linear")
    low_ppb: int = arg("llama3: low frequency factor; yarn: slow beta; else 0")
    high_ppb: int = arg("llama3: high frequency factor; yarn: fast beta; else 0")
    attention_ppb: int = arg("yarn: on cosines and sines; 0: from the factor")
    whole_pairs: bool = arg("yarn: the ramp begins and ends at whole pairs")


@record
class Architecture:
    """Shape of the decoder."""

    vocabulary: int = arg("token ids")
    layers: int = arg("layers")
    width: int = arg("model dimension")
    heads: int = arg("query heads")
    kv_heads: int = arg("key and value heads")
    head_width: int = arg("dimension of one head")
    experts: int = arg("experts per layer")
    experts_per_token: int = arg("experts that one token visits per layer")
    expert_width: int = arg("hidden width of one expert")
    context: int = arg("longest sequence, tokens")
    tied_embeddings: bool = arg("head and embedding are one matrix")
    rope_base: int = arg("base of rotary positions")
    rope: RopeScaling | None = arg("stretching of rotary positions, if any")
    rms_epsilon_ppb: int = arg("added under the root of every norm, parts per billion")
    normalise_top_k: bool = arg("the weights of a token's experts add up to 1")
    query_key_norm: str = arg("none, head (each on its own) or width (across heads)")
    clip_qkv: float = arg("bound on queries, keys and values; 0: none")
    attention_window: int = arg("tokens that a token sees, itself included; 0: all")
    attention_bias: str = arg("which projections add a bias: none, qkv or all")
    shared_width: int = arg("hidden width of the expert of every token; 0: none")
    shared_gate: bool = arg("the shared expert's output is times a sigmoid")
    dense_layers: list[int] = arg("layers with one MLP instead of experts")
    dense_width: int = arg("hidden width of those; 0 where there are none")


@record
class GroupLine:
    """One group of a model."""

    name: str = arg("group name, as layer0.trunk")
    tiles: int = arg("tiles it is cut into")
    bytes: int = arg("bytes of its float32 weights")
    local: bool = arg("this node holds it")
    holders: int = arg("live holders known, this node included")
    round: int = arg("round of its trained head")
    adopted_round: int = arg("round that inference answers with")


@record
class Model:
    """One model."""

    name: str = arg("model name")
    model_id: Id = arg("model block id")
    account: Address = arg("who published it")
    note: str = arg("what its author wrote")
    tokenizer: str = arg("bytes, or the digest of a tokenizer")
    dtype: str = arg("element type of its first weights: f32, f16 or bf16")
    replication: int = arg("holders wanted per expert")
    parameters: int = arg("numbers in it")
    active_parameters: int = arg("numbers that one token uses")
    bytes: int = arg("bytes of its float32 weights")
    round: int = arg("newest round trained")
    adopted_round: int = arg("round that inference answers with")
    architecture: Architecture = arg("shape of the decoder")
    groups: list[GroupLine] = arg("its groups, in layout order")


show = declare(
    Method(
        "model.show",
        GetModel,
        Model,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        public=True,
    )
)

plan = planning.plan
pack = packing.pack
