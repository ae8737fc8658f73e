"""Training: start or join a run, stop learning here, look on."""

from __future__ import annotations

from blyan_proto.rpc import auditing, explaining, gating
from blyan_proto.rpc.errors import (
    DATASET_AMBIGUOUS,
    DATASET_UNKNOWN,
    MODEL_AMBIGUOUS,
    MODEL_UNKNOWN,
    PRESET_UNKNOWN,
    RUN_ACTIVE,
    RUN_INVALID,
    RUN_UNKNOWN,
)
from blyan_proto.rpc.parts import DATASET_HELP, MODEL_HELP
from blyan_proto.rpc.spec import Id, Method, arg, declare, record

RUN_HELP = "run block id, hex; default: the newest"
INNER = ("adamw", "muon")  # names of blyan_proto.block.model.Inner


@record
class Start:
    """Start a training run, or join the one under way."""

    model: str | None = arg(MODEL_HELP, default=None)
    dataset: str | None = arg(DATASET_HELP, default=None)
    rounds: int | None = arg("rounds; default: the preset's", default=None, low=1)
    preset: str = arg("where all other numbers come from", default="demo")
    run: Id | None = arg("join exactly this run", default=None)
    codec: list[str] | None = arg(
        "how deltas are sent: [CLASS=]CODEC[@ROUND], as LR4:8, Q:4, "
        "matrix=SC:64/1@20, embedding=ROWS:LR4/16",
        default=None,
        low=1,
        high=16,
    )
    inner_steps: int | None = arg("steps per round", default=None, low=1, high=10_000)
    batch: int | None = arg("sequences per step", default=None, low=1, high=4096)
    sequence: int | None = arg("tokens per sequence", default=None, low=8, high=65_535)
    inner: str | None = arg(
        "what moves matrices in inner steps", default=None, choices=INNER
    )
    inner_rate: float | None = arg("inner learning rate", default=None, low=0, high=1)
    outer_rate: float | None = arg("outer learning rate", default=None, low=0, high=4)
    outer_momentum: float | None = arg("Nesterov mu", default=None, low=0, high=0.999)
    from_residual: bool | None = arg(
        "learners go on from what they could not send yet", default=None
    )
    quorum: float | None = arg(
        "share of the learners that a round waits for", default=None, low=0, high=1
    )
    deadline_s: float | None = arg(
        "patience with a round's primary", default=None, low=0.1, high=3600
    )
    adopt_every: int | None = arg(
        "rounds between adoptions; 0: only the last", default=None, low=0, high=10_000
    )
    snapshot_every: int | None = arg(
        "rounds between snapshots, of which every holder keeps two; 0: by need",
        default=None,
        low=0,
        high=10_000,
    )
    seed: int | None = arg("seed of the run", default=None, low=0, high=2**63)
    gate: int | None = arg(
        "validators drawn to judge a version before it is adopted; 0: by schedule",
        default=None,
        low=0,
        high=64,
    )
    gate_margin: float | None = arg(
        "by which loss may rise at the gate, nats per token; 0: it has to fall",
        default=None,
        low=0,
        high=16,
    )
    gate_windows: int | None = arg(
        "held-out sequences that are drawn for the gate",
        default=None,
        low=2,
        high=65_535,
    )


@record
class Started:
    """A run that this node takes part in."""

    run: Id = arg("run block id")
    created: bool = arg("this call created it; false: joined")
    model: str = arg("model name")
    model_id: Id = arg("model block id")
    dataset: str = arg("dataset name")
    rounds: int = arg("rounds in all")
    round: int = arg("newest round closed")


start = declare(
    Method(
        "train.start",
        Start,
        Started,
        errors=(
            MODEL_UNKNOWN,
            MODEL_AMBIGUOUS,
            DATASET_UNKNOWN,
            DATASET_AMBIGUOUS,
            PRESET_UNKNOWN,
            RUN_ACTIVE,
            RUN_INVALID,
            RUN_UNKNOWN,
        ),
    )
)


@record
class StopLearning:
    """Stop learning on this node; the run goes on elsewhere."""


