"""A small model on a small chain, and nodes in memory that hold parts of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import torch
import trio

from blyan_proto.block.model import Architecture, Dtype, Model, TileRoots
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.protocols import expert as wire
from blyan_proto.protocols import span
from blyan_tile import tblock
from blyan_tile.create import initial_parameters
from blyan_tile.layout import layout_of, split
from blyan_tile.model.transformer import generate_local
from blyand.compute import Threads
from blyand.errors import NotHere, TooSlow
from blyand.inference.batch import Batcher
from blyand.inference.course import Parts
from blyand.inference.editions import Editions
from blyand.inference.experts import Experts
from blyand.inference.generate import Generation, Result, Wanted
from blyand.inference.paths import Paths
from blyand.inference.pins import Pins
from blyand.inference.prefixes import Prefixes
from blyand.inference.remote import Spans
from blyand.inference.room import Room
from blyand.inference.routes import Routes
from blyand.inference.runs import Runs
from blyand.inference.scatter import Scatter
from blyand.inference.serve import ExpertServer
from blyand.inference.spans import SpanServer
from blyand.inference.trunks import Trunks
from blyand.inference.versions import Versions
from blyand.metrics import Metrics
from blyand.rules.records import CLOCK, GROUPS, MODELS, Clock, Group, ModelRecord
from blyand.rules.view import Overlay

torch.set_num_threads(1)  # these tensors are tiny

MODEL = b"\x11" * 32
TINY = Architecture(
    vocabulary=256,
    layers=2,
    width=32,
    heads=2,
    kv_heads=2,
    head_width=16,
    experts=4,
    experts_per_token=2,
    expert_width=48,
    rope_base=10_000,
    rms_epsilon_ppb=10_000,
    normalise_top_k=True,
    tied_embeddings=False,
    context=96,
)


class Inline(Threads):
    """A lane without threads, for a clock that jumps."""

    async def run(self, fn, *args):
        await trio.lowlevel.checkpoint()
        return fn(*args)


class Empty:
    def get(self, key):
        return None

    def scan(self, prefix):
        return iter(())


class Shelf:
    """Blobs in memory."""

    def __init__(self):
        self.arrays = {}

    def put(self, array):
        root = tblock.root_of(array)
        self.arrays[root] = array
        return root

    def open_array(self, root):
        if root not in self.arrays:
            raise NotHere(f"blob {root.hex()} is not here")
        return self.arrays[root]

    def outline(self, root):
        return tblock.outline_of(self.open_array(root))


class World:
    """The finalised state, and all blobs."""

    def __init__(self, architecture=TINY):
        self.model = Model(
            FORMAT_VERSION, "tiny", architecture, "bytes", Dtype.F32, 2, ""
        )
        self.layout = layout_of(self.model)
        self.blobs = Shelf()
        self.view = Overlay(Empty())
        self.height = 0
        count = len(self.layout.groups)
        zero = b"\0" * 32
        self.record = ModelRecord(
            MODEL, self.model, b"\1" * 20, count, count, 0, 0, zero, None
        )
        self.adopt(1)

    def adopt(self, seed):
        """Finalise a checkpoint at which the weights of `seed` are the heads."""
        self.adopt_parameters(initial_parameters(self.model.architecture, seed))

    def adopt_parameters(self, parameters):
        self.parameters = parameters
        self.height += 1
        self.record = replace(self.record, adopted_height=self.height)
        MODELS.put(self.view, self.record, MODEL)
        zero = b"\0" * 32
        for group in self.layout.groups:
            roots = tuple(
                TileRoots(self.blobs.put(tile), None)
                for tile in split(group, self.parameters)
            )
            record = Group(MODEL, group.index, zero, None, 0, roots, roots, zero, zero)
            GROUPS.put(self.view, record, MODEL, group.index)
        clock = Clock(self.height, 1_000 * self.height, (zero,))
        CLOCK.put(self.view, clock)

    def expert_groups(self, *names):
        return frozenset(self.layout.group_named(name).index for name in names)

    def all_experts(self):
        return frozenset(group.index for group in self.layout.expert_groups)

    def locally(self, tokens, count, **sampling):
        """The tokens of one process that holds everything."""
        parameters = {k: torch.from_numpy(v) for k, v in self.parameters.items()}
        architecture = self.model.architecture
        return list(generate_local(parameters, architecture, tokens, count, **sampling))


class Net:
    """Peers called without a network: what they get and give is real bytes."""

    def __init__(self):
        self.nodes = {}
        self.dead = set()
        self.silent = set()
        self.calls = []  # (from, to, call)
        self.span_calls = []  # (from, to, request)
        self.mangle_span = lambda peer, hidden: hidden
        self.rtt_ms = {}
        self.before = None  # async (peer): runs before a call is answered
        self.mangle = lambda peer, outputs: outputs

    def client(self, me):
        return _Client(self, me)

    def hosts(self, me):
        return lambda model: {
            name: node.held
            for name, node in self.nodes.items()
            if name != me and name not in self.dead
        }

    def holders(self, model, group):
        assert model == MODEL
        return [name for name, node in self.nodes.items() if group in node.held]


class _Client:
    def __init__(self, net, me):
        self.net, self.me = net, me

    async def forward(self, peer, call, deadline_s):
        net = self.net
        net.calls.append((self.me, peer, call))
        if net.before is not None:
            await net.before(peer)
        if peer in net.dead:
            await trio.lowlevel.checkpoint()
            raise NotHere(f"{peer} is not connected")
        with trio.move_on_after(deadline_s):
            if peer in net.silent:
                await trio.sleep_forever()
            raw = wire.REQUEST.encode(call)
            asked = wire.REQUEST.decode(raw, wire.MAX_MESSAGE_BYTES)
            outputs = await net.nodes[peer].server.answer(self.me, asked)
            reply = wire.ANSWER.encode(outputs)
            made = wire.ANSWER.decode(reply, wire.MAX_MESSAGE_BYTES)
            return replace(made, outputs=net.mangle(peer, made.outputs))
        raise TooSlow(f"{peer} did not answer")


class _SpanClient:
    """Sessions at peers; messages travel as bytes."""

    def __init__(self, net, me):
        self.net, self.me = net, me

    async def open(self, peer, request, deadline_s):
        return (await self._ask(peer, request, deadline_s)).tokens

    async def step(self, peer, request, row_bytes, deadline_s):
        made = await self._ask(peer, request, deadline_s)
        assert len(made.hidden) == request.tail * row_bytes
        return self.net.mangle_span(peer, made.hidden)

    async def end(self, peer, session, deadline_s):
        await self._ask(peer, span.End(session), deadline_s)

    async def _ask(self, peer, request, deadline_s):
        net = self.net
        net.span_calls.append((self.me, peer, request))
        if net.before is not None:
            await net.before(peer)
        if peer in net.dead:
            await trio.lowlevel.checkpoint()
            raise NotHere(f"{peer} is not connected")
        with trio.move_on_after(deadline_s):
            if peer in net.silent:
                await trio.sleep_forever()
            raw = span.REQUEST.encode(request)
            asked = span.REQUEST.decode(raw, span.MAX_MESSAGE_BYTES)
            made = await net.nodes[peer].spans.answer(self.me, asked)
            reply = span.ANSWER.encode(made)
            return span.ANSWER.decode(reply, span.MAX_MESSAGE_BYTES)
        raise TooSlow(f"{peer} did not answer")


class Node:
    """One daemon's inference."""

    def __init__(
        self, world, net, name, held, lane=None, cache_bytes=1 << 30, **limits
    ):
        self.world, self.held, self.name = world, held, name
        self.lane = lane or Threads("inference", 2)
        self.metrics = Metrics()
        self.versions = Versions()
        self.experts = Experts(world.blobs, 1 << 30, self.metrics)
        self.aside = Threads("aside", 1)
        self.batcher = Batcher(self.experts, self.lane, self.aside)
        self.server = ExpertServer(
            lambda model: world.model if model == MODEL else None,
            self.versions,
            self.batcher,
            self.lane,
            self.metrics,
            **limits,
        )
        self.routes = Routes()
        self.scatter = Scatter(
            name,
            self.batcher,
            net.client(name),
            self.routes,
            net.holders,
            lambda model: self.held,
            self.lane,
        )
        self.pins = Pins(lambda: world.view)
        trunks = Trunks(world.blobs)
        self.runs = Runs(trunks, self.experts, self.lane, self.metrics)
        self.room = Room(cache_bytes, self.metrics)
        rows = Threads("rows", 1)
        paths = Paths(
            lambda model: self.held, net.hosts(name), net.rtt_ms.get, self.routes
        )
        self.remote = Spans(_SpanClient(net, name), paths, rows)
        self.editions = Editions(lambda: world.view, self.pins)
        self.spans = SpanServer(
            lambda model: world.model if model == MODEL else None,
            self.editions,
            self.versions,
            self.runs,
            self.room,
            rows,
            lambda peer: peer not in net.dead,
            self.metrics,
        )
        self.parts = Parts(
            self.pins,
            trunks,
            self.versions,
            self.scatter,
            self.runs,
            self.room,
            self.lane,
            paths,
            self.remote,
            Prefixes(self.room, self.lane, self.metrics),
        )
        net.nodes[name] = self
        self.finalised()

    def finalised(self):
        records = GROUPS.scan(self.world.view, MODEL)
        self.versions.update(records, self.held, MODEL)
        self.editions.update()

    async def generate(self, tokens, count, on_token=None, **more):
        """Return (token ids, Result)."""
        result = Result()
        wanted = Wanted(MODEL, tuple(tokens), count, **more)
        generation = Generation(self.parts)
        async for made in generation.run(wanted, result):
            if on_token is not None:
                on_token(made)
        return result.token_ids, result


@asynccontextmanager
async def running(*nodes):
    """Run the nodes' services."""
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.batcher.run)
            await nursery.start(node.runs.serve)
            await nursery.start(node.scatter.run)
            await nursery.start(node.remote.run)
        yield
        nursery.cancel_scope.cancel()


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).tolist()
