"""Inference: generate text through the network, and measure how good the model is."""

from __future__ import annotations

from typing import Any

from blyan_proto.rpc.errors import (
    DATASET_AMBIGUOUS,
    DATASET_UNKNOWN,
    MODEL_AMBIGUOUS,
    MODEL_UNKNOWN,
    PROMPT_INVALID,
    PROMPT_TOO_LONG,
    REQUEST_INVALID,
    REQUEST_UNKNOWN,
)
from blyan_proto.rpc.parts import DATASET_HELP, MODEL_HELP
from blyan_proto.rpc.spec import LONG_DEADLINE_S, Id, Method, arg, declare, record

NUMERICS = ("reference", "bf16", "int8", "int4")
ROUTES = ("auto", "spans", "experts", "local")
MAX_TOP = 20  # likeliest tokens told for each token


@record
class Generate:
    """Continue a prompt, token by token."""

    prompt: str | None = arg("text to continue", default=None, positional=True)
    token_ids: list[int] | None = arg(
        "token ids to continue, in place of a prompt", default=None, low=1
    )
    special: bool = arg(
        "texts in the prompt that spell special tokens become those", default=False
    )
    model: str | None = arg(MODEL_HELP, default=None)
    max_tokens: int = arg("most tokens to make", default=64, low=1, high=65_536)
    temperature: float = arg(
        "0: always the likeliest token", default=0.0, low=0, high=10
    )
    seed: int = arg("seed of the draws", default=0, low=0, high=2**63)
    top_k: int = arg("draw of so many likeliest; 0: of all", default=0, low=0)
    top_p: float = arg(
        "draw of the likeliest that make up this part", default=1.0, low=0, high=1
    )
    min_p: float = arg(
        "draw of those at least this part of the likeliest", default=0.0, low=0, high=1
    )
    presence_penalty: float = arg(
        "off the logit of a token made before", default=0.0, low=-2, high=2
    )
    frequency_penalty: float = arg(
        "off the logit of a token, each time it was made", default=0.0, low=-2, high=2
    )
    repetition_penalty: float = arg(
        "divides the logits of tokens in prompt and answer; 1: none",
        default=1.0,
        low=0.01,
        high=100,
    )
    logit_bias: dict[str, Any] | None = arg(
        "token id -> what to add to its logit, -100 to 100, as '{\"13\": -100}'",
        default=None,
    )
    stop: list[str] | None = arg(
        "texts that end it; not part of the result", default=None, low=1, high=16
    )
    stop_token_ids: list[int] | None = arg(
        "token ids that end it", default=None, low=1, high=64
    )
    ignore_eos: bool = arg("go on where the model would end", default=False)
    logprobs: int | None = arg(
        "tell so many likeliest tokens with each", default=None, low=0, high=MAX_TOP
    )
    schema: dict[str, Any] | None = arg(
        "JSON Schema that the answer fits, unless it ends for its length; the schema "
        "itself, no file",
        default=None,
    )
    numerics: str | None = arg(
        "how to compute; default: as the node is configured",
        default=None,
        choices=NUMERICS,
    )
    route: str = arg(
        "who may compute: auto (the shortest path), spans (whole layers at peers, "
        "wherever offered), experts (no spans), local (this node only)",
        default="auto",
        choices=ROUTES,
    )
    lookup: int | None = arg(
        "tokens to guess at once, at most; default: as the node is configured",
        default=None,
        low=0,
        high=7,
    )
    request: str | None = arg(
        "a name for infer.cancel; default: one is made up", default=None
    )


@record
class Chance:
    """How likely a token was."""

    token_id: int = arg("token id")
    text: str = arg("its text, U+FFFD for a part of a character")
    logprob: float = arg("natural logarithm of its probability")


@record
class Token:
    """One token as it is made."""

    text: str = arg("text that it completes; empty in the middle of a character")
    token_id: int = arg("token id")
    position: int = arg("place in the whole sequence, from 0")
    logprob: float = arg("logarithm of its probability, as the model gives it")
    top: list[Chance] = arg("the likeliest tokens there, as many as were asked for")
    cost_micro: int = arg("micro-BLY so far, at the network's price of a token")
    tokens_per_s: float | None = arg("so far, after the first token")
    request: str = arg("the name by which infer.cancel ends it")


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
    failed: int = arg("expert calls refused, broken or late")
    wrong: int = arg("of these: answers that cannot be right")


@record
class Generated:
    """The continuation."""

    text: str = arg("text of the new tokens")
    token_ids: list[int] = arg("the new tokens")
    logprobs: list[float] = arg("of the new tokens")
    prompt_tokens: int = arg("tokens of the prompt")
    finish_reason: str = arg(
        "length (max_tokens or the context), stop (a stop text or token), "
        "end (the model's own) or cancelled"
    )
    cost_micro: int = arg("micro-BLY, at the network's price of a token")
    timings: Timings = arg("how long it took")
    peers: list[PeerCalls] = arg("who answered expert calls")
    checkpoint: Id = arg("finalised checkpoint whose versions answered")
    retries: int = arg("calls sent again to another peer")
    hedges: int = arg("calls sent to a second peer, too, because the first was late")
    repinned: int = arg("times it began again at a newer checkpoint")
    drafted: int = arg("tokens guessed from what followed before")
    accepted: int = arg("of these: guessed right, made without a step of their own")
    request: str = arg("the name by which it could be cancelled")


generate = declare(
    Method(
        "infer.generate",
        Generate,
        Generated,
        errors=(
            MODEL_UNKNOWN,
            MODEL_AMBIGUOUS,
            PROMPT_INVALID,
            PROMPT_TOO_LONG,
            REQUEST_INVALID,
        ),
        streams=Token,
        public=True,
        deadline_s=LONG_DEADLINE_S,
    )
)


@record
class Cancel:
    """End a request that is being answered; it keeps the tokens made so far."""

    request: str = arg("its name, as its tokens and infer.list say", positional=True)


@record
class Cancelled:
    """A request that was told to end."""

    request: str = arg("its name")


cancel = declare(
    Method("infer.cancel", Cancel, Cancelled, errors=(REQUEST_UNKNOWN,), public=True)
)


@record
class List:
    """Show the requests that are being answered, whoever asked."""


@record
class UnderWay:
    """A request that is being answered."""

    request: str = arg("its name, for infer.cancel")
    model: str = arg("name of the model")
    model_id: Id = arg("id of the model")
    prompt_tokens: int = arg("tokens of the prompt")
    made_tokens: int = arg("tokens made so far")
    max_tokens: int = arg("most tokens to make")
    tokens_per_s: float | None = arg("so far, after the first token")
    cost_micro: int = arg("micro-BLY so far")
    age_s: float = arg("since it was asked for")


@record
class Listed:
    """The requests that are being answered."""

    requests: list[UnderWay] = arg("oldest first")


list_requests = declare(Method("infer.list", List, Listed, public=True))


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
