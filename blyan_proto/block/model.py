"""Payloads of a model's life: chain A (model, run, adoption, placement) and B (weights,
tile updates, snapshots). docs/block-format.md section 4."""

from __future__ import annotations

import enum
import re
from typing import Annotated

from blyan_proto.block.gate import Gate
from blyan_proto.codec import U8, U16, U32, U64, Size, encode, message
from blyan_proto.constants import (
    MAX_CONTRIBUTIONS,
    MAX_DENSE_LAYERS,
    MAX_TILES_PER_GROUP,
    MAX_TRAINED_TILES,
    RANKS,
)
from blyan_proto.digest import Domain, digest
from blyan_proto.types import (
    Account,
    BlobId,
    BlockId,
    Hash,
    Name,
    PublicKey,
    Signature,
    Text,
)

_ROOT = re.compile("[0-9a-f]{64}")


class Dtype(enum.IntEnum):
    """Element types of a TBLOCK; codes are those of its header."""

    F16 = 1
    I8 = 2
    F8 = 3
    F32 = 4
    BF16 = 5
    U8 = 6  # plain bytes: deltas, datasets

    @property
    def bytes(self) -> int:
        return {1: 2, 2: 1, 3: 1, 4: 4, 5: 2, 6: 1}[self.value]


class TensorClass(enum.IntEnum):
    """Classes of tensors that a run treats alike (DEC-B7)."""

    MATRIX = 0
    VECTOR = 1  # norms and biases, one tile per layer
    ROUTER = 2
    EMBEDDING = 3


class QueryKeyNorm(enum.IntEnum):
    """RMSNorm of queries and keys before RoPE."""

    NONE = 0
    HEAD = 1  # each head on its own (Qwen3-MoE)
    WIDTH = 2  # across all heads (OLMoE)


class BiasKind(enum.IntEnum):
    """Which projections of attention add a bias."""

    NONE = 0
    QKV = 1  # queries, keys and values (Qwen2-MoE)
    ALL = 2  # and the output


class RopeKind(enum.IntEnum):
    """How the rates of rotary positions are stretched to a longer context."""

    LINEAR = 1  # all by the factor
    LLAMA3 = 2  # by wavelength
    YARN = 3  # by turns within the original context


@message
class RopeScaling:
    """The stretching of rotary positions; what a kind does not use is 0."""

    kind: RopeKind
    factor_ppb: U64
    original_context: U32 = 0  # LLAMA3, YARN: tokens
    low_ppb: U64 = 0  # LLAMA3: low frequency factor; YARN: slow beta, in turns
    high_ppb: U64 = 0  # LLAMA3: high frequency factor; YARN: fast beta, in turns
    attention_ppb: U64 = 0  # YARN: on cosines and sines; 0: 0.1 ln(factor) + 1
    whole_pairs: bool = True  # YARN: the ramp begins and ends at whole pairs


@message
class Architecture:
    """Shape of an open MoE decoder: RMSNorm, RoPE, GQA, SwiGLU experts, top-k router."""

    vocabulary: U32
    layers: U16
    width: U32  # d, the model dimension
    heads: U16
    kv_heads: U16
    head_width: U16
    experts: U16  # per layer
    experts_per_token: U8  # top-k
    expert_width: U32  # h, the hidden width of one expert
    rope_base: U32
    rms_epsilon_ppb: U32  # parts per billion
    normalise_top_k: bool
    tied_embeddings: bool
    context: U32  # longest sequence, tokens
    query_key_norm: QueryKeyNorm = QueryKeyNorm.NONE
    shared_width: U32 = 0  # hidden width of an expert that every token passes; 0: none
    clip_qkv_micro: U32 = 0  # bound on queries, keys and values, micro; 0: none
    attention_window: U32 = 0  # tokens that a token sees, itself included; 0: all
    attention_bias: BiasKind = BiasKind.NONE
    # Layers with one SwiGLU of width dense_width instead of router and experts, ascending.
    dense_layers: Annotated[tuple[U16, ...], Size(0, MAX_DENSE_LAYERS)] = ()
    dense_width: U32 = 0
    shared_gate: bool = False  # the shared expert's output is times a sigmoid
    rope: RopeScaling | None = None

    @property
    def mixture_layers(self) -> int:
        """Number of layers that have a router and experts."""
        return self.layers - len(self.dense_layers)


