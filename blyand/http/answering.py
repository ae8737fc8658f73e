"""Several answers to one request at once, and where their tokens go.

Every choice of every prompt is a generation of its own; the first that fails ends all.
When the client is gone the whole request is cancelled, and with it each of them.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import trio

from blyan_proto.block.model import Model
from blyan_proto.protocols.expert import Numerics
from blyand.errors import NotHere
from blyand.http.asked import SEEDS, Asked
from blyand.http.models import Models
from blyand.http.refusal import Refusal
from blyand.rules.records import ModelRecord

if TYPE_CHECKING:  # torch is imported when the first part of inference is made
    from blyand.inference.generate import Generation, Made, Result, Wanted
    from blyand.inference.vocabularies import Vocabulary

DEADLINE_S = 1800.0  # of a whole request
TRACE_S = 0.25  # least time between two traces of one answer
LEAST_LOGPROB = -9999.0  # JSON has no infinity

Render = Callable[..., Awaitable[str]]  # Templates.render


@dataclass(frozen=True)
class Means:
    """What answers are made with.

    `cost` is the price in micro-BLY of so many tokens; `owner` whose earlier requests an
    answer may build on (DEC-S2).
    """

    models: Models
    generation: Generation
    render: Render
    cost: Callable[[int], int]
    owner: bytes
    me: str  # this node's peer id


@dataclass
class Part:
    """One answer under way. `prompt`: which of the prompts it continues."""

    index: int
    prompt: int
    wanted: Wanted
    result: Result
    traced_s: float = -math.inf
    shown: Counter[tuple[int, int]] = field(default_factory=Counter)  # visits told


class Sink(Protocol):
    """Takes the tokens of all answers as they come; one call at a time."""

    async def made(self, part: Part, made: Made) -> None: ...

    async def ended(self, part: Part) -> None: ...


class Identity:
    """What every piece of one response says of it."""

    def __init__(self, prefix: str, model: ModelRecord) -> None:
        self.id = prefix + secrets.token_hex(12)
        self.model = model
        self._created = int(time.time())

    def body(self, kind: str, part: Part | None = None) -> dict[str, Any]:
        """Return the fields in front of the choices."""
        body = {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self.model.model.name,
        }
        if part is not None:
            body["system_fingerprint"] = f"checkpoint-{part.result.height}"
        return body


def make_parts(
    means: Means,
    asked: Asked,
    record: ModelRecord,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int | None,
    **more: Any,
) -> list[Part]:
    """Return the answers to begin, choice by choice. Refusal for a prompt too long.

    The choices of one prompt draw with seeds that follow one another. `max_tokens` None:
    as many as the context has room for. `more` are further fields of Wanted.
    """
    from blyand.inference.generate import Result, Wanted

    parts: list[Part] = []
    for number, prompt in enumerate(prompts):
        left = _room(record.model, prompt, max_tokens)
        for choice in range(asked.count):
            seed = (asked.sampling.seed + choice) % SEEDS
            wanted = Wanted(
                model=record.id,
                tokens=prompt,
                max_tokens=left if max_tokens is None else max_tokens,
                sampling=replace(asked.sampling, seed=seed),
                ignore_eos=asked.ignore_eos,
                numerics=Numerics[asked.numerics.upper()] if asked.numerics else None,
                trace=asked.trace,
                owner=means.owner,
                deadline_s=trio.current_time() + DEADLINE_S,
                **more,
            )
            parts.append(Part(len(parts), number, wanted, Result()))
    return parts


def _room(model: Model, prompt: tuple[int, ...], max_tokens: int | None) -> int:
    """Return how many tokens may follow. Refusal when those asked for do not fit."""
    context = model.architecture.context
    wanted = 1 if max_tokens is None else max_tokens
    if not prompt:
        raise Refusal(400, "the prompt is empty", param="prompt", code="invalid_value")
    if any(not 0 <= token < model.architecture.vocabulary for token in prompt):
        text = f"token ids of this model are below {model.architecture.vocabulary}"
        raise Refusal(400, text, param="prompt", code="invalid_value")
    if len(prompt) + wanted > context:
        asked = f" and {max_tokens} are asked for" if max_tokens is not None else ""
        raise Refusal(
            400,
            f"This model's maximum context length is {context} tokens; the prompt has "
            f"{len(prompt)}{asked}.",
            param="messages" if max_tokens is None else "max_tokens",
            code="context_length_exceeded",
        )
    return context - len(prompt)


async def answer(generation: Generation, parts: Iterable[Part], sink: Sink) -> None:
    """Make all answers; errors of `Generation.run`, several in a group."""
    turn = trio.Lock()

    async def one(part: Part) -> None:
        async with aclosing(generation.run(part.wanted, part.result)) as made:
            async for token in made:
                async with turn:
                    await sink.made(part, token)
        async with turn:
            await sink.ended(part)

    async with trio.open_nursery() as nursery:
        for part in parts:
            nursery.start_soon(one, part)


async def encoded(vocabulary: Vocabulary, text: str, *, begin: bool) -> tuple[int, ...]:
    """Return a prompt's tokens; texts that spell special tokens become those."""
    return tuple(await vocabulary.encode(text, special=True, begin=begin))


