"""The tokenizers of the models that this node serves, by model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from blyan_proto.block.model import Model
from blyan_proto.errors import DecodeError
from blyan_tile.tokenizer import BYTES, ByteTokenizer, TextStream
from blyand.errors import NotHere


class Vocabulary(Protocol):
    """A tokenizer as the daemon uses it: decoding here, encoding maybe in a worker."""

    vocabulary: int  # ids below it may be chosen
    ends: frozenset[int]  # ids that end an answer
    template: str | None  # chat template, Jinja
    pieces: Sequence[bytes]  # (vocabulary,) what each id adds to a text, UTF-8

    async def encode(
        self, text: str, *, special: bool = False, begin: bool = True
    ) -> list[int]:
        """Return the ids of `text`.

        `special`: texts that spell special tokens become those tokens. `begin`: put
        what the tokenizer puts around a text, such as a first token. NotHere when the
        tokenizer cannot be used, LimitExceeded when the text is too long for it.
        """

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of a whole sequence."""

    def stream(self) -> TextStream:
        """Return a decoder for tokens that continue a text."""


class ByteVocabulary(ByteTokenizer):
    """The built-in tokenizer; it encodes here."""

    async def encode(  # type: ignore[override]
        self, text: str, *, special: bool = False, begin: bool = True
    ) -> list[int]:
        """Return the UTF-8 bytes of `text`."""
        return list(text.encode())


class Vocabularies:
    """Finds a model's tokenizer."""

    async def of(self, model: Model) -> Vocabulary:
        """Return the tokenizer of a model. NotHere when it cannot be had or used."""
        if model.tokenizer != BYTES:
            error = DecodeError(f"tokenizer {model.tokenizer!r} is not in this version")
            raise NotHere(str(error)) from error
        return ByteVocabulary()
