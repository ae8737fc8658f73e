"""What of a request is the same for /v1/completions and /v1/chat/completions.

Names, defaults and bounds are OpenAI's; `top_k`, `min_p`, `repetition_penalty` and
`ignore_eos` are vLLM's; `numerics` and `trace` are ours.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from blyan_tile.model.sampling import Sampling
from blyand.http.fields import Fields

MAX_CHOICES = 16  # for each prompt
MAX_TOKENS = 1 << 20
MAX_TOP = 20  # likeliest tokens told for each
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1024
MAX_NAME_CHARACTERS = 256
MAX_BIASES = 1024
MAX_SCHEMA_CHARACTERS = 64 * 1024
SEEDS = 2**63

NUMERICS = ("reference", "bf16", "int8", "int4")
WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)


@dataclass(frozen=True)
class Asked:
    """One request, checked."""

    model: str | None
    count: int  # choices for each prompt
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    ignore_eos: bool
    schema: str | None  # JSON Schema of the answer
    numerics: str | None
    stream: bool
    include_usage: bool
    trace: bool  # experts, cost and speed are told with the tokens


def read_asked(fields: Fields, max_tokens: int | None) -> Asked:
    """Take the common fields. `max_tokens`: as the endpoint read it. Refusal."""
    stream = fields.boolean("stream")
    options = fields.inner("stream_options")
    include_usage = False
    if options is not None:
        if not stream:
            raise fields.wrong("stream_options", "goes with stream: true only")
        include_usage = options.boolean("include_usage")
        options.ignore(("include_obfuscation", "continuous_usage_stats"))
        options.end()
    seed = fields.integer("seed", -SEEDS, SEEDS - 1)
    fields.ignore(WITHOUT_EFFECT)
    return Asked(
        model=fields.text("model", MAX_NAME_CHARACTERS),
        count=fields.integer("n", 1, MAX_CHOICES) or 1,
        max_tokens=max_tokens,
        sampling=_sampling(fields, seed),
        stop=fields.texts("stop", MAX_STOPS, MAX_STOP_CHARACTERS),
        ignore_eos=fields.boolean("ignore_eos"),
        schema=_schema(fields),
        numerics=fields.choice("numerics", NUMERICS),
        stream=stream,
        include_usage=include_usage,
        trace=fields.boolean("trace"),
    )


def _sampling(fields: Fields, seed: int | None) -> Sampling:
    def number(name: str, low: float, high: float, default: float) -> float:
        value = fields.number(name, low, high)
        return default if value is None else value

    return Sampling(
        temperature=number("temperature", 0, 2, 1.0),
        seed=secrets.randbelow(SEEDS) if seed is None else seed % SEEDS,
        top_k=max(0, fields.integer("top_k", -1, MAX_TOKENS) or 0),
        top_p=number("top_p", 0, 1, 1.0),
        min_p=number("min_p", 0, 1, 0.0),
        presence_penalty=number("presence_penalty", -2, 2, 0.0),
        frequency_penalty=number("frequency_penalty", -2, 2, 0.0),
        repetition_penalty=number("repetition_penalty", 0.01, 100, 1.0),
        logit_bias=_bias(fields),
    )


def _bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    given = fields.take("logit_bias")
    if given is None:
        return ()
    if not isinstance(given, dict) or len(given) > MAX_BIASES:
        text = f"is not an object of at most {MAX_BIASES} token ids"
        raise fields.wrong("logit_bias", text, "invalid_type")
    inner = Fields(given, "logit_bias")
    biases = []
    for name in given:
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise inner.wrong(name[:40], "is not a token id")
        bias = inner.number(name, -100, 100)
        if bias is not None:
            biases.append((int(name), bias))
    return tuple(biases)


def _schema(fields: Fields) -> str | None:
    """Return the JSON Schema that response_format asks for."""
    form = fields.inner("response_format")
    if form is None:
        return None
    kind = form.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise form.wrong("type", "is missing")
    schema: Any = {"type": "object"}
    described = form.inner("json_schema")
    form.end()
    if kind == "text":
        return None
    if kind == "json_schema":
        if described is None:
            raise form.wrong("json_schema", "is missing")
        schema = described.take("schema")
        if not isinstance(schema, (dict, bool)):
            raise described.wrong("schema", "is not a JSON Schema", "invalid_type")
        described.ignore(("name", "description", "strict"))
        described.end()
    return spelled(schema, form)


def spelled(schema: Any, fields: Fields) -> str:
    """Return a schema as text. Refusal when it is too long."""
    text = json.dumps(schema, separators=(",", ":"))
    if len(text) > MAX_SCHEMA_CHARACTERS:
        most = MAX_SCHEMA_CHARACTERS
        raise fields.wrong("schema", f"has {len(text)} characters, at most {most}")
    return text