@message
class Model:
    """Chain A: a model is born. The layout of its tiles follows from this block alone."""

    version: U8
    name: Name
    architecture: Architecture
    tokenizer: Name  # "bytes" or the digest of a tokenizer, hex
    dtype: Dtype
    replication: U8  # holders per expert group
    note: Text

    @property
    def companions(self) -> bytes | None:
        """Root of the blob with the files that came with it; None for "bytes"."""
        is_root = _ROOT.fullmatch(self.tokenizer) is not None
        return bytes.fromhex(self.tokenizer) if is_root else None


@message
class Placement:
    """Chain A: change how a model's groups are spread."""

    version: U8
    model: BlockId
    replication: U8
    expert_limit: U16  # most expert groups per node, 0 for none


class Codec(enum.IntEnum):
    """Delta codecs by wire code; blyan_tile.compress holds the table."""

    NONE = 0
    DENSE = 1
    LR4 = 2
    SC = 3
    Q = 4
    ROWS = 5
    LRC = 6


@message
class CodecChoice:
    """The codec of one tensor class, from one round on."""

    tensor_class: TensorClass
    from_round: U32
    codec: Codec
    setting: U16  # blyan_proto.block.sending


class Aggregation(enum.IntEnum):
    """How accepted deltas become one gradient."""

    SUM = 0  # the exact weighted sum (DEC-B1, B5)


class Inner(enum.IntEnum):
    """What moves the matrices inside the layers in inner steps; AdamW moves the rest."""

    ADAMW = 0
    MUON = 1  # along U V^T of their momentum


@message
class RateStep:
    """Inner learning rate from one round on; between steps it is constant."""

    from_round: U32
    rate_ppb: U64  # parts per billion


@message
class Run:
    """Chain A: the only home of a training run's hyperparameters (DEC-B7)."""

    version: U8
    model: BlockId
    datasets: Annotated[tuple[BlockId, ...], Size(1, 16)]
    held_out_ppm: U32  # share of files kept aside, by hash of path
    rounds: U32
    inner_steps: U16  # H
    batch: U16  # sequences per inner step
    sequence: U16  # tokens per sequence
    inner_rate: Annotated[tuple[RateStep, ...], Size(1, 64)]
    beta1_ppm: U32
    beta2_ppm: U32
    decay_ppm: U32
    clip_ppm: U32  # gradient norm, 10^6 = 1.0
    auxiliary_ppm: U32
    codecs: Annotated[tuple[CodecChoice, ...], Size(1, 64)]
    feedback_ppm: U32  # error feedback beta
    outer_rate_ppm: U32
    outer_momentum_ppm: U32  # Nesterov mu; 0: no outer state
    delta_clip_ppm: U32  # largest norm over the group's median (DEC-B15); 0: off
    quorum_ppm: U32  # share of the expected contributors
    deadline_ms: U32  # a rank that has not published by then is passed over
    grace_ms: U32  # wait after quorum for the rest
    min_tokens: U32  # an expert that saw fewer sends nothing (DEC-B13)
    rotation: U16  # rounds between rotations of held sets; 0: off
    adopt_every: U16  # rounds between automatic adoptions; 0: only the last round
    snapshot_every: U16
    rounds_ahead: U8  # K (DEC-A6)
    seed: U64
    first_checkpoint: U64 = 0  # round 0 opens at this height; 0: as soon as ordered
    aggregation: Aggregation = Aggregation.SUM
    from_residual: bool = False  # inner steps start at base - e, not at the base
    gate: Gate | None = None  # none: heads are adopted by schedule, unjudged
    inner: Inner = Inner.ADAMW


@message
class Adoption:
    """Chain A: the heads of `round` become what inference answers with (DEC-B8)."""

    version: U8
    model: BlockId
    run: BlockId
    round: U32
    heads_root: Hash  # over every group's result roots, in group order
    score_before_micro: U64  # micro-nats per token on the held-out split; 0: not judged
    score_after_micro: U64


@message
class TileRoots:
    """Roots of one tile's state: float32 weights and outer momentum (DEC-B2)."""

    weights: BlobId
    momentum: BlobId | None  # none where the run has no outer momentum


