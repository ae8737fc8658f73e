"""Text to token ids and back. The built-in tokenizer is bytes: an id is a UTF-8 byte."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from blyan_proto.errors import DecodeError

BYTES = "bytes"


class ByteTokenizer:
    """256 ids, no training, no file; any text round-trips."""

    vocabulary = 256

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids; what is not UTF-8 becomes U+FFFD."""
        return bytes(tokens).decode(errors="replace")

    def stream(self) -> TextStream:
        """Return a decoder for tokens that come one by one."""
        return TextStream()


class TextStream:
    """Decodes as it goes; holds back the bytes of an unfinished character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """Return the text that `token` completes, often one character, maybe none."""
        return self._decoder.decode(bytes([token]))

    def end(self) -> str:
        """Return what an unfinished last character amounts to."""
        return self._decoder.decode(b"", final=True)


def tokenizer_named(name: str) -> ByteTokenizer:
    """Return the tokenizer of a model block. DecodeError for an unknown name."""
    if name != BYTES:
        raise DecodeError(f"tokenizer {name!r} is not in this version")
    return ByteTokenizer()
