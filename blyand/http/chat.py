"""POST /v1/chat/completions: the next message of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blyan_proto.errors import ProtocolError
from blyan_tile.tokenizer import BYTES
from blyand.errors import NotHere
from blyand.http.answering import (
    Identity,
    Means,
    Part,
    answer,
    encoded,
    finish_reason,
    logprob,
    make_parts,
    piece,
    told,
    usage,
    vocabulary_of,
)
from blyand.http.chat_asked import ChatAsked, read_chat
from blyand.http.chunks import Chunks, Whole
from blyand.http.refusal import Refusal
from blyand.http.reply import Reply
from blyand.http.request import Request
from blyand.http.toolcalls import Call, Finder, forms_of, read_forced
from blyand.rules.records import ModelRecord

if TYPE_CHECKING:
    from blyand.inference.generate import Made
    from blyand.inference.vocabularies import Vocabulary

WHOLE, CHUNK = "chat.completion", "chat.completion.chunk"
PLAIN = "plain"  # the template of models that come with none
PLAIN_STOP = ("\n\nUser:", "\n\nSystem:")  # where such a model would go on by itself

Json = dict[str, Any]


class Chat:
    """Answers the path."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def __call__(self, request: Request, reply: Reply) -> None:
        means = self._means
        asked = read_chat(await request.json())
        means.generation.check_room()  # before its tokens are made
        record = means.models.called(asked.asked.model)
        vocabulary = await vocabulary_of(means, record)
        template = template_of(record, asked)
        text = await self._prompt(record, asked, template)
        stop = asked.asked.stop + (PLAIN_STOP if template == PLAIN else ())
        parts = make_parts(
            means,
            asked.asked,
            record,
            [await encoded(vocabulary, text, begin=False)],
            max_tokens=asked.asked.max_tokens,
            stop=stop,
            schema=asked.schema,
            logprobs=asked.logprobs,
        )
        identity = Identity("chatcmpl-", record)
        own = vocabulary.tool_template or vocabulary.template
        marks = forms_of(own) if asked.tools and template is None else ()
        answers = [_Answer(vocabulary, asked, marks) for _ in parts]
        if asked.asked.stream:
            chunks = Chunks(means, reply, identity, asked.asked, parts, CHUNK)
            sink = _Stream(chunks, answers, asked.asked.trace)
            await answer(means.generation, parts, sink)
            await chunks.close()
            return
        whole = Whole(lambda part, made: answers[part.index].add(made))
        await answer(means.generation, parts, whole)
        body = identity.body(WHOLE, parts[0])
        body["choices"] = [one.choice(part) for part, one in zip(parts, answers)]
        body["usage"] = usage(parts)
        body["blyan"] = {**told(means, parts), "chat_template": template or "own"}
        await reply.json(body)

    async def _prompt(
        self, record: ModelRecord, asked: ChatAsked, template: str | None
    ) -> str:
        """Return the messages as the model reads them. Refusal 422 in words."""
        try:
            return await self._means.render(
                record.model,
                asked.messages,
                asked.tools or None,
                True,
                template=template,
                options=asked.options or None,
            )
        except (NotHere, ProtocolError) as error:
            text = str(error)
            raise Refusal(422, text, param="messages", code="chat_template") from error


def template_of(record: ModelRecord, asked: ChatAsked) -> str | None:
    """Return the built-in template to use; None: the model's own."""
    if asked.template is None and record.model.tokenizer == BYTES:
        return PLAIN
    return asked.template


class _Answer:
    """One message as it is made."""

    def __init__(
        self, vocabulary: Vocabulary, asked: ChatAsked, marks: tuple[str, ...]
    ) -> None:
        self.calls: list[Call] = []
        self._vocabulary = vocabulary
        self._asked = asked
        self._finder = Finder(marks)
        self._content = ""
        self._forced = ""  # the call that the whole answer is
        self._logprobs: list[Json] = []

    def add(self, made: Made) -> tuple[Json, list[Json]]:
        """Return the delta that a token adds to the message, and log probabilities."""
        logprobs = []
        if self._asked.logprobs is not None:
            logprobs.append(self._told(made))
            self._logprobs += logprobs
        if self._asked.must_call:
            self._forced += made.text
            return {}, logprobs
        return self._noted(*self._finder.add(made.text)), logprobs

    def end(self) -> Json:
        """Return the delta that is left when the answer ends."""
        if not self._asked.must_call:
            return self._noted(*self._finder.end())
        call = read_forced(self._forced, self._asked.called)
        return self._noted("" if call else self._forced, [call] if call else [])

    def choice(self, part: Part) -> Json:
        """Return the whole choice."""
        self.end()
        message: Json = {"role": "assistant", "content": self._content, "refusal": None}
        if self.calls:
            message["content"] = self._content.strip() or None
            message["tool_calls"] = [call.body() for call in self.calls]
        wants = self._asked.logprobs is not None
        return {
            "index": part.index,
            "message": message,
            "logprobs": {"content": self._logprobs, "refusal": None} if wants else None,
            "finish_reason": self.finish(part),
        }

    def finish(self, part: Part) -> str:
        return "tool_calls" if self.calls else finish_reason(part)

    def _noted(self, text: str, calls: list[Call]) -> Json:
        if self.calls and not text.strip():
            text = ""  # a line between two calls
        self._content += text
        delta: Json = {"content": text} if text else {}
        if calls:
            first = len(self.calls)
            self.calls += calls
            delta["tool_calls"] = [
                call.body(first + place) for place, call in enumerate(calls)
            ]
        return delta

    def _told(self, made: Made) -> Json:
        return {
            **self._chance(made.token_id, made.logprob),
            "top_logprobs": [self._chance(token, chance) for token, chance in made.top],
        }

    def _chance(self, token: int, chance: float) -> Json:
        raw = piece(self._vocabulary, token)
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": logprob(chance), "bytes": list(raw)}


class _Stream:
    """Sends every token at once."""

    def __init__(
        self, chunks: Chunks, answers: Sequence[_Answer], has_traces: bool
    ) -> None:
        self._chunks = chunks
        self._answers = answers
        self._has_traces = has_traces
        self._begun: set[int] = set()

    async def made(self, part: Part, made: Made) -> None:
        delta, logprobs = self._answers[part.index].add(made)
        if delta or logprobs or self._has_traces:
            await self._send(part, delta, logprobs)

    async def ended(self, part: Part) -> None:
        answer = self._answers[part.index]
        delta = answer.end()
        if delta:
            await self._send(part, delta, [])
        await self._send(part, {}, [], answer.finish(part))

    async def _send(
        self, part: Part, delta: Json, logprobs: list[Json], finish: str | None = None
    ) -> None:
        if part.index not in self._begun:
            self._begun.add(part.index)
            first: Json = {"role": "assistant", "content": ""}
            await self._chunks.send(part, delta_of(part, first, [], None))
        await self._chunks.send(part, delta_of(part, delta, logprobs, finish))


def delta_of(part: Part, delta: Json, logprobs: list[Json], finish: str | None) -> Json:
    """Return one choice of a chunk."""
    return {
        "index": part.index,
        "delta": delta,
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": finish,
    }