@record
class Stopped:
    """This node does not learn any more."""

    run: Id | None = arg("run it took part in; null: it was not learning")
    round: int = arg("newest round closed")


stop = declare(Method("train.stop", StopLearning, Stopped))


@record
class GetProgress:
    """Tell where the run stands and what this node does in it."""


@record
class ExpertUse:
    """How much one expert was used in this node's newest round."""

    expert: str = arg("group name")
    tokens: int = arg("tokens that the router sent to it")
    share: float = arg("of its layer's experts on this node, 0 to 1")


@record
class LayerUse:
    """How evenly a layer's experts were used in this node's newest round."""

    layer: int = arg("layer, from 0")
    experts: int = arg("experts of the layer that this node trains")
    entropy: float = arg("of their shares, 1: all alike; 0: one takes all")


@record
class Learning:
    """Where training stands."""

    state: str = arg("off, waiting, learning, paused or finished")
    reason: str = arg("why, in a sentence")
    run: Id | None = arg("run block id; null: none")
    model: str | None = arg("model name")
    round: int = arg("newest round closed")
    finalised_round: int = arg("newest round that a checkpoint has finalised")
    rounds: int = arg("rounds in all; 0: no run")
    inner: str | None = arg("what moves matrices in inner steps; null: no run")
    tokens: int = arg("tokens this node has learnt from in this run")
    train_loss: float | None = arg("of this node's newest round, nats per token")
    held_out_loss: float | None = arg("newest held-out loss, nats per token")
    learners: int = arg("learners of the round under way")
    primary_of: list[str] = arg("groups whose primary this node is now")
    region: str | None = arg("where this node stands in the round; null: unknown")
    edge_of: list[str] = arg("groups whose deltas it carries for its region now")
    within_bytes: int = arg("of deltas and blobs, to and from its region, since start")
    between_bytes: int = arg("to and from other regions")
    single: int = arg("groups whose final version nobody but its author recomputed")
    disputed: int = arg("disputes about this run's updates that have no verdict")
    utilisation: float | None = arg(
        "of the newest rounds' time, what this node spent in inner steps; null: none yet"
    )
    layers: list[LayerUse] = arg("experts' use by layer, newest round trained here")
    experts: list[ExpertUse] = arg("experts' use, newest round trained here")


status = declare(Method("train.status", GetProgress, Learning, public=True))


@record
class Watch:
    """Follow a run, one row per round, until it ends; on a terminal, as a dashboard."""

    run: Id | None = arg(RUN_HELP, default=None)
    live: bool = arg("also tell of the round under way, as it goes", default=False)


@record
class Baselines:
    """What simple models reach on the same held-out text, nats per byte."""

    unigram: float = arg("byte frequencies")
    bigram: float = arg("the byte before")
    trigram: float = arg("the two bytes before")
    lzma: float = arg("xz at its strongest")


@record
class PrimaryCount:
    """How many groups one peer was primary of."""

    peer_id: str = arg("libp2p peer id")
    groups: int = arg("groups whose update it published")


@record
class LearnerPart:
    """What one learner had in a round, counted over groups."""

    peer_id: str = arg("libp2p peer id")
    tokens: int = arg("tokens that updates count for it")
    listed: int = arg("its deltas that updates list")
    missed: int = arg("groups of all learners whose update came out without it")
    clipped: int = arg("its listed deltas that were clipped")


@record
class Takeover:
    """A group whose update came from another rank than its primary."""

    group: str = arg("group name")
    rank: int = arg("1 or 2: how many before it had let it pass")
    peer_id: str = arg("who published it")


@record
class UnderWay:
    """What this node does in the round under way."""

    doing: str = arg("in a sentence")
    step: int | None = arg("inner steps done; null: it does not train now")
    steps: int | None = arg("inner steps in all")
    within_bytes: int = arg("of deltas and blobs, to and from its region, since start")
    between_bytes: int = arg("to and from other regions")


