"""JSON Schemas of answers under way, kept in step with their tokens by a worker."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np
import trio

from blyan_proto.errors import LimitExceeded
from blyan_tile.grammar import (
    MAX_SCHEMA_BYTES,
    BeginJob,
    Done,
    EndJob,
    LexiconJob,
    Masked,
    StepJob,
    unpacked,
)
from blyand.compute import Worker
from blyand.errors import ComputeFault, NotHere
from blyand.inference.vocabularies import Vocabulary
from blyand.worker import Limits

LIMITS = Limits(memory_mib=3072, cpu_s=30)  # of the worker
JOB_S = 10.0  # after which the worker is killed

T = TypeVar("T", Masked, Done)


class Grammar:
    """One answer's schema: which tokens fit now."""

    def __init__(
        self, grammars: Grammars, name: int, count: int, begun: Masked
    ) -> None:
        self._grammars, self._name, self._count = grammars, name, count
        self._take(begun)

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next, (V,) bool; at least one, unless ended."""
        return self._allowed

    async def accept(self, token: int) -> None:
        """Go on by an allowed token. LimitExceeded, DecodeError, NotHere."""
        self._take(await self._grammars.call(StepJob(self._name, token), Masked))

    def _take(self, masked: Masked) -> None:
        if not masked.known:
            raise NotHere("the answer's schema was lost with its worker; ask again")
        self.ended = masked.ended  # complete: nothing may follow
        if not masked.ended:
            self._allowed = unpacked(masked.mask, self._count)


class Grammars:
    """Opens grammars, all in one worker."""

    def __init__(self, worker: Worker | None = None) -> None:
        """Without a worker no schema can be used."""
        self._worker = worker
        self._turn = trio.Lock()  # so that a deadline bounds a job, not the wait for it
        self._names = itertools.count(1)

    @asynccontextmanager
    async def opened(
        self, vocabulary: Vocabulary, schema: str | None
    ) -> AsyncIterator[Grammar | None]:
        """Give the grammar of a schema, None without one, until the block ends.

        DecodeError says what is wrong with the schema; LimitExceeded where it is too
        large or costs too much; NotHere where the worker died.
        """
        if schema is None:
            yield None
            return
        size = len(schema.encode(errors="replace"))
        if size > MAX_SCHEMA_BYTES:
            most = MAX_SCHEMA_BYTES
            raise LimitExceeded(f"the schema has {size} bytes, at most {most}")
        name = next(self._names)
        begin = BeginJob(vocabulary.root, name, schema)
        begun = await self.call(begin, Masked)
        if not begun.known:
            ends = tuple(sorted(vocabulary.ends))
            await self.call(LexiconJob(vocabulary.root, vocabulary.table, ends), Done)
            begun = await self.call(begin, Masked)
        try:
            yield Grammar(self, name, vocabulary.vocabulary, begun)
        finally:
            with trio.CancelScope(shield=True):
                await self.call(EndJob(name), Done)

    async def call(
        self, job: BeginJob | StepJob | EndJob | LexiconJob, kind: type[T]
    ) -> T:
        """Return the worker's answer. NotHere if it died or took too long."""
        if self._worker is None:
            raise NotHere("this node takes no schemas")
        async with self._turn:
            try:
                # Cancelled, it would take the grammars of all others with it.
                with trio.move_on_after(JOB_S, shield=True):
                    answer = await self._worker.call(job)
                    assert isinstance(answer, kind)
                    return answer
            except ComputeFault as fault:
                # The schema did it: no fault of this machine, which lives on.
                raise NotHere(f"the answer's schema cannot be used: {fault}") from None
        raise NotHere(f"the answer's schema took above {JOB_S:g} s")