async def vocabulary_of(means: Means, record: ModelRecord) -> Vocabulary:
    """Return the tokenizer of a model. Refusal 422 when it cannot be used here."""
    try:
        return await means.generation.vocabularies.of(record.model)
    except NotHere as error:
        raise Refusal(422, str(error), param="model", code="no_tokenizer") from error


def usage(parts: Sequence[Part]) -> dict[str, int]:
    """Count tokens: each prompt once, all answers."""
    prompts = {part.prompt: len(part.wanted.tokens) for part in parts}
    made = sum(len(part.result.token_ids) for part in parts)
    asked = sum(prompts.values())
    return {
        "prompt_tokens": asked,
        "completion_tokens": made,
        "total_tokens": asked + made,
    }


def finish_reason(part: Part) -> str:
    """Return why an answer ended, as OpenAI names it."""
    return "length" if part.result.finish_reason == "length" else "stop"


def told(means: Means, parts: Sequence[Part]) -> dict[str, Any]:
    """Return what the network did for an answer: our own field of the response."""
    results = [part.result for part in parts]
    peers: dict[str, int] = {}
    for result in results:
        for peer, calls in result.calls.items():
            peers[peer] = peers.get(peer, 0) + calls
    first = [r.time_to_first_token_s for r in results if r.time_to_first_token_s]
    speeds = [r.tokens_per_s for r in results if r.tokens_per_s]
    return {
        "cost_micro": means.cost(sum(len(r.token_ids) for r in results)),
        "tokens_per_s": round(sum(speeds), 3) if speeds else None,
        "time_to_first_token_s": round(min(first), 6) if first else None,
        "requests": [result.request for result in results],
        "this_node": means.me,
        "peers": [{"peer_id": p, "calls": n} for p, n in sorted(peers.items())],
        "checkpoint_height": max(result.height for result in results),
        "retries": sum(result.retries for result in results),
        "repinned": sum(result.repinned for result in results),
    }


def trace(means: Means, asked: Asked, part: Part, is_last: bool) -> dict[str, Any]:
    """Return the field of a chunk that tells how one answer is made, where it is time.

    `experts` are (layer, expert, tokens) that were not told before.
    """
    now_s = trio.current_time()
    if not asked.trace or not (is_last or now_s - part.traced_s >= TRACE_S):
        return {}
    part.traced_s = now_s
    visits = part.result.visits or Counter()
    new = sorted((visits - part.shown).items())
    part.shown = visits.copy()
    experts = [(layer, expert, tokens) for (layer, expert), tokens in new]
    return {"blyan": {**told(means, [part]), "experts": experts}}


def logprob(value: float) -> float:
    """Return a logarithm that JSON can spell."""
    return max(value, LEAST_LOGPROB)


def piece(vocabulary: Vocabulary, token: int) -> bytes:
    """Return what a token adds to a text."""
    pieces = vocabulary.pieces
    return bytes(pieces[token]) if token < len(pieces) else b""


def name_of(vocabulary: Vocabulary, token: int) -> str:
    r"""Return a token as text; a part of a character as bytes:\xe2, like OpenAI."""
    raw = piece(vocabulary, token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
