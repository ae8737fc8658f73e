"""Inference: generate text through the network, and measure how good the model is."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    DATASET_AMBIGUOUS,
    DATASET_UNKNOWN,
    MODEL_AMBIGUOUS,
    MODEL_UNKNOWN,
    PROMPT_INVALID,
    PROMPT_TOO_LONG,
)
from blyan_proto.rpc.parts import DATASET_HELP, MODEL_HELP
from blyan_proto.rpc.spec import LONG_DEADLINE_S, Id, Method, arg, declare, record


@record
class Generate:
    """Continue a prompt, token by token."""

    prompt: str | None = arg("text to continue", default=None, positional=True)
    token_ids: list[int] | None = arg(
        "token ids to continue, in place of a prompt", default=None, low=1
    )
    model: str | None = arg(MODEL_HELP, default=None)
    max_tokens: int = arg("most tokens to make", default=64, low=1, high=65_536)
    temperature: float = arg(
        "0: always the likeliest token", default=0.0, low=0, high=10
    )
    seed: int = arg("seed of the draws", default=0, low=0, high=2**63)
    stop: list[str] | None = arg(
        "texts that end it; not part of the result", default=None, low=1, high=16
    )


@record
class Token:
    """One token as it is made."""

    text: str = arg("text that it completes; empty in the middle of a character")
    token_id: int = arg("token id")
    position: int = arg("place in the whole sequence, from 0")


@record
class Timings:
    """How long it took."""

    time_to_first_token_s: float | None = arg("null when no token was made")
    tokens_per_s: float | None = arg("after the first token; null below two tokens")
    total_s: float = arg("from request to result")


@record
class PeerCalls:
    """What one peer did for this request."""

    peer_id: str = arg("libp2p peer id; this node's own for local work")
    calls: int = arg("expert calls answered")


@record
class Generated:
    """The continuation."""

    text: str = arg("text of the new tokens")
    token_ids: list[int] = arg("the new tokens")
    prompt_tokens: int = arg("tokens of the prompt")
    finish_reason: str = arg("length, stop or end")
    timings: Timings = arg("how long it took")
    peers: list[PeerCalls] = arg("who answered expert calls")
    checkpoint: Id = arg("finalised checkpoint whose versions answered")
    retries: int = arg("calls sent again to another peer")
    repinned: int = arg("times it began again at a newer checkpoint")


generate = declare(
    Method(
        "infer.generate",
        Generate,
        Generated,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS, PROMPT_INVALID, PROMPT_TOO_LONG),
        streams=Token,
        deadline_s=LONG_DEADLINE_S,
    )
)


@record
class Evaluate:
    """Measure the held-out loss of the adopted versions through the serving path."""

    dataset: str | None = arg(DATASET_HELP, default=None)
    model: str | None = arg(MODEL_HELP, default=None)
    tokens: int = arg(
        "held-out tokens to measure; 0: all", default=16_384, low=0, high=2**40
    )


@record
class Evaluation:
    """How well the model predicts text it was never trained on."""

    loss: float = arg("nats per token")
    tokens: int = arg("tokens measured")
    dataset: str = arg("dataset name")
    checkpoint: Id = arg("finalised checkpoint whose versions answered")
    adopted_round: int = arg("round of these versions")
    total_s: float = arg("how long it took")


evaluate = declare(
    Method(
        "infer.evaluate",
        Evaluate,
        Evaluation,
        errors=(MODEL_UNKNOWN, MODEL_AMBIGUOUS, DATASET_UNKNOWN, DATASET_AMBIGUOUS),
        deadline_s=LONG_DEADLINE_S,
    )
)
