"""The tokenizers of the models that this node serves, by model (DEC-C4).

Strategy. The files of a tokenizer are a blob that the model names. A worker reads it,
checks it, and gives a table with which the daemon decodes; the worker also encodes. What
a stranger's file does to the worker costs the worker: it is killed and started again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import trio

from blyan_proto.block.model import Model
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_tile.pieces import BYTE_TABLE, PieceDecoder, Table
from blyan_tile.tokenizer import BYTES, ByteTokenizer, TextStream
from blyan_tile.vocabulary import MAX_TEXT_BYTES, EncodeJob, Opened, OpenJob
from blyand.compute import Worker
from blyand.errors import ComputeFault, NotHere
from blyand.worker import Limits

LIMITS = Limits(memory_mib=3072, cpu_s=60)  # of the worker
OPEN_S, ENCODE_S = 60.0, 20.0  # after which the worker is killed
KEPT = 16  # vocabularies, and models whose tokenizer will not do


class Vocabulary(Protocol):
    """A tokenizer as the daemon uses it: decoding here, encoding maybe in a worker."""

    vocabulary: int  # ids below it may be chosen
    ends: frozenset[int]  # ids that end an answer
    template: str | None  # chat template, Jinja
    tool_template: str | None  # in its place where there are tools
    names: Mapping[str, str]  # "bos_token" and so on -> its text
    pieces: Sequence[bytes]  # (vocabulary,) what each id adds to a text, UTF-8
    table: Table  # the same, and how it becomes text
    root: bytes  # of the files; zeros: built in

    async def encode(
        self, text: str, *, special: bool = False, begin: bool = True
    ) -> list[int]:
        """Return the ids of `text`.

        `special`: texts that spell special tokens become those tokens. `begin`: put
        what the tokenizer puts around a text, such as a first token. NotHere when the
        tokenizer cannot be used; LimitExceeded for a text that is too long or takes too
        long; DecodeError for one with half a character (a lone surrogate).
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of a whole sequence."""

    def stream(self) -> TextStream:
        """Return a decoder for tokens that continue a text."""


class ByteVocabulary(ByteTokenizer):
    """The built-in tokenizer; it encodes here."""

    tool_template: str | None = None
    names: Mapping[str, str] = {}
    table = BYTE_TABLE
    root = bytes(32)

    async def encode(  # type: ignore[override]
        self, text: str, *, special: bool = False, begin: bool = True
    ) -> list[int]:
        """Return the UTF-8 bytes of `text`."""
        return list(checked(text))


class ForeignVocabulary(PieceDecoder):
    """A tokenizer that came with a model."""

    def __init__(
        self,
        root: bytes,
        opened: Opened,
        encode: Callable[[str, bool, bool], Awaitable[list[int]]],
    ) -> None:
        super().__init__(opened.table)
        self.root = root
        self.vocabulary = len(self.pieces)
        self.ends = frozenset(opened.ends)
        self.template = opened.template or None
        self.tool_template = opened.tool_template or None
        self.names: Mapping[str, str] = {one.name: one.text for one in opened.names}
        self._encode = encode

    async def encode(
        self, text: str, *, special: bool = False, begin: bool = True
    ) -> list[int]:
        """Return the ids of `text`; see Vocabulary."""
        return await self._encode(text, special, begin)


def checked(text: str) -> bytes:
    """Return a text as UTF-8. DecodeError for half a character, LimitExceeded."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise DecodeError("the text has half a character, a lone surrogate") from None
    if len(raw) > MAX_TEXT_BYTES:
        raise LimitExceeded(f"the text has {len(raw)} bytes, at most {MAX_TEXT_BYTES}")
    return raw


class Vocabularies:
    """Finds a model's tokenizer."""

    def __init__(
        self,
        fetch: Callable[[bytes], Awaitable[None]] | None = None,
        path: Callable[[bytes], Path] | None = None,
        worker: Worker | None = None,
    ) -> None:
        """`fetch` brings a blob here, `path` says where it lies (NotHere).

        Without them there is only the built-in tokenizer.
        """
        self._fetch, self._path, self._worker = fetch, path, worker
        self._turn = trio.Lock()  # so that a deadline bounds a job, not the wait for it
        self._known: OrderedDict[tuple[bytes, int], ForeignVocabulary | str] = (
            OrderedDict()
        )

    async def of(self, model: Model) -> Vocabulary:
        """Return the tokenizer of a model. NotHere when it cannot be had or used."""
        if model.tokenizer == BYTES:
            return ByteVocabulary()
        root = self._root(model.tokenizer)
        key = root, model.architecture.vocabulary
        known = self._known.get(key)
        if known is None:
            known = await self._open(*key)
            self._known[key] = known
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        if isinstance(known, str):
            raise NotHere(known)
        return known

    def _root(self, name: str) -> bytes:
        try:
            root = bytes.fromhex(name)
        except ValueError:
            root = b""
        if len(root) != 32 or self._worker is None:
            raise NotHere(f"tokenizer {name[:80]!r} is of another version")
        return root

    async def _open(self, root: bytes, vocabulary: int) -> ForeignVocabulary | str:
        """Return a vocabulary, or why this one will never do. NotHere."""
        assert self._fetch is not None
        await self._fetch(root)
        job = OpenJob(self._file(root), root, vocabulary)
        try:
            opened = await self._call(job, OPEN_S)
        except ProtocolError as error:
            return f"this model's tokenizer cannot be used: {error}"
        if opened is None:
            raise NotHere(f"this model's tokenizer did not open within {OPEN_S:g} s")

        async def encode(text: str, special: bool, begin: bool) -> list[int]:
            checked(text)
            job = EncodeJob(self._file(root), root, text, special, begin)
            encoded = await self._call(job, ENCODE_S)
            if encoded is None:
                raise LimitExceeded(f"the text takes above {ENCODE_S:g} s to tokenize")
            ids: list[int] = np.frombuffer(encoded.ids, "<u4").tolist()
            return ids

        return ForeignVocabulary(root, opened, encode)

    def _file(self, root: bytes) -> str:
        assert self._path is not None
        return str(self._path(root))

    async def _call(self, job: OpenJob | EncodeJob, deadline_s: float) -> Any:
        """Return the worker's answer, None after the deadline. NotHere if it died."""
        assert self._worker is not None
        async with self._turn:
            try:
                with trio.move_on_after(deadline_s):
                    return await self._worker.call(job)
            except ComputeFault as fault:
                # A foreign file did it: no fault of this machine, which lives on.
                raise NotHere(
                    f"this model's tokenizer cannot be used: {fault}"
                ) from None
        return None
