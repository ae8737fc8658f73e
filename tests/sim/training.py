"""A simulated network that trains: runs, waiting for rounds, comparing what all hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import trio
from trio.testing import MockClock

from blyan_proto.block.block import Block
from blyan_proto.block.model import Run, TileRoots, TileUpdate
from blyan_proto.codec import decode
from blyan_proto.protocols.delta import MAX_BUNDLE_BYTES, Delta
from blyan_proto.signing import SigningKey
from blyan_proto.types import members
from blyan_tile import tblock
from blyan_tile.corpus import pack
from blyan_tile.create import initial_parameters
from blyan_tile.delta import next_tiles
from blyan_tile.layout import Layout, split
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.records import NODES, RUNS
from blyand.training import birth
from tests.sim.network import InlineLane, SimNode, make_network, until
from tests.sim.training_node import TrainNode
from tests.unit.daemon.chain_world import ARCHITECTURE, dataset, model, run_of

SEED = 5  # of the first weights


class Training:
    """A network whose first node made a model and a dataset."""

    def __init__(
        self,
        home: Path,
        seed: int = 1,
        count: int = 3,
        loss: float = 0.0,
        **params: int,
    ) -> None:
        self.genesis, plain, self.wire = make_network(count, seed, home, loss, **params)
        self.home, self.nodes = home, [self._grown(node) for node in plain]
        small = replace(ARCHITECTURE, experts=2)  # five groups
        self.payload = model(architecture=small)
        self.layout: Layout = layout_for(self.payload)

    def _grown(self, plain: SimNode) -> TrainNode:
        plain.intents.close()
        made = TrainNode(plain.name, self.genesis, plain.key, self.wire, plain.home)
        self.wire.nodes[plain.name] = made
        return made

    def newcomer(self) -> TrainNode:
        """Return a node that the genesis does not know."""
        name = f"node{len(self.wire.nodes)}"
        folder = self.home / name
        folder.mkdir()
        key = SigningKey(self.wire.random.randbytes(32))
        made = TrainNode(name, self.genesis, key, self.wire, folder)
        self.wire.nodes[name] = made
        return made

    @asynccontextmanager
    async def running(self, *nodes: TrainNode):
        """Run these nodes (all); make the model and the dataset."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for node in nodes or self.nodes:
                await self.start(node)
            await self._found(self.nodes[0])
            yield
            nursery.cancel_scope.cancel()

    async def start(self, node: TrainNode) -> None:
        """Run one more node."""

        async def live(task_status=trio.TASK_STATUS_IGNORED):
            await node.run(task_status=task_status)

        await self._nursery.start(live)

    async def _found(self, node: TrainNode) -> None:
        async def quiet(*_: Any) -> None:
            await trio.lowlevel.checkpoint()

        born = await birth.create(
            self.payload,
            SEED,
            "",
            node.trainer,
            node.blobs,
            InlineLane(),
            birth.Chain(
                node.author.make,
                node.author.make_many,
                lambda: node.author.pending,
                lambda: node.machine.view,
                node.key.account,
            ),
            node.home / "work",
            quiet,
        )
        self.model = born.id
        lines = " ".join(f"line {number} of a story" for number in range(200)).encode()
        archive = pack([("a.txt", lines, False), ("b.txt", lines[::-1], True)])
        blob = node.blobs.put_bytes(archive)
        made = await node.author.make(dataset(blob=blob, bytes=len(archive)))
        self.dataset = made.id
        live = [n for n in self.nodes if n.name not in self.wire.down]
        await until(lambda: all(self._is_ready(n, live) for n in live))

    def _is_ready(self, node: TrainNode, live: Sequence[TrainNode]) -> bool:
        """Everybody holds its groups and said so."""
        view = node.machine.view
        if len(node.heads(self.model)) < len(self.layout.groups):
            return False
        desired = node.holder.desired(require_model(view, self.model))
        said = NODES.get(view, node.key.account)
        return (
            node.holder.held(self.model) >= desired
            and members(said.held) >= desired
            and node.peer_of(live[0].key.account) is not None
        )

    async def begin(self, rounds: int = 5, **changed: Any) -> bytes:
        """Start a run; return its id once it is open everywhere that is up."""
        payload = run_of(self.model, self.dataset, rounds=rounds, **changed)
        block = await self.nodes[0].author.make(payload)
        up = [n for n in self.nodes if n.name not in self.wire.down]
        await until(lambda: all(RUNS.get(n.machine.view, block.id) for n in up))
        return block.id

    async def closes(
        self, run: bytes, rounds: int, *nodes: TrainNode, timeout_s: float = 120.0
    ) -> None:
        """Wait until `rounds` are final on these nodes (all)."""
        await until(
            lambda: all(n.closed(run) >= rounds for n in nodes or self.nodes), timeout_s
        )

    async def settles(self, *nodes: TrainNode) -> None:
        """Wait until every node holds its groups at their finalised heads."""
        await until(lambda: all(self._is_settled(n) for n in nodes or self.nodes), 60)

    def _is_settled(self, node: TrainNode) -> bool:
        groups = node.heads(self.model)
        wanted = node.holder.desired(require_model(node.machine.view, self.model))
        held = node.holder.held(self.model)
        heads = {index: node.holder.head(self.model, index) for index in held}
        return held >= wanted and all(
            head is not None and head.block == groups[index].head
            for index, head in heads.items()
        )

    def experts_of(self, node: TrainNode) -> frozenset[int]:
        """Return the groups of experts that placement gives to a node."""
        record = require_model(node.machine.view, self.model)
        experts = {group.index for group in self.layout.expert_groups}
        return frozenset(node.holder.desired(record) & experts)

    def holds_its_share(self, node: TrainNode) -> bool:
        """True when a node holds what placement gives to it, and nothing else."""
        record = require_model(node.machine.view, self.model)
        return node.holder.held(self.model) == node.holder.desired(record)

    def check(self, *nodes: TrainNode) -> None:
        """Equal finalised heads, equal tiles where two hold the same, whole on disk."""
        nodes = nodes or tuple(self.nodes)
        reference = nodes[0].heads(self.model)
        for node in nodes:
            assert node.heads(self.model) == reference
            for index in node.holder.held(self.model):
                head = node.holder.head(self.model, index)
                assert head is not None
                assert head.tiles == reference[index].tiles, (node.name, index)
                assert node.has(head.tiles), (node.name, index)

    def updates(self, node: TrainNode, group: int) -> list[Block]:
        """Return the updates of a group from its first weights to its finalised head."""
        path: list[Block] = []
        block = node.blocks.get(node.heads(self.model)[group].head)
        while block is not None and isinstance(block.content, TileUpdate):
            path.append(block)
            block = node.blocks.get(block.content.parent)
        return path[::-1]

    def recomputed(self, node: TrainNode, run: Run, group: int) -> list[bytes]:
        """Return the weight roots of a group by replay of the chain from its birth."""
        return [tile.weights for tile in self.replayed(node, run, group)]

    def replayed(self, node: TrainNode, run: Run, group: int) -> tuple[TileRoots, ...]:
        """Return the roots of weights and outer state likewise."""
        layout, where = self.layout, self.layout.groups[group]
        first = split(where, initial_parameters(self.payload.architecture, SEED))
        state: list[Any] = [(tile, None) for tile in first]
        for block in self.updates(node, group):
            update: TileUpdate = block.content
            parts, clips = [], []
            for part in update.contributions:
                raw = self._blob(update.blob)[part.offset : part.offset + part.bytes]
                delta = decode(Delta, raw.tobytes(), MAX_BUNDLE_BYTES)
                assert delta.digest == part.delta and delta.learner == part.learner
                parts.append((part.weight_ppm, delta.tiles))
                clips.append(part.clip_ppm)
            state = next_tiles(where, state, parts, run, clips)
        assert layout.groups[group] is where
        return tuple(
            TileRoots(
                tblock.root_of(weights),
                None if momentum is None else tblock.root_of(momentum),
            )
            for weights, momentum in state
        )

    def has_deltas(self, node: TrainNode, group: int) -> bool:
        """True when somebody has the deltas of every update of a group."""
        blobs = (block.content.blob for block in self.updates(node, group))
        nodes = self.wire.nodes.values()
        return all(any(n.blobs.has(blob) for n in nodes) for blob in blobs if blob)

    def _blob(self, blob: bytes | None) -> np.ndarray:
        assert blob is not None
        nodes = self.wire.nodes.values()
        holder = next(n for n in nodes if n.blobs.has(blob))
        return holder.blobs.open_array(blob)


def simulate(main: Callable[[], Any]) -> None:
    """Run an async test in virtual time."""
    trio.run(main, clock=MockClock(autojump_threshold=0))
