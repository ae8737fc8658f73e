"""Where an answer's tokens go: into a stream of events, or nowhere until the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blyand.http.answering import Identity, Means, Part, told, trace, usage
from blyand.http.asked import Asked
from blyand.http.reply import EVENTS, Reply

if TYPE_CHECKING:
    from blyand.inference.generate import Made

DONE = "[DONE]"

Json = dict[str, Any]


class Whole:
    """Keeps everything until the end: `add` takes each token."""

    def __init__(self, add: Callable[[Part, Made], object]) -> None:
        self._add = add

    async def made(self, part: Part, made: Made) -> None:
        self._add(part, made)

    async def ended(self, part: Part) -> None:
        """Nothing is left to do: the whole response says it."""


class Chunks:
    """The chunks of one streamed response, each a choice of some part."""

    def __init__(
        self,
        means: Means,
        reply: Reply,
        identity: Identity,
        asked: Asked,
        parts: Sequence[Part],
        kind: str,
    ) -> None:
        self._means, self._reply, self._identity = means, reply, identity
        self._asked, self._parts, self._kind = asked, parts, kind

    async def send(self, part: Part, choice: Json) -> None:
        """Send one choice; the first one begins the response."""
        if self._reply.status is None:
            await self._reply.begin(EVENTS)
        body = self._identity.body(self._kind, part)
        body["choices"] = [choice]
        if self._asked.include_usage:
            body["usage"] = None
        is_last = choice["finish_reason"] is not None
        body |= trace(self._means, self._asked, part, is_last)
        await self._reply.event(body)

    async def close(self) -> None:
        """Send usage, where it is wanted, and the end."""
        if self._asked.include_usage:
            body = self._identity.body(self._kind, self._parts[0])
            body |= {"choices": [], "usage": usage(self._parts)}
            body["blyan"] = told(self._means, self._parts)
            await self._reply.event(body)
        await self._reply.event(DONE)
        await self._reply.end()
