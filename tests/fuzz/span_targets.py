"""What a span's server makes of requests: (decode, encode, samples) by name."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import trio
import trio.testing

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import Numerics
from blyan_proto.protocols.span import (
    MAX_MESSAGE_BYTES,
    REQUEST,
    End,
    Ended,
    Open,
    Opened,
    Step,
    Stepped,
)
from blyan_tile.activations import read_rows, write_rows
from blyand.errors import Unavailable
from blyand.inference.editions import name_of
from blyand.inference.spans import SpanServer
from tests.unit.daemon.inference_world import MODEL, TINY, Inline, Net, Node, World

SESSION = b"s" * 16
X = np.random.default_rng(0).standard_normal((3, TINY.width), np.float32)


class Unchanged:
    """Layers that do nothing; what reaches them is whole and finite."""

    async def run(self, run: Any) -> Any:
        assert run.x.shape[1] == TINY.width and run.x.isfinite().all()
        assert run.cache.length(run.first) + len(run.x) <= run.cache.capacity
        return run.x


@functools.cache
def node() -> Node:
    world = World()
    everything = frozenset(range(len(world.layout.groups)))
    return Node(world, Net(), "s", everything, lane=Inline("inference", 1))


def open_of(numerics: Numerics) -> Open:
    name = name_of(node().pins.newest(MODEL), 0, 2)
    return Open(SESSION, MODEL, numerics, 0, 2, name, 8)


def served(numerics: Numerics) -> Any:
    """Requests in a session that is open; what cannot be answered now is no fault."""

    def read(raw: bytes) -> Any:
        request = REQUEST.decode(raw, MAX_MESSAGE_BYTES)
        trio.run(ask, request, clock=trio.testing.MockClock(autojump_threshold=0))
        return request

    async def ask(request: Any) -> None:
        parts = node().parts
        server = SpanServer(
            lambda model: node().world.model if model == MODEL else None,
            node().editions,
            parts.versions,
            Unchanged(),  # type: ignore[arg-type]
            parts.room,
            Inline("wire", 1),
            lambda peer: True,
            node().metrics,
        )
        await server.answer("p", open_of(numerics))
        try:
            with trio.move_on_after(1):
                reply = await server.answer("p", request)
                check(request, reply)
        except Unavailable as error:
            raise DecodeError(str(error)) from error
        finally:
            await server.answer("p", End(SESSION))
            if isinstance(request, Open):
                await server.answer("p", End(request.session))
        assert parts.room.left == parts.room.budget_bytes

    def check(request: Any, reply: Any) -> None:
        if isinstance(request, Step):
            assert isinstance(reply, Stepped)
            size = numerics.element_bytes * TINY.width
            assert len(reply.hidden) == request.tail * size
            if reply.hidden:
                read_rows(reply.hidden, TINY.width, numerics)
        else:
            kind = Opened if isinstance(request, Open) else Ended
            assert isinstance(reply, kind)

    return read


def samples(numerics: Numerics) -> tuple[bytes, ...]:
    step = Step(SESSION, 0, 2, write_rows(X, numerics))
    again = Step(SESSION, 5, 1, write_rows(X, numerics))
    made = (open_of(numerics), step, again, End(SESSION))
    return tuple(map(REQUEST.encode, made))


TARGETS: dict[str, tuple[Any, Any, tuple[bytes, ...]]] = {
    f"span request served, {numerics.name.lower()}": (
        served(numerics),
        REQUEST.encode,
        samples(numerics),
    )
    for numerics in (Numerics.REFERENCE, Numerics.BF16)
}
