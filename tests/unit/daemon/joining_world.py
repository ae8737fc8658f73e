"""Nodes with a chain, a newcomer, and between them a wire on which peers may lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.sync import Checkpoints, Offers
from blyan_proto.validators import ValidatorSet
from blyand.errors import NotHere
from blyand.joining.backfill import Backfill, Disk
from blyand.joining.donor import Donor
from blyand.joining.joiner import Aim, Joiner
from blyand.joining.records import Records
from blyand.rules.chain.known import tip_place
from blyand.rules.chain.trust import Known
from blyand.rules.chain.validators import signers, successors
from blyand.store.history import History
from blyand.store.restore import Restore
from blyand.store.retained import Retained
from blyand.store.sets import SetStore
from tests.unit.daemon.chain_node import Node, grow

DAY_MS = 86_400_000


class Giver:
    """A node that others join by."""

    def __init__(self, node: Node, every: int = 4) -> None:
        self.node = node
        self.sets = SetStore(node.store)
        self.sets.keep(node.genesis.founders)
        self.history = History(node.store, node.checkpoints, node.blocks)
        self.records = Records(
            node.store, node.checkpoints, self.history, self.sets, node.blocks
        )
        self.donor = Donor(
            node.machine._state.freeze,
            node.checkpoints.at,
            node.events,
            node.lane,
            every,
        )


class Wire:
    """What a newcomer asks of peers, answered by givers; a hook may answer instead."""

    def __init__(self) -> None:
        self.givers: dict[str, Giver] = {}
        self.hooks: dict[tuple[str, str], Callable[..., Any]] = {}  # peer, method
        self.asked: list[tuple[str, str]] = []

    async def _ask(self, peer: str, method: str, usual: Callable[[Giver], Any], *args):
        self.asked.append((peer, method))
        await trio.sleep(0.01)
        hook = self.hooks.get((peer, method))
        if hook is not None:
            answer = hook(*args)
            return await answer if hasattr(answer, "__await__") else answer
        if peer not in self.givers:
            raise NotHere(f"{peer} is not connected")
        answer = usual(self.givers[peer])
        return await answer if hasattr(answer, "__await__") else answer

    async def fetch(self, peer: str, height: int) -> Checkpoints:
        return await self._ask(
            peer,
            "fetch",
            lambda g: Checkpoints(
                g.node.machine.clock.height, tuple(g.records.range(height, 64))
            ),
            height,
        )

    async def before(self, peer: str, height: int, count: int) -> Checkpoints:
        first = max(1, height - count)
        return await self._ask(
            peer,
            "before",
            lambda g: Checkpoints(0, tuple(g.records.range(first, height - first))),
            height,
            count,
        )

    async def handovers(self, peer: str, height: int) -> Checkpoints:
        return await self._ask(
            peer,
            "handovers",
            lambda g: Checkpoints(0, tuple(g.records.handovers(height, 64))),
            height,
        )

    async def validators(self, peer: str, root: bytes) -> ValidatorSet:
        return await self._ask(
            peer, "validators", lambda g: g.records.members(root), root
        )

    async def offers(self, peer: str, at_least: int) -> Offers:
        return await self._ask(
            peer,
            "offers",
            lambda g: Offers(0, tuple(g.donor.offers(at_least))),
            at_least,
        )

    async def manifest(self, peer: str, checkpoint: bytes) -> Any:
        return await self._ask(
            peer, "manifest", lambda g: g.donor.manifest(checkpoint), checkpoint
        )

    async def part(self, peer: str, checkpoint: bytes, chunk: int, after: Any) -> Any:
        made = await self._ask(
            peer,
            "part",
            lambda g: g.donor.part(checkpoint, chunk, after),
            checkpoint,
            chunk,
            after,
        )
        if (made.chunk, made.after) != (chunk, after):
            raise UnexpectedMessage("not the part that was asked for")
        return made

    async def headers(self, peer: str, ids: Any) -> Any:
        return await self._ask(
            peer,
            "headers",
            lambda g: [h for h in map(g.records.header, ids) if h],
            ids,
        )

    async def blocks(self, peer: str, ids: Any) -> Any:
        async def usual(giver: Giver) -> Any:
            return await self.newcomer.given(peer, list(ids))

        return await self._ask(peer, "blocks", usual, ids)

    newcomer: Node


class Newcomer:
    """A node that joins; its peers are those of the wire."""

    def __init__(self, home: Path, wire: Wire, me: int = 2, **aim: Any) -> None:
        self.node = node = Node(home, me=me)
        self.decides = False
        self.wire = wire
        self.aim = aim
        self.open()
        wire.newcomer = node
        node.peers = list(wire.givers)

    def open(self) -> None:
        """Build everything on what is stored, as a start does."""
        node = self.node
        node.open()
        self.history = History(node.store, node.checkpoints, node.blocks)
        groups = node.intake._groups
        groups._tip = lambda id: tip_place(node.machine.view, id)
        groups._lacks_history = lambda: not self.history.is_whole
        self.sets = SetStore(node.store)
        self.sets.keep(node.genesis.founders)
        self.retained = Retained(node.store)
        self.restores: list[Restore] = []
        parameters = node.genesis.parameters
        fields: dict[str, Any] = dict(
            pin=None,
            must=False,
            far=3,
            span_ms=parameters.trust_span_ms,
            retention_ms=parameters.retention_span_ms,
        )
        self.joiner = Joiner(
            node.genesis,
            Aim(**{**fields, **self.aim}),
            self,
            self.wire,
            lambda: list(node.peers),
            node._blame,
            node.clock,
            node.lane,
        )
        self.dropped: list[bytes] = []
        self.backfill = Backfill(
            node.genesis,
            Disk(self.history, node.checkpoints, node.blocks, self.sets),
            self.wire,
            lambda: list(node.peers),
            node._blame,
            node.lane,
            lambda: node.machine.clock.time_ms,
            0,
            archives=False,
            pin=self.aim.get("pin"),
            ordered=self.dropped.extend,
            whole=lambda: None,
        )

    # What joiner.Chain is

    @property
    def known(self) -> Known:
        clock = self.node.machine.clock
        return Known(clock.height, self.node.machine.last_id, clock.time_ms)

    @property
    def signers(self) -> ValidatorSet:
        return signers(self.node.machine.view)

    @property
    def claimed(self) -> int:
        heights = [g.node.machine.clock.height for g in self.wire.givers.values()]
        return max(self.node.follower.known, *heights)

    def begin(self, final: Any, manifest: Any) -> Restore:
        self.restores.append(Restore.begin(self.node.store, final.checkpoint, manifest))
        return self.restores[-1]

    def hold(self, held: bool) -> None:
        self.node.follower.hold(held)

    async def jump(self, final: Any, prover: Any, restored: Any) -> None:
        def finish() -> None:
            self.sets.keep(*prover.sets)
            height = final.checkpoint.height
            steps = [one for one, _ in prover.steps if one.checkpoint.height < height]
            self.history.begin(final, steps, prover.since)
            restored.finish(final)

        await self.node.machine.jump(finish)
        view = self.node.machine.view
        self.sets.keep(signers(view), successors(view))


async def long_chain(
    home: Path, count: int = 9, keys: int = 0
) -> tuple[Node, list, list]:
    """Return a node with checkpoints of one block each, and what peers give of them.

    `keys`: so many more are in its state, which no node that executes all would have.
    """
    source = Node(home, me=0)
    if keys:
        state = source.machine._state
        more = {b"more/%d" % number: b"value" for number in range(keys)}
        source.store.write_batch(state.writes(more), sync=True)
        state.apply(more)
    async with source.running():
        finals, blocks = await grow(source, count)
    return source, finals, blocks


def meet(newcomer: Newcomer, peer: str, giver: Giver, blocks: list) -> None:
    """Let the newcomer know a peer that gives blocks, too."""
    newcomer.wire.givers[peer] = giver
    newcomer.node.peers.append(peer)
    newcomer.node.blocks_of[peer] = list(blocks)
    newcomer.node.finals_of[peer] = lambda height: _finals(giver, height)
    newcomer.node.pending_of[peer] = []


async def _finals(giver: Giver, height: int) -> list:
    return list(giver.node.checkpoints.range(height, 64))