TileRootsList = Annotated[tuple[TileRoots, ...], Size(1, MAX_TILES_PER_GROUP)]
TrainedRootsList = Annotated[tuple[TileRoots, ...], Size(1, MAX_TRAINED_TILES)]


@message
class Weights:
    """Chain B: the first version of one group: trunk, router, expert or embeddings."""

    version: U8
    model: BlockId
    group: U16
    tiles: TileRootsList  # in the layout's order

    def __post_init__(self) -> None:
        if any(tile.momentum is not None for tile in self.tiles):
            raise ValueError("first weights have no momentum")


@message
class Contribution:
    """One accepted delta (DEC-B5): who, what, and its integer weight."""

    learner: Account
    delta: Hash  # digest of the delta's bytes
    offset: U64  # where it stands in the update's blob: after the one before
    bytes: U32
    tokens: U32
    weight_ppm: U32  # share in the sum, before the clip
    clip_ppm: U32  # factor on the delta; 10^6: not clipped
    norm: U64 = 0  # of the group's delta, in 2^-24; 0: the run does not clip (DEC-B15)


@message
class UpdateClaim:
    """What the ranks of a group sign about a tile update (DEC-A5); purpose "tile update".

    It binds everything that makes the result recomputable, so that nobody can be blamed
    for a sum that it did not sign, and is small, so that two of them are evidence.
    Nobody signs two different claims of one (run, group, round, epoch, rank).
    """

    version: U8
    model: BlockId
    run: BlockId
    group: U16
    round: U32
    lease_epoch: U32
    rank: U8
    parent: BlockId
    base: Hash  # digest of the base's roots
    contributions: Hash  # digest of the contribution list
    result: Hash  # digest of the result's roots
    blob: BlobId | None


@message
class Cosignature:
    """One rank's signature over the claim."""

    signer: PublicKey
    signature: Signature


@message
class SignedClaim:
    """A claim with one rank's signature: what evidence of a double head carries."""

    claim: UpdateClaim
    cosignature: Cosignature


@message
class TileUpdate:
    """Chain B: one group moves from round to round (DEC-B6)."""

    version: U8
    model: BlockId
    run: BlockId
    group: U16
    round: U32
    lease_epoch: U32
    rank: U8  # 0 is the primary
    parent: BlockId  # the update or weights block that made the base
    base: TrainedRootsList
    contributions: Annotated[tuple[Contribution, ...], Size(0, MAX_CONTRIBUTIONS)]
    result: TrainedRootsList
    blob: BlobId | None  # the accepted deltas, one after the other; none without any
    cosignatures: Annotated[tuple[Cosignature, ...], Size(1, RANKS)]  # author's first
    median: U64 = 0  # the group's running median norm after it; 0: none yet, or no clip

    def __post_init__(self) -> None:
        if len(self.base) != len(self.result):
            raise ValueError("base and result differ in their number of tiles")
        if (self.blob is None) != (not self.contributions):
            raise ValueError("a blob goes with contributions, and only with them")
        order = [(part.learner, part.delta) for part in self.contributions]
        if any(left >= right for left, right in zip(order, order[1:])):
            raise ValueError("contributions are not ascending by learner and delta")
        offset = 0
        for part in self.contributions:
            if part.offset != offset:
                raise ValueError("deltas do not stand one after the other in the blob")
            offset += part.bytes

    @property
    def claim(self) -> UpdateClaim:
        """The statement under the cosignatures."""
        return UpdateClaim(
            version=self.version,
            model=self.model,
            run=self.run,
            group=self.group,
            round=self.round,
            lease_epoch=self.lease_epoch,
            rank=self.rank,
            parent=self.parent,
            base=claim_digest(self.base),
            contributions=claim_digest(self.contributions),
            result=claim_digest(self.result),
            blob=self.blob,
        )


def claim_digest(items: tuple[TileRoots, ...] | tuple[Contribution, ...]) -> bytes:
    """Return the digest by which a claim names a list of an update."""
    return digest(Domain.CLAIM, *(encode(item) for item in items))


@message
class Snapshot:
    """Chain B: a version whose tiles holders keep as durable blobs (DEC-B3, B9)."""

    version: U8
    model: BlockId
    group: U16
    update: BlockId  # the update or weights block that made it
    round: U32
    tiles: TrainedRootsList
