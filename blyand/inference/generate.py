"""Text, token by token."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import trio

from blyan_tile.model.lookup import Drafting, agreeing
from blyan_tile.model.sampling import Choice
from blyand.errors import Busy
from blyand.inference.chooser import Chooser, Wanted
from blyand.inference.course import Parts
from blyand.inference.grammars import Grammars
from blyand.inference.session import Session
from blyand.inference.text import Writer
from blyand.inference.vocabularies import Vocabularies

__all__ = ["MAX_SESSIONS", "Generation", "Made", "Result", "UnderWay", "Wanted"]

MAX_SESSIONS = 256  # above it Busy; before that, there is no room for the cache
CROWD = 4  # sequences at once, above which rows that may be in vain delay others


@dataclass(frozen=True)
class Made:
    """One token."""

    text: str
    token_id: int
    position: int  # in the whole sequence
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, best first


@dataclass
class Result:
    """What a request came to; complete when the iteration has ended."""

    began_s: float = field(default_factory=trio.current_time)
    first_s: float | None = None  # trio time of the first and the last token
    last_s: float | None = None
    request: str = ""  # the name by which it can be cancelled
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt: list[Choice | None] = field(default_factory=list)  # with echo_logprobs
    finish_reason: str = "length"  # or stop, end (the model's own), cancelled
    height: int = 0  # of the checkpoint whose versions answered
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    hedges: int = 0
    retries: int = 0
    repinned: int = 0
    drafted: int = 0  # tokens that were looked up, and those of them that were right
    accepted: int = 0
    visits: Counter[tuple[int, int]] | None = None  # (layer, expert) -> tokens; traced

    @property
    def time_to_first_token_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.began_s

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token; None below two tokens."""
        if self.first_s is None or self.last_s is None or len(self.token_ids) < 2:
            return None
        return (len(self.token_ids) - 1) / max(self.last_s - self.first_s, 1e-9)


@dataclass
class UnderWay:
    """A request that is being answered."""

    wanted: Wanted
    result: Result
    cancelled: bool = False
    scope: trio.CancelScope | None = None

    def step(self) -> trio.CancelScope:
        """Return the scope of the next step; `cancel` ends it."""
        self.scope = trio.CancelScope()
        if self.cancelled:
            self.scope.cancel()
        return self.scope

    def cancel(self) -> None:
        """End the request; its result says so."""
        self.cancelled = True
        if self.scope is not None:
            self.scope.cancel()


