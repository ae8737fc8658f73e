"""What is asked for, and how the tokens of one request are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blyan_proto.protocols.expert import Numerics
from blyan_tile.model.sampling import (
    Choice,
    Constraint,
    History,
    Sampling,
    choose,
    score,
)
from blyand.inference.vocabularies import Vocabulary
from blyand.rules.net.path import Route


@dataclass(frozen=True)
class Wanted:
    """A request."""

    model: bytes
    tokens: tuple[int, ...]  # the prompt, at least one
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()  # texts that end it; not shown
    stop_tokens: frozenset[int] = frozenset()  # ids that end it, beside the model's
    ignore_eos: bool = False  # go on where the model would end
    logprobs: int | None = None  # how many of the likeliest tokens are told
    echo_logprobs: bool = False  # the prompt's tokens are told likewise
    schema: str | None = None  # JSON Schema that the answer fits
    numerics: Numerics | None = None  # None: as the node is configured
    route: Route = Route.AUTO  # who may compute
    trace: bool = False  # the experts that tokens visit are counted
    lookup: int | None = None  # tokens guessed at once; None: as the node is configured
    owner: bytes = b""  # whose earlier requests may be built on (DEC-S2)
    request: str = ""  # for `Generation.cancel`; empty: one is made
    deadline_s: float = float("inf")  # trio time


class Chooser:
    """Chooses the tokens of one request."""

    def __init__(
        self,
        wanted: Wanted,
        vocabulary: Vocabulary,
        constraint: Constraint | None = None,
    ) -> None:
        self.reason = ""  # why the answer ends with the token accepted last: stop, end
        self._wanted = wanted
        self._limit = vocabulary.vocabulary
        self._ends = frozenset() if wanted.ignore_eos else vocabulary.ends
        self._history = History(wanted.tokens)
        self._constraint = constraint
        self._made = 0

    def look(self, row: int, logits: np.ndarray) -> Choice:
        """Return the next token, or how likely the prompt's next token was.

        logits (V,) after token `row` of what was fed: the prompt, later the token that
        was accepted last and drafted ones. Changes nothing; runs in the lane.
        """
        wanted, top = self._wanted, self._wanted.logprobs or 0
        logits = logits[: self._limit]
        if not self._made and row + 1 < len(wanted.tokens):
            return score(logits, wanted.tokens[row + 1], top)
        first = len(wanted.tokens) + self._made if self._made else 1  # after row 0
        return choose(
            logits,
            wanted.sampling,
            first + row,
            self._history,
            self._constraint,
            top,
        )

    def accept(self, choice: Choice) -> None:
        """Take the chosen token; sets `reason`."""
        self._made += 1
        self._history.add(choice.token)
        if choice.token in self._wanted.stop_tokens:
            self.reason = "stop"
        elif choice.token in self._ends:
            self.reason = "end"
