"""Text, token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import trio

from blyan_tile.model.sampling import Sampling, choose_token
from blyan_tile.tokenizer import tokenizer_named
from blyand.errors import Busy
from blyand.inference.session import Parts, Session
from blyand.inference.text import Writer

MAX_SESSIONS = 256  # above it Busy; before that, there is no room for the cache


@dataclass(frozen=True)
class Wanted:
    """A request."""

    model: bytes
    tokens: tuple[int, ...]  # the prompt, at least one
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    deadline_s: float = float("inf")  # trio time


@dataclass(frozen=True)
class Made:
    """One token."""

    text: str
    token_id: int
    position: int  # in the whole sequence


@dataclass
class Result:
    """What a request came to; complete when the iteration has ended."""

    began_s: float = field(default_factory=trio.current_time)
    first_s: float | None = None  # trio time of the first and the last token
    last_s: float | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    height: int = 0  # of the checkpoint whose versions answered
    calls: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    repinned: int = 0

    @property
    def time_to_first_token_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.began_s

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token; None below two tokens."""
        if self.first_s is None or self.last_s is None or len(self.token_ids) < 2:
            return None
        return (len(self.token_ids) - 1) / max(self.last_s - self.first_s, 1e-9)


class Generation:
    """Continues prompts."""

    def __init__(self, parts: Parts, max_sessions: int = MAX_SESSIONS) -> None:
        self._parts = parts
        self._max_sessions = max_sessions
        self._sessions = 0

    async def run(self, wanted: Wanted, result: Result) -> AsyncGenerator[Made, None]:
        """Yield tokens as they are made; fill `result` on the way.

        Stops at `max_tokens`, at the end of the context, or at a stop text. NoRoute,
        NotHere, TooSlow, Busy; LimitExceeded when the prompt does not fit the context.
        Close the iterator (`contextlib.aclosing`) when leaving it early.
        """
        if self._sessions >= self._max_sessions:
            raise Busy(f"{self._sessions} requests are under way")
        self._sessions += 1
        try:
            model = self._parts.pins.newest(wanted.model).pinned.model
            tokenizer = tokenizer_named(model.tokenizer)
            length, context = len(wanted.tokens), model.architecture.context
            end = max(length, min(length + wanted.max_tokens, context))
            writer = Writer(tokenizer, wanted.stop)
            with Session(self._parts, wanted.model, end, wanted.deadline_s) as session:
                result.height = session.heads.height
                feed = list(wanted.tokens)
                for position in range(length, end):
                    choose = partial(
                        _choose, tokenizer.vocabulary, wanted.sampling, position
                    )
                    token = await session.feed(feed, choose)
                    feed = [token]
                    text = writer.add(token)
                    if writer.stopped:
                        result.finish_reason = "stop"
                    elif position == end - 1:
                        text += writer.end()
                        if writer.stopped:
                            result.finish_reason = "stop"
                    _note(result, session, text, token)
                    yield Made(text, token, position)
                    if writer.stopped:
                        return
        finally:
            self._sessions -= 1


def _choose(
    vocabulary: int, sampling: Sampling, position: int, logits: np.ndarray
) -> int:
    return choose_token(logits[:vocabulary], sampling, position)


def _note(result: Result, session: Session, text: str, token: int) -> None:
    result.last_s = trio.current_time()
    if result.first_s is None:
        result.first_s = result.last_s
    result.text += text
    result.token_ids.append(token)
    result.height = session.heads.height
    result.calls = session.tally.calls
    result.retries = session.tally.retries
    result.repinned = session.tally.repinned