class Generation:
    """Continues prompts."""

    def __init__(
        self,
        parts: Parts,
        max_sessions: int = MAX_SESSIONS,
        vocabularies: Vocabularies | None = None,
        grammars: Grammars | None = None,
        lookup: int = 0,
    ) -> None:
        """`lookup`: tokens drafted at once, at most; 0: none."""
        self._parts = parts
        self._max_sessions = max_sessions
        self._lookup = lookup
        self._under_way: dict[str, UnderWay] = {}
        self.vocabularies = vocabularies or Vocabularies()
        self.grammars = grammars or Grammars()

    @property
    def under_way(self) -> list[UnderWay]:
        """The requests that are being answered, oldest first."""
        return list(self._under_way.values())

    def check_room(self) -> None:
        """Raise Busy when no further request is taken now, before any work for it."""
        if len(self._under_way) >= self._max_sessions:
            raise Busy(f"{len(self._under_way)} requests are under way")

    def cancel(self, request: str) -> bool:
        """End a request by its name; False when none of that name is under way."""
        found = self._under_way.get(request)
        if found is not None:
            found.cancel()
        return found is not None

    async def run(self, wanted: Wanted, result: Result) -> AsyncGenerator[Made, None]:
        """Yield tokens as they are made; fill `result` on the way.

        Stops at `max_tokens`, at the end of the context, at a stop text or token, at
        the model's own end, at the end of what the schema asks for, or when cancelled.
        NoRoute, NotHere, TooSlow; Busy, also when the request's name is taken; DecodeError
        and LimitExceeded say what is wrong with the schema, or that the prompt does not
        fit the context. Close the iterator (`contextlib.aclosing`) when leaving it early.
        """
        self.check_room()
        result.request = wanted.request or secrets.token_hex(8)
        if result.request in self._under_way:
            raise Busy(f"request {result.request} is under way already")
        under_way = self._under_way[result.request] = UnderWay(wanted, result)
        try:
            model = self._parts.pins.newest(wanted.model).pinned.model
            with under_way.step():
                vocabulary = await self.vocabularies.of(model)
            if under_way.cancelled:
                result.finish_reason = "cancelled"
                return
            length, context = len(wanted.tokens), model.architecture.context
            end = max(length, min(length + wanted.max_tokens, context))
            writer = Writer(vocabulary, wanted.stop)
            async with self.grammars.opened(vocabulary, wanted.schema) as grammar:
                chooser = Chooser(wanted, vocabulary, grammar)
                with Session(
                    self._parts,
                    wanted.model,
                    end,
                    wanted.deadline_s,
                    route=wanted.route,
                    numerics=wanted.numerics,
                    owner=b"" if wanted.trace else wanted.owner,  # it sees all tokens
                ) as session:
                    result.height = session.heads.height
                    if wanted.trace:  # of layers that this node runs itself
                        result.visits = session.tally.visits = Counter()
                    feed, from_row = list(wanted.tokens), length - 1
                    if wanted.echo_logprobs:
                        from_row, end = 0, max(end, length + 1)
                    drafting = Drafting(feed, end, self._most_drafted(wanted))
                    position = length
                    while position < end:
                        draft = self._draft(drafting, end - 1 - position)
                        began_s = trio.current_time()
                        with under_way.step():
                            made = await session.feed_each(
                                [*feed, *draft], chooser.look, from_row
                            )
                        if under_way.cancelled:
                            result.finish_reason = "cancelled"
                            return
                        step_s = trio.current_time() - began_s
                        told, choices = made[: -1 - len(draft)], made[-1 - len(draft) :]
                        right = agreeing(draft, [choice.token for choice in choices])
                        session.take_back(len(draft) - right)
                        if position > length:  # a prompt takes another time
                            drafting.note(len(draft), right, step_s)
                        if wanted.echo_logprobs and position == length:
                            result.prompt = [None, *told]
                            if not wanted.max_tokens or length == context:
                                return
                        for choice in choices[: right + 1]:
                            chooser.accept(choice)
                            drafting.add(choice.token)
                            feed, from_row = [choice.token], 0
                            text = writer.add(choice.token)
                            if grammar is not None:
                                with under_way.step():
                                    await grammar.accept(choice.token)
                            reason = chooser.reason
                            if grammar is not None and grammar.ended:
                                reason = reason or "end"
                            if writer.stopped:
                                reason = "stop"
                            elif reason or position == end - 1:
                                text += writer.end()
                                reason = "stop" if writer.stopped else reason
                            result.finish_reason = reason or "length"
                            _note(result, session, drafting, text, choice)
                            yield Made(
                                text, choice.token, position, choice.logprob, choice.top
                            )
                            position += 1
                            if reason:
                                return
                            if under_way.cancelled:
                                result.finish_reason = "cancelled"
                                return
        finally:
            del self._under_way[result.request]

    def _most_drafted(self, wanted: Wanted) -> int:
        """Return how many tokens may be drafted at once for a request.

        None where a token's logits are changed by the ones before it, nor where the
        experts are counted that tokens visit.
        """
        is_plain = not wanted.sampling.penalises and wanted.schema is None
        most = self._lookup if wanted.lookup is None else wanted.lookup
        return most if is_plain and not wanted.trace else 0

    def _draft(self, drafting: Drafting, most: int) -> list[int]:
        waiting = max(len(self._under_way), self._parts.runs.waiting)
        return [] if waiting > CROWD else drafting.draft(most)


def _note(
    result: Result, session: Session, drafting: Drafting, text: str, choice: Choice
) -> None:
    result.last_s = trio.current_time()
    if result.first_s is None:
        result.first_s = result.last_s
    result.text += text
    result.token_ids.append(choice.token)
    result.logprobs.append(choice.logprob)
    result.height = session.heads.height
    result.calls = session.tally.calls
    result.failed = session.tally.failed
    result.wrong = session.tally.wrong
    result.hedges = session.tally.hedges
    result.retries = session.tally.retries
    result.repinned = session.tally.repinned
    result.drafted, result.accepted = drafting.drafted, drafting.accepted