@record
class RoundReport:
    """One closed round. Round 0 is the state before the first and carries baselines.

    With `live` also the round under way: what of it is known so far.
    """

    round: int = arg("round, from 1; 0: before the first")
    rounds: int = arg("rounds in all")
    train_loss: float | None = arg("mean loss of this node's steps, nats per token")
    held_out_loss: float | None = arg("nats per token; null where not evaluated")
    tokens: int = arg("tokens learnt from in this round, all learners")
    bytes_up: int = arg("bytes of deltas this node sent in this round")
    bytes_down: int = arg("bytes of deltas this node received in this round")
    compression_ratio: float | None = arg("float32 bytes over delta bytes")
    primaries: list[PrimaryCount] = arg("who published this round's updates")
    contributions: int = arg("deltas accepted, all groups")
    blocks: int = arg("update blocks of this round")
    peers: int = arg("peers connected")
    seconds: float = arg("how long the round took")
    baselines: Baselines | None = arg("in the first item of a stream; else null")
    run: Id = arg("run block id")
    learners: int = arg("learners that had a seat in the round")
    parts: list[LearnerPart] = arg(
        "what they had in it; of more than 64, those that missed or learnt most"
    )
    takeovers: list[Takeover] = arg("updates that another rank published")
    tokens_per_s: float | None = arg("tokens of all learners over the round's time")
    under_way: UnderWay | None = arg("null: the round is closed")


@record
class Watched:
    """How the run ended."""

    run: Id = arg("run block id")
    outcome: str = arg("finished or stopped")
    round: int = arg("newest round closed")
    rounds: int = arg("rounds in all")
    tokens: int = arg("tokens learnt from, all rounds and learners")
    first_held_out_loss: float | None = arg("before the first round, nats per token")
    held_out_loss: float | None = arg("after the last round, nats per token")
    seconds: float = arg("how long it was watched")


watch = declare(
    Method(
        "train.watch",
        Watch,
        Watched,
        errors=(RUN_UNKNOWN,),
        streams=RoundReport,
        public=True,
        deadline_s=None,
    )
)

audit = auditing.audit
explain = explaining.explain
gate = gating.gate


@record
class GetReport:
    """Report a whole run: every round, who took part, its settings; as an HTML page."""

    run: Id | None = arg(RUN_HELP, default=None)


@record
class LearnerTotal:
    """What one learner had in a run, counted over rounds and groups."""

    peer_id: str = arg("libp2p peer id")
    rounds: int = arg("rounds in which updates list a delta of it")
    tokens: int = arg("tokens that updates count for it")
    listed: int = arg("its deltas that updates list")
    missed: int = arg("groups of all learners whose update came out without it")
    clipped: int = arg("its listed deltas that were clipped")
    primary_of: int = arg("updates that it published")
    takeovers: int = arg("of them, those as another rank than the first")


@record
class RunSetting:
    """One number that the run prescribes."""

    name: str = arg("as the run block calls it")
    value: str = arg("as it stands there")


@record
class Reported:
    """A run, as this node saw it."""

    run: Id = arg("run block id")
    model: str = arg("model name")
    dataset: str = arg("dataset name; of several the first")
    outcome: str = arg("open, finished, or why it ended early")
    round: int = arg("newest round closed")
    rounds: int = arg("rounds in all")
    tokens: int = arg("tokens learnt from, all learners")
    seconds: float = arg("of all rounds together")
    bytes_up: int = arg("bytes of deltas that this node sent")
    bytes_down: int = arg("bytes of deltas that this node received")
    compression_ratio: float | None = arg("float32 bytes over delta bytes")
    first_held_out_loss: float | None = arg("before the first round, nats per token")
    held_out_loss: float | None = arg("newest, nats per token")
    baselines: Baselines | None = arg("what simple models reach; null: not known here")
    peer_id: str = arg("this node")
    made_ms: int = arg("when this was made, Unix time")
    learners: list[LearnerTotal] = arg("by tokens, most first")
    settings: list[RunSetting] = arg("all numbers of the run")
    every: int = arg("of so many rounds one is in the history; 1: all of them")
    history: list[RoundReport] = arg("closed rounds that this node saw, oldest first")


report = declare(
    Method(
        "train.report",
        GetReport,
        Reported,
        errors=(RUN_UNKNOWN,),
        public=True,
    )
)
