"""Chat messages to a prompt, by the model's template in a worker (DEC-C4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio
from blake3 import blake3

from blyan_proto.block.model import Model
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile.template import (
    BUILT_IN,
    MAX_ARGUMENT_BYTES,
    Rendered,
    RenderJob,
)
from blyan_tile.tokenizer import BYTES
from blyan_tile.vocabulary import Named
from blyand.compute import Worker
from blyand.errors import ComputeFault, NotHere
from blyand.inference.vocabularies import Vocabularies, Vocabulary
from blyand.worker import Limits

LIMITS = Limits(memory_mib=768, cpu_s=10)  # of the worker
RENDER_S = 10.0  # after which the worker is killed
EVERY = "all"


class Templates:
    """Renders with a model's own template where it is allowed, or a built-in one."""

    def __init__(
        self,
        vocabularies: Vocabularies,
        worker: Worker,
        allowed: Sequence[str],
        is_own: Callable[[Model], bool],
    ) -> None:
        """`allowed`: digests, or "all"; `is_own`: this node published the model."""
        self._vocabularies = vocabularies
        self._worker = worker
        self._allowed = frozenset(one.lower() for one in allowed)
        self._is_own = is_own
        self._turn = trio.Lock()  # so that a deadline bounds a job, not the wait for it

    async def render(
        self,
        model: Model,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        template: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt that the messages come to; special tokens are spelled out.

        `template` names a built-in one (plain, chatml) in place of the model's;
        `options` is told to the template. NotHere when the model has no template that
        may run; DecodeError when template and messages do not fit, in the template's
        own words where it has some; LimitExceeded when they are too large or too slow.
        """
        vocabulary = await self._vocabularies.of(model)
        job = RenderJob(
            template=self._text(model, vocabulary, template, bool(tools)),
            messages=_spelled(list(messages), "messages"),
            tools=_spelled(list(tools), "tools") if tools else "",
            options=_spelled(dict(options), "options") if options else "",
            names=tuple(Named(name, text) for name, text in vocabulary.names.items()),
            add_generation_prompt=add_generation_prompt,
        )
        async with self._turn:
            try:
                with trio.move_on_after(RENDER_S):
                    rendered: Rendered = await self._worker.call(job)
                    return rendered.text
            except ComputeFault as fault:
                # The template did it: no fault of this machine, which lives on.
                raise LimitExceeded(
                    f"the chat template ended its worker: {fault}"
                ) from None
        raise LimitExceeded(f"the chat template takes above {RENDER_S:g} s")

    def _text(
        self, model: Model, vocabulary: Vocabulary, name: str | None, tools: bool
    ) -> str:
        if name is None and model.tokenizer == BYTES:
            name = "plain"
        if name is not None:
            if name not in BUILT_IN:
                known = " and ".join(sorted(BUILT_IN))
                raise DecodeError(
                    f"no chat template is called {name[:40]!r}; {known} are"
                )
            return BUILT_IN[name]
        own = vocabulary.tool_template if tools else None
        own = own or vocabulary.template
        if own is None:
            raise NotHere("this model has no chat template; ask for plain or chatml")
        digest = blake3(own.encode()).hexdigest()
        if not (self._allowed & {EVERY, digest} or self._is_own(model)):
            raise NotHere(
                "this model's chat template came from a peer and may not run here: read it "
                f"and set inference.allow_templates to {digest}, or ask for plain or chatml"
            )
        return own


def _spelled(value: Any, what: str) -> str:
    """Return JSON. DecodeError, LimitExceeded."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise DecodeError(f"{what} cannot be spelled as JSON: {error}") from None
    if size > MAX_ARGUMENT_BYTES:
        raise LimitExceeded(f"{what} have {size} bytes, at most {MAX_ARGUMENT_BYTES}")
    return text
