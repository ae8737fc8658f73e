"""What programs send to the gateway: raw bytes, bodies of requests, answers with calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import trio
import trio.testing
from hypercorn.trio.worker_context import WorkerContext

from blyan_proto.errors import DecodeError
from blyand.http.app import App, Route
from blyand.http.chat_asked import read_chat
from blyand.http.completion_asked import read_completion
from blyand.http.connection import Connection, settings
from blyand.http.door import Door
from blyand.http.place import Place
from blyand.http.refusal import Refusal
from blyand.http.reply import Reply
from blyand.http.request import Request, loads
from blyand.http.toolcalls import HERMES, MISTRAL, Finder
from blyand.metrics import Metrics

TOKEN = "t" * 43
TOOL = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object"}},
}
COMPLETION = json.dumps(
    {"model": "m", "prompt": ["a", "b"], "n": 2, "stop": ["x"], "logit_bias": {"1": 2}}
).encode()
CHAT = json.dumps(
    {
        "messages": [
            {"role": "system", "content": "é"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "function": {"name": "now", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "12"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "now"}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
).encode()
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "a", "schema": {"type": "object"}},
}
CHAT_FORMAT = json.dumps(
    {"messages": [{"role": "user", "content": "a"}], "response_format": FORMAT}
).encode()
HTTP = (
    b"POST /echo HTTP/1.1\r\nhost: 127.0.0.1:80\r\nauthorization: Bearer %s\r\n"
    b'content-type: application/json\r\ncontent-length: 8\r\n\r\n{"a": 1}'
    % TOKEN.encode()
)
CHUNKED = (
    b"POST /echo HTTP/1.1\r\nhost: 127.0.0.1:80\r\nauthorization: Bearer %s\r\n"
    b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    b'4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\n\r\nGET /open HTTP/1.1\r\nhost: localhost\r\n\r\n'
    % TOKEN.encode()
)
CALLS = (
    b'a <tool_call>{"name": "now", "arguments": {}}</tool_call>',
    b'[TOOL_CALLS] [{"name": "now", "arguments": {"a": [1]}}]',
)


def body(read: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    """A body, as its endpoint reads it."""

    def decode(raw: bytes) -> Any:
        try:
            return read(loads(raw))
        except Refusal as refusal:
            assert 400 <= refusal.status < 500
            raise DecodeError(str(refusal)) from refusal

    return decode


completion = body(read_completion)
chat = body(read_chat)


def answer_with_calls(raw: bytes) -> None:
    """An answer in pieces: nothing of it is lost."""
    text = raw.decode(errors="replace")
    finder, shown, calls = Finder((HERMES[0], MISTRAL)), "", 0
    for place in range(0, len(text), 3):
        more, made = finder.add(text[place : place + 3])
        shown, calls = shown + more, calls + len(made)
    more, made = finder.end()
    if not calls + len(made):
        assert shown + more == text


class _Socket:
    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 80


def connection(raw: bytes) -> None:
    """A client that sends `raw` and hangs up."""

    async def echo(request: Request, reply: Reply) -> None:
        await reply.json(await request.json())

    async def hello(request: Request, reply: Reply) -> None:
        await reply.json({})

    async def talk() -> None:
        routes = {"/echo": Route("POST", echo), "/open": Route("GET", hello, True)}
        app = App(Door(Place(token=TOKEN)), routes, 8, Metrics())

        async def wrapped(scope: Any, receive: Any, send: Any, *more: Any) -> None:
            await app(scope, receive, send)

        ours, theirs = trio.testing.memory_stream_pair()
        ours.socket = _Socket()
        async with trio.open_nursery() as nursery:
            made = Connection(wrapped, settings(), WorkerContext(None), ours)
            nursery.start_soon(made.run)
            await theirs.send_all(raw)
            await trio.testing.wait_all_tasks_blocked()
            await theirs.send_eof()

    trio.run(talk, clock=trio.testing.MockClock(autojump_threshold=0))
