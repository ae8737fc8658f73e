"""The API of the gateway over one node of the inference world, asked over loopback."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

from blyan_proto.rpc.errors import MODEL_UNKNOWN, RpcError
from blyan_tile.template import BUILT_IN, RenderJob, render
from blyand.http.answering import Means
from blyand.http.app import App, Route
from blyand.http.chat import Chat
from blyand.http.completions import Completions
from blyand.http.door import Door
from blyand.http.models import Models
from blyand.http.place import Place
from blyand.inference.generate import Generation
from blyand.metrics import Metrics
from tests.unit.daemon import http_world
from tests.unit.daemon.inference_world import Net, Node, World, running

PRICE_MICRO = 20


class Api:
    """Asks the paths of one gateway; what it serves comes from `world`."""

    def __init__(self, **limits):
        self.world = World()
        self.node = Node(self.world, Net(), "a", self.world.all_experts())
        self.generation = Generation(self.node.parts, **limits)
        self.place = Place(token=http_world.TOKEN)
        self.rendered = []
        record = self.world.record

        def called(name):
            if name not in (None, "tiny", record.id.hex()):
                raise RpcError(MODEL_UNKNOWN, f"no model is called {name!r}")
            return record

        self.records = [record]
        models = Models(lambda: self.records, called, lambda record: 1_700_000_000)
        cost = lambda tokens: tokens * PRICE_MICRO  # noqa: E731
        means = Means(models, self.generation, self.render, cost, b"owner", "a")
        routes = {
            "/v1/models": Route("GET", models.every),
            "/v1/models/*": Route("GET", models.one),
            "/v1/completions": Route("POST", Completions(means)),
            "/v1/chat/completions": Route("POST", Chat(means)),
        }
        self.app = App(Door(self.place), routes, 64, Metrics())

    async def render(self, model, messages, tools, add, *, template, options):
        """As Templates does, without a worker."""
        text = json.dumps(list(messages))
        job = RenderJob(
            BUILT_IN[template], text, json.dumps(tools) if tools else "", "", (), add
        )
        self.rendered.append(render(job, lambda progress: None).text)
        return self.rendered[-1]

    async def ask(self, path, method="POST", **body):
        return await http_world.ask(
            self, method, path, body if method == "POST" else b""
        )

    async def complete(self, **body):
        return await self.ask("/v1/completions", **{"model": "tiny", **body})

    async def chat(self, **body):
        messages = [{"role": "user", "content": "hi"}]
        asked = {"model": "tiny", "messages": messages, "max_tokens": 4, **body}
        return await self.ask("/v1/chat/completions", **asked)


@asynccontextmanager
async def api(**limits):
    made = Api(**limits)
    async with running(made.node), http_world.serving(made):
        yield made


def events(answer):
    """Return the events of a streamed answer; the last says that it is done."""
    assert answer.headers["content-type"] == "text/event-stream"
    raw = dechunked(answer.body).decode()
    found = [one.removeprefix("data: ") for one in raw.split("\n\n") if one]
    assert found[-1] == "[DONE]"
    return [json.loads(one) for one in found[:-1]]


def dechunked(raw):
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        body, raw = body + raw[:length], raw[length + 2 :]
    return body
