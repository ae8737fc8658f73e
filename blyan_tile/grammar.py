"""Answers that fit a JSON Schema: which tokens may come next, in a worker.

`llguidance` compiles the schema and says for every state which tokens lead on; it is
loaded only inside the functions. It holds the interpreter's lock for long, so it has a
process of its own, with one grammar for each answer under way. What a schema may cost
is bounded here in steps, and by the caller in memory and time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from blyan_proto.codec import U32, U64, Size, message
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.types import Hash
from blyan_tile.jobs import Progress
from blyan_tile.pieces import MAX_TOKENS, Kind, Pieces, Table

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_BYTES = 64 << 10
KEPT_LEXICONS = 4
KEPT_GRAMMARS = 256  # above it the one that rested longest is dropped
# For one schema: about 20 ms to compile, 5 ms a step, some 50 MB.
LIMITS: Mapping[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 25_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# As json.dumps spaces, or without spaces; free white space would let a model go on
# with nothing else for ever.
STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
}


@message
class LexiconJob:
    """Make the tokens of a tokenizer known."""

    root: Hash  # of the tokenizer
    table: Table
    ends: Annotated[tuple[U32, ...], Size(0, 64)]


@message
class BeginJob:
    """Begin an answer that fits a schema."""

    root: Hash
    grammar: U64  # its name from now on
    schema: Annotated[str, Size(0, MAX_SCHEMA_BYTES)]


@message
class StepJob:
    """Go on by one token."""

    grammar: U64
    token: U32


@message
class EndJob:
    """Forget an answer."""

    grammar: U64


@message
class Done:
    """It is done. `known` is false for what this process has never heard of."""

    known: bool


@message
class Masked:
    """Which tokens may come next."""

    known: bool  # false: this process has not heard of the tokenizer or the answer
    ended: bool  # the answer is complete and nothing may follow
    mask: Annotated[bytes, Size(0, MAX_TOKENS // 8 + 1)]  # bit i, LSB first: token i


_UNKNOWN = Masked(False, False, b"")
_lexicons: OrderedDict[bytes, LLTokenizer] = OrderedDict()
_grammars: OrderedDict[int, LLMatcher] = OrderedDict()


def learn_tokens(job: LexiconJob, report: Callable[[Progress], None]) -> Done:
    """Run a LexiconJob."""
    from llguidance import LLTokenizer, TokenizerWrapper

    lexicon = _Lexicon(job.table, job.ends)
    _lexicons[job.root] = LLTokenizer(
        TokenizerWrapper(lexicon),
        n_vocab=len(lexicon.tokens),
        eos_token=[*job.ends] or [lexicon.eos_token_id],
        slices=LLTokenizer.json_slices(),
    )
    while len(_lexicons) > KEPT_LEXICONS:
        _lexicons.popitem(last=False)
    return Done(True)


def begin_grammar(job: BeginJob, report: Callable[[Progress], None]) -> Masked:
    """Run a BeginJob. DecodeError: what is wrong with the schema; LimitExceeded."""
    from llguidance import LLMatcher, LLParserLimits

    lexicon = _lexicons.get(job.root)
    if lexicon is None:
        return _UNKNOWN
    _lexicons.move_to_end(job.root)
    try:
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(_object(job.schema)), overrides=STYLE
        )
    except ValueError as error:  # of its own reader
        raise DecodeError(f"the schema is not readable: {_sentence(error)}") from None
    matcher = LLMatcher(lexicon, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    if matcher.is_error():
        raise DecodeError(
            f"the schema cannot be used: {_sentence(matcher.get_error())}"
        )
    masked = _mask(matcher)
    _grammars[job.grammar] = matcher
    while len(_grammars) > KEPT_GRAMMARS:
        _grammars.popitem(last=False)
    return masked


def step_grammar(job: StepJob, report: Callable[[Progress], None]) -> Masked:
    """Run a StepJob. LimitExceeded: the schema costs too much from here on."""
    matcher = _grammars.get(job.grammar)
    if matcher is None:
        return _UNKNOWN
    _grammars.move_to_end(job.grammar)
    if not matcher.consume_token(job.token):
        why = _sentence(matcher.get_error())
        raise LimitExceeded(f"the answer cannot go on by its schema: {why}")
    return _mask(matcher)


def end_grammar(job: EndJob, report: Callable[[Progress], None]) -> Done:
    """Run an EndJob."""
    return Done(_grammars.pop(job.grammar, None) is not None)


def _mask(matcher: LLMatcher) -> Masked:
    if matcher.is_stopped() and not matcher.is_error():
        return Masked(True, True, b"")
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        why = _sentence(matcher.get_error())
        raise LimitExceeded(f"the answer cannot go on by its schema: {why}")
    if not any(mask):
        raise DecodeError("the model has no tokens for what the schema asks for")
    return Masked(True, False, mask)


class _Lexicon:
    """A tokenizer as llguidance asks about it."""

    bos_token_id = None

    def __init__(self, table: Table, ends: tuple[int, ...]) -> None:
        # Special tokens have names that no text can spell.
        self.tokens = [
            b"\xff<%d>" % id if kind == Kind.SILENT or id in ends else piece
            for id, (kind, piece) in enumerate(zip(table.kinds, Pieces(table)))
        ]
        if not ends:  # one that the model does not have, so that it is never chosen
            self.tokens.append(b"\xff<end>")
        self.eos_token_id = ends[0] if ends else len(self.tokens) - 1
        self.special_token_ids = [
            id for id, token in enumerate(self.tokens) if token[:1] == b"\xff"
        ]
        self._bytes = {t[0]: id for id, t in enumerate(self.tokens) if len(t) == 1}

    def __call__(self, raw: bytes) -> list[int]:
        """Return some tokens of a text; masks do not depend on which."""
        return [self._bytes[byte] for byte in raw if byte in self._bytes]


def _object(schema: str) -> dict[str, Any]:
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError):
        raise DecodeError("the schema is not JSON") from None
    if not isinstance(value, dict):
        raise DecodeError("the schema is not a JSON object")
    return value


def _sentence(error: object) -> str:
    return " ".join(str(error).split())[:300]


def unpacked(mask: bytes, count: int) -> np.ndarray:
    """Return a mask as (count,) bool."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=count, bitorder="little")
    return bits.view(bool)
