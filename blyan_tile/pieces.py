"""A foreign tokenizer's way from ids to text, as a table that needs no foreign code.

Strategy. Decoders of real tokenizers come in two sorts. Byte-level ones give each token
some bytes, and their concatenation is the text (`lossy`: what is no UTF-8 becomes
U+FFFD). Sentencepiece-like ones give each token a text, and some tokens stand for a
single byte of a character that has no token. `vocabulary` makes the table in a worker.
"""

from __future__ import annotations

import codecs
import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, overload

import numpy as np

from blyan_proto.codec import U8, Size, message
from blyan_proto.errors import DecodeError

MAX_TOKENS = 1 << 20
MAX_PIECES_BYTES = 24 << 20  # of all tokens together


class Kind(enum.IntEnum):
    """What a token adds to a text."""

    TEXT = 0  # its piece
    BYTE = 1  # one byte of a character
    SILENT = 2  # nothing: special, or no token at all
    LITERAL = 3  # its piece, whose spaces stay where a text begins with it


@message
class Table:
    """Pieces by id, and how they become text."""

    lengths: Annotated[bytes, Size(0, 4 * MAX_TOKENS)]  # u32 little-endian, by id
    text: Annotated[bytes, Size(0, MAX_PIECES_BYTES)]  # all pieces, one after another
    kinds: Annotated[bytes, Size(0, MAX_TOKENS)]  # Kind, by id
    lossy: bool  # pieces are bytes that need not be whole characters
    strip: U8  # spaces that a whole text loses in front
    bare_start: bool  # the first token of a whole text loses its spaces

    def __post_init__(self) -> None:
        lengths = (
            np.frombuffer(self.lengths, "<u4") if len(self.lengths) % 4 == 0 else ()
        )
        if len(lengths) != len(self.kinds) or int(np.sum(lengths)) != len(self.text):
            raise DecodeError("a table of pieces that do not add up")
        if self.kinds and max(self.kinds) > max(Kind):
            raise DecodeError("a piece of an unknown kind")


BYTE_TABLE = Table(  # of the built-in tokenizer
    lengths=np.ones(256, "<u4").tobytes(),
    text=bytes(range(256)),
    kinds=bytes(256),
    lossy=True,
    strip=0,
    bare_start=False,
)


class Pieces(Sequence[bytes]):
    """What each id adds to a text, (V,) UTF-8; b"" for special tokens."""

    def __init__(self, table: Table) -> None:
        self._text = table.text
        lengths = np.frombuffer(table.lengths, "<u4").astype(np.int64)
        self._ends = np.concatenate(([0], np.cumsum(lengths)))  # (V + 1,)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...

    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        """Return one piece, or several."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._text[self._ends[place] : self._ends[place + 1]]

    def __iter__(self) -> Iterator[bytes]:
        ends = self._ends.tolist()
        return (self._text[a:b] for a, b in zip(ends, ends[1:]))


def _one_mark_for_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


EACH = "blyan-each-byte"
codecs.register_error(EACH, _one_mark_for_each_byte)


class PieceDecoder:
    """Ids to text by a table; what `tokenizers` gives without special tokens.

    One difference: where a run of byte tokens is no UTF-8, its whole characters are
    kept, so that a character can be shown before it is known what follows.
    """

    def __init__(self, table: Table) -> None:
        self.pieces: Sequence[bytes] = Pieces(table)
        self.table = table

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of a whole sequence."""
        kinds = self.table.kinds
        heard = [t for t in tokens if t < len(kinds) and kinds[t] != Kind.SILENT]
        stream, text = self.stream(), ""
        if heard and self.table.bare_start and kinds[heard[0]] == Kind.TEXT:
            text = stream.add(heard.pop(0)).replace(" ", "")
        text += "".join(map(stream.add, heard)) + stream.end()
        for _ in range(self.table.strip):
            text = text.removeprefix(" ")
        return text

    def stream(self) -> PieceStream:
        """Return a decoder for tokens that continue a text."""
        return PieceStream(self.table, self.pieces)


class PieceStream:
    """Decodes as it goes; holds back the bytes of an unfinished character."""

    def __init__(self, table: Table, pieces: Sequence[bytes]) -> None:
        self._kinds, self._lossy, self._pieces = table.kinds, table.lossy, pieces
        errors = "replace" if table.lossy else EACH
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors=errors)

    def add(self, token: int) -> str:
        """Return the text that `token` completes, maybe none."""
        if token >= len(self._kinds) or self._kinds[token] == Kind.SILENT:
            return ""
        piece = self._pieces[token]
        if self._lossy or self._kinds[token] == Kind.BYTE:
            return self._decoder.decode(piece)
        return self.end() + piece.decode()

    def end(self) -> str:
        """Return what an unfinished character amounts to."""
        return self._decoder.decode(b"", final=True)
