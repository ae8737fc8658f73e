"""Text to token ids and back. The built-in tokenizer is bytes: an id is a UTF-8 byte.

`Companions` are the files that come with imported weights, among them the tokenizer's.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Protocol

from blyan_proto.codec import U8, Size, decode, message
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import DecodeError, LimitExceeded

BYTES = "bytes"
MAX_TOKENIZER_BYTES = 32 << 20  # of tokenizer.json (DEC-C4)
MAX_SMALL_BYTES = 1 << 20  # of each other file
MAX_COMPANIONS_BYTES = MAX_TOKENIZER_BYTES + 4 * MAX_SMALL_BYTES + 64
FILES = {  # of a checkpoint's directory -> field of Companions
    "config.json": "config_json",
    "tokenizer.json": "tokenizer_json",
    "tokenizer_config.json": "tokenizer_config_json",
    "generation_config.json": "generation_config_json",
    "chat_template.jinja": "chat_template",
}


class TextStream(Protocol):
    """Decodes tokens that come one by one; holds back an unfinished character."""

    def add(self, token: int) -> str:
        """Return the text that `token` completes, maybe none."""

    def end(self) -> str:
        """Return what an unfinished last character amounts to."""


class ByteTokenizer:
    """256 ids, no training, no file; any text round-trips."""

    vocabulary = 256
    ends: frozenset[int] = frozenset()
    template: str | None = None
    pieces: Sequence[bytes] = [bytes([byte]) for byte in range(256)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids; what is not UTF-8 becomes U+FFFD."""
        return bytes(tokens).decode(errors="replace")

    def stream(self) -> ByteStream:
        """Return a decoder for tokens that come one by one."""
        return ByteStream()


class ByteStream:
    """Bytes to characters; what is not UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """Return the text that `token` completes, often one character, maybe none."""
        return self._decoder.decode(bytes([token]))

    def end(self) -> str:
        """Return what an unfinished last character amounts to."""
        return self._decoder.decode(b"", final=True)


def tokenizer_named(name: str) -> ByteTokenizer:
    """Return the built-in tokenizer of a model block. DecodeError for another name."""
    if name != BYTES:
        raise DecodeError(f"{name!r} names no built-in tokenizer")
    return ByteTokenizer()


@message
class Companions:
    """The files beside a model's weights, byte for byte; b"" where there was none.

    Canonically encoded they are one U8 blob; its root, in hex, is Model.tokenizer.
    """

    version: U8
    config_json: Annotated[bytes, Size(0, MAX_SMALL_BYTES)]
    tokenizer_json: Annotated[bytes, Size(0, MAX_TOKENIZER_BYTES)]
    tokenizer_config_json: Annotated[bytes, Size(0, MAX_SMALL_BYTES)]
    generation_config_json: Annotated[bytes, Size(0, MAX_SMALL_BYTES)]
    chat_template: Annotated[bytes, Size(0, MAX_SMALL_BYTES)]


def companions_of(files: Mapping[str, bytes]) -> Companions:
    """Return the companions among the `files` (name -> content) of a checkpoint.

    LimitExceeded for a file above its limit, which is named. The contents are checked
    where they are used: `vocabulary.check` says whether a tokenizer will do.
    """
    fields = {field: files.get(name, b"") for name, field in FILES.items()}
    for name, field in FILES.items():
        most = MAX_TOKENIZER_BYTES if field == "tokenizer_json" else MAX_SMALL_BYTES
        if len(fields[field]) > most:
            raise LimitExceeded(
                f"{name} has {len(fields[field])} bytes, at most {most}"
            )
    return Companions(FORMAT_VERSION, **fields)


def read_companions(raw: bytes) -> Companions:
    """Return the companions in a stranger's blob. DecodeError, LimitExceeded."""
    companions = decode(Companions, raw, MAX_COMPANIONS_BYTES)
    if companions.version != FORMAT_VERSION:
        raise DecodeError(f"companions of version {companions.version}")
    return companions
