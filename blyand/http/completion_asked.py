"""What is asked of /v1/completions: prompts as text or as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blyand.http.asked import MAX_TOKENS, MAX_TOP, Asked, read_asked
from blyand.http.fields import Fields

MAX_PROMPTS = 32
MAX_PROMPT_TOKENS = 1 << 20
DEFAULT_TOKENS = 16  # OpenAI's

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class CompletionAsked:
    """One request, checked."""

    asked: Asked
    prompts: tuple[Prompt, ...]  # none is empty
    echo: bool
    logprobs: int | None


def read_completion(body: Mapping[str, Any]) -> CompletionAsked:
    """Return what a body asks for. Refusal names what is wrong with it."""
    fields = Fields(body)
    echo = fields.boolean("echo")
    # With echo, no token at all is asked for by who only wants the prompt's logprobs.
    given = fields.integer("max_tokens", 0 if echo else 1, MAX_TOKENS)
    asked = read_asked(fields, DEFAULT_TOKENS if given is None else given)
    prompts = _prompts(fields)
    logprobs = fields.integer("logprobs", 0, MAX_TOP)
    best_of = fields.integer("best_of", 1, 64)
    if best_of is not None and best_of != asked.count:
        raise fields.wrong("best_of", "is not supported", "unsupported_parameter")
    if fields.text("suffix", 1 << 20):
        raise fields.wrong("suffix", "is not supported", "unsupported_parameter")
    if len(prompts) * asked.count > MAX_PROMPTS:
        text = f"are {len(prompts) * asked.count} answers, at most {MAX_PROMPTS}"
        raise fields.wrong("prompt", f"and n {text}")
    fields.end()
    return CompletionAsked(asked, prompts, echo, logprobs)


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    given = fields.take("prompt")
    if isinstance(given, str) or _is_tokens(given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise fields.wrong("prompt", "is missing, or no text and no list")
    if len(given) > MAX_PROMPTS:
        raise fields.wrong("prompt", f"has {len(given)} prompts, at most {MAX_PROMPTS}")
    prompts: list[Prompt] = []
    for one in given:
        if not one or not (isinstance(one, str) or _is_tokens(one)):
            text = "is empty, or neither text nor a list of token ids"
            raise fields.wrong("prompt", text)
        prompts.append(one if isinstance(one, str) else tuple(one))
    return tuple(prompts)


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_PROMPT_TOKENS
        and all(type(token) is int for token in value)
    )
