"""Everything that answers with experts on this node, made once and kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import trio

from blyan_proto.block.model import Model
from blyan_proto.protocols.expert import Numerics
from blyan_tile.recipe import recipe_called
from blyand.compute import Threads
from blyand.events import Broadcast, CheckpointFinalised, HeadMoved, HeldChanged
from blyand.inference.batch import Batcher
from blyand.inference.course import Parts
from blyand.inference.editions import Editions
from blyand.inference.evaluate import Evaluation
from blyand.inference.experts import Experts
from blyand.inference.generate import MAX_SESSIONS, Generation
from blyand.inference.grammars import Grammars
from blyand.inference.paths import Paths
from blyand.inference.pins import Pins, heads_of
from blyand.inference.prefixes import Prefixes
from blyand.inference.remote import Spans
from blyand.inference.room import Room
from blyand.inference.routes import Routes
from blyand.inference.runs import Runs
from blyand.inference.scatter import Scatter, Tally
from blyand.inference.serve import ExpertServer
from blyand.inference.spans import SpanServer
from blyand.inference.trunks import Trunks
from blyand.inference.usage import Usage
from blyand.inference.versions import Versions
from blyand.inference.vocabularies import Vocabularies
from blyand.metrics import Metrics
from blyand.precedence import Aside, FirstLane, Quiet
from blyand.protocols.expert import Client
from blyand.protocols.span import Client as SpanClient
from blyand.rules.model.heads import Pinned
from blyand.rules.records import GROUPS, MODELS, Group
from blyand.rules.view import View
from blyand.store.blobs import BlobStore

LOOK_S = 60.0  # between two looks for experts that nobody used

Tiles = Callable[[bytes, int], Iterable[bytes] | None]  # of a provisional head


@dataclass(frozen=True)
class Around:
    """What is known of the peers, and how their spans are reached."""

    client: SpanClient
    hosts: Callable[[bytes], Mapping[str, frozenset[int]]]  # who serves, and what
    rtt_ms: Callable[[str], float | None]
    is_connected: Callable[[str], bool]


@dataclass(frozen=True)
class Allowance:
    """What the operator lets serving take, and how exact it is to be."""

    device: str
    experts_bytes: int  # of experts that are ready
    cache_bytes: int  # of keys and values
    max_requests: int  # of peers at once
    slice_bytes: int  # from which on an expert is asked for in slices; 0: never
    recipe: str
    numerics: Numerics
    lookup: int  # tokens guessed at once; 0: none


class Serving:
    """Generation, evaluation, and the experts that peers may call."""

    def __init__(
        self,
        peer_id: str,
        view: Callable[[], View],
        blobs: BlobStore,
        lane: FirstLane,
        client: Client,
        around: Around,
        holders: Callable[[bytes, int], Iterable[str]],
        held: Callable[[bytes], frozenset[int]],
        tiles: Tiles,
        events: Broadcast,
        metrics: Metrics,
        usage: Usage,
        vocabularies: Vocabularies,
        grammars: Grammars,
        allowed: Allowance,
    ) -> None:
        device = allowed.device
        self._view = view
        self._held = held
        self._tiles = tiles
        self._events = events
        self._versions = Versions()
        self.usage = usage
        recipe = recipe_called(allowed.recipe)
        experts = Experts(blobs, allowed.experts_bytes, metrics, device, recipe)
        trunks = Trunks(blobs, device)
        self._batcher = Batcher(experts, lane, Aside(lane))
        self._runs = Runs(trunks, experts, lane, metrics)
        self.routes = Routes()
        self._reading = Threads("reading", 1)
        wire = Threads("wire", 2)
        self._scatter = Scatter(
            peer_id,
            self._batcher,
            client,
            self.routes,
            holders,
            held,
            wire,
            allowed.numerics,
            allowed.slice_bytes,
        )
        pins, room = Pins(view), Room(allowed.cache_bytes, metrics)
        self._spans_of_peers = Spans(
            around.client,
            Paths(held, around.hosts, around.rtt_ms, self.routes),
            wire,
        )
        self._editions = Editions(view, pins)
        self.spans = SpanServer(
            self._model,
            self._editions,
            self._versions,
            self._runs,
            room,
            wire,
            around.is_connected,
            metrics,
            device,
            usage=self.usage,
        )
        parts = Parts(
            pins=pins,
            trunks=trunks,
            versions=self._versions,
            scatter=self._scatter,
            runs=self._runs,
            room=room,
            lane=lane,
            paths=self._spans_of_peers.paths,
            spans=self._spans_of_peers,
            prefixes=Prefixes(room, lane, metrics),
            usage=self.usage,
        )
        self.cache = experts
        self.generation = Generation(
            parts, MAX_SESSIONS, vocabularies, grammars, allowed.lookup
        )
        self.evaluation = Evaluation(parts, Quiet(lane))
        self._scoring = Evaluation(parts, Aside(lane))  # scores have a deadline
        self.experts = ExpertServer(
            self._model,
            self._versions,
            self._batcher,
            wire,
            metrics,
            allowed.max_requests,
            usage=self.usage,
        )

    def _model(self, id: bytes) -> Model | None:
        record = MODELS.get(self._view(), id)
        return record.model if record else None

    async def evaluate(
        self, pinned: Pinned, tokens: np.ndarray, sequence: int
    ) -> float:
        """Return nats per token of one whole version on held-out bytes (DEC-B17)."""
        measured = await self.evaluation.measure(
            heads_of(pinned), tokens, sequence=sequence
        )
        return measured.loss

    async def losses(self, pinned: Pinned, windows: np.ndarray) -> np.ndarray:
        """windows (N, T + 1) -> nats per token of each (N,), by one whole version."""
        sums = await self._scoring.losses(heads_of(pinned), windows, Tally())
        means: np.ndarray = sums / (windows.shape[1] - 1)
        return means

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Compute what is asked for; follow the versions that this node holds."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._batcher.run)
            await nursery.start(self._runs.serve)
            await nursery.start(self._scatter.run)
            await nursery.start(self._spans_of_peers.run)
            await nursery.start(self.spans.run)
            await nursery.start(self.usage.run)
            nursery.start_soon(self._let_go)
            with self._events.subscribe(HeadMoved, capacity=4096) as moves:
                await nursery.start(self._follow)
                task_status.started()
                async for move in moves:
                    tiles = self._tiles(move.model, move.group)
                    if tiles is not None:
                        self._versions.offer(move.model, move.group, list(tiles))

    async def _follow(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take finalised heads over; what changes meanwhile is taken over together."""
        with self._events.subscribe(
            CheckpointFinalised, HeldChanged, capacity=1
        ) as facts:
            await self._update()
            task_status.started()
            async for _ in facts:
                began_s = trio.current_time()
                await self._update()
                # A model has thousands of groups: half of the time is left to others.
                await trio.sleep(trio.current_time() - began_s)

    async def _let_go(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            self.cache.evict_idle()

    async def _update(self) -> None:
        view = self._view()
        for record in list(MODELS.scan(view)):
            held = self._held(record.id)
            groups = await self._reading.run(_groups_of, view, record.id, held)
            self._versions.update(groups, held, record.id)
        self._editions.update()


def _groups_of(view: View, model: bytes, held: frozenset[int]) -> list[Group]:
    """Return the records of the groups that are held. Blocking."""
    found = GROUPS.scan(view, model) if held else ()
    return [record for record in found if record.group in held]
