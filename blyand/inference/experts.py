"""Experts that are ready to compute: least recently used first to go (GROUP-11).

Strategy. The budget is never exceeded: room is made before an expert is loaded, only
from experts that nobody computes with; where that does not suffice, the expert is
computed band by band from its files instead, with the same result. The lock guards the
books only: whoever comes first loads, others who want the same wait for that load.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blyan_proto.protocols.expert import Numerics
from blyan_tile.layout import Group, Layout
from blyan_tile.recipe import Recipe, recipe_for
from blyan_tile.slice import WHOLE, Slice
from blyan_tile.stream import expert_bytes, ready_expert, streamed_expert
from blyand.errors import Unavailable
from blyand.inference.staging import Staging
from blyand.inference.weights import Blobs, open_tiles
from blyand.metrics import Metrics

Ready = Callable[[Tensor], Tensor]
Key = tuple[bytes, Recipe, Slice]  # root of the version, and what of it

IDLE_S = 3600.0  # unused for so long: evicted (GROUP-08)


class InUse:
    """An expert that stays where it is as long as this object lives."""

    def __init__(self, expert: Ready, recipe: Recipe) -> None:
        self._expert = expert
        self.recipe = recipe  # how its weights are held

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, d) float32 -> (n, d) float32; a row ignores its batch-mates."""
        return self._expert(x)


@dataclass
class _Entry:
    name: str
    recipe: Recipe
    size: int
    used_s: float
    expert: Future[Ready] = field(default_factory=Future)
    askers: int = 1  # that load it or wait for it
    lent: weakref.ref[InUse] | None = None
    hits: int = 0

    @property
    def is_free(self) -> bool:
        return not self.askers and (self.lent is None or self.lent() is None)


@dataclass(frozen=True)
class Resident:
    """What an expert that is ready takes."""

    name: str
    root: bytes
    recipe: Recipe
    bytes: int
    in_use: bool
    idle_s: float  # since it was last asked for
    hits: int


@dataclass(frozen=True)
class Counts:
    """How often `get` found what it was asked for, since the start."""

    hits: int
    misses: int
    evictions: int
    streamed: int  # misses without room for the expert


class Experts:
    """Versions of experts by (group root, recipe, slice). Any thread may ask.

    On the CPU a float32 expert is a view over mapped files, so the budget bounds what
    may stay in the page cache on our behalf; every other recipe, and every recipe on an
    accelerator, is memory of its own. `recipe` is the preferred one.
    """

    def __init__(
        self,
        blobs: Blobs,
        budget_bytes: int,
        metrics: Metrics,
        device: str = "cpu",
        recipe: Recipe = Recipe.F32,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device = torch.device(device)
        self._send = Staging(self.device)
        self.budget_bytes = budget_bytes
        self.recipe = recipe
        self._blobs = blobs
        self._now_s = now_s
        self._lock = threading.Lock()
        self._resident: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0
        self._hits = metrics.counter("expert_hits")
        self._misses = metrics.counter("expert_misses")
        self._evictions = metrics.counter("expert_evictions")
        self._streamed = metrics.counter("expert_streamed")
        self._gauge = metrics.gauge("expert_resident_bytes")

    def get(
        self,
        layout: Layout,
        group: Group,
        root: bytes,
        tiles: Sequence[bytes],
        numerics: Numerics = Numerics.REFERENCE,
        piece: Slice = WHOLE,
    ) -> InUse:
        """Return the version `root` of an expert, made of `tiles`; blocking. NotHere.

        `piece`: a slice of it, for its summand of the output. The weights are held as the node prefers, but as exactly as `numerics` asks.
        """
        recipe = recipe_for(self.recipe, numerics)
        key = (root, recipe, piece)
        with self._lock:
            entry = self._resident.get(key)
            is_first = entry is None
            if entry is None:
                self._misses.add()
                entry = self._enter(key, group)
            else:
                self._hits.add()
                entry.hits += 1
                entry.askers += 1
                entry.used_s = self._now_s()
                self._resident.move_to_end(key)
        if entry is None:
            self._streamed.add()
            opened = open_tiles(self._blobs, group, tiles)
            passing = streamed_expert(group, opened, recipe, self._send, piece)
            return InUse(passing, recipe)
        if is_first:
            self._load(key, entry, group, tiles)
        return self._lend(entry)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the experts that are ready or being loaded."""
        return self._bytes

    def residents(self) -> list[Resident]:
        """Return what is ready, the least recently used first."""
        now_s = self._now_s()
        with self._lock:
            return [
                Resident(
                    name=entry.name,
                    root=root,
                    recipe=recipe,
                    bytes=entry.size,
                    in_use=not entry.is_free,
                    idle_s=now_s - entry.used_s,
                    hits=entry.hits,
                )
                for (root, recipe, _), entry in self._resident.items()
            ]

    def counts(self) -> Counts:
        """Return how it went so far."""
        return Counts(
            self._hits.value,
            self._misses.value,
            self._evictions.value,
            self._streamed.value,
        )

    def evict_idle(self, idle_s: float = IDLE_S) -> None:
        """Let go of what nobody asked for within `idle_s`; its blobs stay (GROUP-08)."""
        with self._lock:
            before_s = self._now_s() - idle_s
            for key, entry in list(self._resident.items()):
                if entry.used_s <= before_s and entry.is_free:
                    self._evict(key)

    def _enter(self, key: Key, group: Group) -> _Entry | None:
        """Make room for an expert and book it; None when there cannot be room."""
        _, recipe, piece = key
        size = expert_bytes(group, recipe, piece)
        free = sum(e.size for e in self._resident.values() if e.is_free)
        if self._bytes - free + size > self.budget_bytes:
            return None
        for other, entry in list(self._resident.items()):
            if self._bytes + size <= self.budget_bytes:
                break
            if entry.is_free:
                self._evict(other)
        made = _Entry(piece.name(group.name), recipe, size, self._now_s())
        self._resident[key] = made
        self._book(size)
        return made

    def _load(
        self,
        key: Key,
        entry: _Entry,
        group: Group,
        tiles: Sequence[bytes],
    ) -> None:
        """Load without the lock; whoever waits for it gets the expert or the error."""
        try:
            opened = open_tiles(self._blobs, group, tiles)
            entry.expert.set_result(
                ready_expert(group, opened, key[1], self._send, key[2])
            )
        except BaseException as error:
            with self._lock:
                del self._resident[key]
                self._book(-entry.size)
            entry.expert.set_exception(error)
            raise

    def _lend(self, entry: _Entry) -> InUse:
        try:
            expert = entry.expert.result()
        except Unavailable as error:
            raise type(error)(str(error)) from error  # one error per caller
        with self._lock:
            entry.askers -= 1
            lent = entry.lent() if entry.lent is not None else None
            if lent is None:
                lent = InUse(expert, entry.recipe)
                entry.lent = weakref.ref(lent)
            return lent

    def _evict(self, key: Key) -> None:
        # An accelerator's allocator frees in the order of its stream: no waiting here.
        self._book(-self._resident.pop(key).size)
        self._evictions.add()

    def _book(self, size: int) -> None:
        self._bytes += size
        self._gauge.set(self._bytes)
