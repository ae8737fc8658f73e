"""POST /v1/completions: prompts continued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blyand.http.answering import (
    Identity,
    Means,
    Part,
    answer,
    encoded,
    finish_reason,
    logprob,
    make_parts,
    name_of,
    told,
    usage,
    vocabulary_of,
)
from blyand.http.chunks import Chunks, Whole
from blyand.http.completion_asked import CompletionAsked, read_completion
from blyand.http.reply import Reply
from blyand.http.request import Request

if TYPE_CHECKING:
    from blyan_tile.model.sampling import Choice
    from blyand.inference.generate import Made
    from blyand.inference.vocabularies import Vocabulary

KIND = "text_completion"

Json = dict[str, Any]


class Completions:
    """Answers the path."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def __call__(self, request: Request, reply: Reply) -> None:
        means = self._means
        asked = read_completion(await request.json())
        means.generation.check_room()  # before its tokens are made
        record = means.models.called(asked.asked.model)
        vocabulary = await vocabulary_of(means, record)
        prompts = [
            await encoded(vocabulary, one, begin=True) if isinstance(one, str) else one
            for one in asked.prompts
        ]
        parts = make_parts(
            means,
            asked.asked,
            record,
            prompts,
            max_tokens=asked.asked.max_tokens,
            stop=asked.asked.stop,
            schema=asked.asked.schema,
            logprobs=asked.logprobs,
            echo_logprobs=asked.echo and asked.logprobs is not None,
        )
        identity = Identity("cmpl-", record)
        texts = [
            one if isinstance(one, str) else vocabulary.decode(one)
            for one in asked.prompts
        ]
        echoes = [texts[part.prompt] if asked.echo else "" for part in parts]
        answers = [_Answer(vocabulary, asked, echo) for echo in echoes]
        if asked.asked.stream:
            chunks = Chunks(means, reply, identity, asked.asked, parts, KIND)
            await answer(means.generation, parts, _Stream(chunks, answers))
            await chunks.close()
            return
        whole = Whole(lambda part, made: answers[part.index].add(part, made))
        await answer(means.generation, parts, whole)
        body = identity.body(KIND, parts[0])
        body["choices"] = [
            choice_of(part, one.take(part, all_of_it=True), finish_reason(part))
            for part, one in zip(parts, answers)
        ]
        body["usage"] = usage(parts)
        body["blyan"] = told(means, parts)
        await reply.json(body)


def choice_of(part: Part, said: tuple[str, Json | None], finish: str | None) -> Json:
    """Return one choice of a response or a chunk."""
    text, logprobs = said
    return {
        "index": part.index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish,
    }


class _Answer:
    """Text and log probabilities of one answer that were not sent yet."""

    def __init__(
        self, vocabulary: Vocabulary, asked: CompletionAsked, echo: str
    ) -> None:
        self._vocabulary = vocabulary
        self._wants = asked.logprobs is not None
        self._echoes = asked.echo
        self._text = echo
        self._offset = 0  # characters of the pieces told before
        self._began = False
        self._tokens: list[tuple[int, float | None, Sequence[tuple[int, float]]]] = []

    def add(self, part: Part, made: Made) -> None:
        self._begin(part)
        self._text += made.text
        self._tokens.append((made.token_id, made.logprob, made.top))

    def take(self, part: Part, *, all_of_it: bool = False) -> tuple[str, Json | None]:
        """Return what was not taken yet."""
        if all_of_it:
            self._begin(part)
        text, self._text = self._text, ""
        tokens, self._tokens = self._tokens, []
        return text, self._logprobs(tokens) if self._wants else None

    def _begin(self, part: Part) -> None:
        """Put the prompt's own tokens in front, once they are scored."""
        if self._began:
            return
        self._began = True
        if self._wants and self._echoes:
            first, *rest = part.wanted.tokens
            self._tokens.append((first, None, ()))
            scored: Sequence[Choice | None] = part.result.prompt[1:]
            self._tokens += [
                (token, one.logprob, one.top) if one else (token, None, ())
                for token, one in zip(rest, scored)
            ]

    def _logprobs(self, tokens: list[Any]) -> Json:
        names, values, tops, offsets = [], [], [], []
        for token, value, top in tokens:
            name = name_of(self._vocabulary, token)
            likely: dict[str, float] = {}
            for other, chance in top:
                likely.setdefault(name_of(self._vocabulary, other), logprob(chance))
            if value is not None and top:
                likely.setdefault(name, logprob(value))
            names.append(name)
            values.append(None if value is None else logprob(value))
            tops.append(likely or None)
            offsets.append(self._offset)
            self._offset += len(name)
        return {
            "tokens": names,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


class _Stream:
    """Sends every token at once."""

    def __init__(self, chunks: Chunks, answers: Sequence[_Answer]) -> None:
        self._chunks = chunks
        self._answers = answers

    async def made(self, part: Part, made: Made) -> None:
        self._answers[part.index].add(part, made)
        text, logprobs = self._answers[part.index].take(part)
        if text or logprobs:
            await self._chunks.send(part, choice_of(part, (text, logprobs), None))

    async def ended(self, part: Part) -> None:
        said = self._answers[part.index].take(part, all_of_it=True)
        await self._chunks.send(part, choice_of(part, said, finish_reason(part)))
