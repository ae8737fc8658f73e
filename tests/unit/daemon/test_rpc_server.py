"""The control socket, over a real Unix socket with a toy set of answers."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.errors import (
    BLOCK_UNKNOWN,
    INTERNAL,
    INVALID_PARAMS,
    INVALID_REQUEST,
    LINE_TOO_LONG,
    OVERLOADED,
    PARSE_ERROR,
    REPLY_TOO_LONG,
    TIMED_OUT,
    UNKNOWN_METHOD,
    RpcError,
)
from blyan_proto.rpc.spec import Method, arg, record
from blyand.errors import ConfigFault, NoRoute, StorageFault, Unavailable
from blyand.rpc import server
from blyand.rpc.bind import Answers, BindError, Emit


@record
class Word:
    """Say a word."""

    word: str = arg("word")
    times: int = arg("times", default=1, low=1)


@record
class Said:
    """What was said."""

    text: str = arg("text")


@record
class Nothing:
    """Takes nothing."""


ECHO = Method("node.echo", Word, Said)
FAIL = Method("chain.fail", Word, Said)
COUNT = Method("train.count", Word, Said, streams=Said)
WAIT = Method("node.wait", Nothing, Said)
SLOW = Method("node.slow", Nothing, Said, deadline_s=0.01)
TOY = {method.name: method for method in (ECHO, FAIL, COUNT, WAIT, SLOW)}

FAILURES: dict[str, Callable[[], BaseException]] = {
    "rpc": lambda: RpcError(BLOCK_UNKNOWN, "no such block"),
    "route": lambda: NoRoute("nobody holds layer0.expert1"),
    "unavailable": lambda: Unavailable(),
    "bug": lambda: KeyError("secret detail"),
    "group": lambda: ExceptionGroup("", [RpcError(BLOCK_UNKNOWN, "no such block")]),
    "bugs": lambda: ExceptionGroup("", [RpcError(1, ""), KeyError("x")]),
    "disk": lambda: StorageFault("the disk is full"),
    "disks": lambda: ExceptionGroup("", [ExceptionGroup("", [StorageFault("full")])]),
}


class Toy:
    """The answers, and what became of those that wait."""

    def __init__(self) -> None:
        self.answers = Answers(TOY)
        self.waiting = 0
        self.changed = trio.Condition()

        @self.answers(ECHO)
        async def echo(params: Word) -> Said:
            return Said(params.word * params.times)

        @self.answers(FAIL)
        async def fail(params: Word) -> Said:
            raise FAILURES[params.word]()

        @self.answers(COUNT)
        async def count(params: Word, emit: Emit) -> Said:
            for number in range(params.times):
                await emit(Said(f"{params.word}{number}"))
            if params.word == "endless":
                await wait(Nothing())
            return Said("done")

        @self.answers(WAIT)
        async def wait(params: Nothing) -> Said:
            await self._count(+1)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self._count(-1)
            raise AssertionError

        @self.answers(SLOW)
        async def slow(params: Nothing) -> Said:
            await trio.sleep_forever()
            raise AssertionError

    async def _count(self, change: int) -> None:
        async with self.changed:
            self.waiting += change
            self.changed.notify_all()

    async def until_waiting(self, number: int) -> None:
        async with self.changed:
            while self.waiting != number:
                await self.changed.wait()


class Caller:
    """A client that speaks bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.lines = jsonrpc.LineReader(jsonrpc.MAX_REPLY_BYTES)

    async def send(self, raw: bytes | Any) -> None:
        if not isinstance(raw, bytes):
            raw = json.dumps(raw).encode() + b"\n"
        await self.stream.send_all(raw)

    async def receive(self) -> Any:
        """Return the next line as JSON, None at the end."""
        while (line := self.lines.take()) is None:
            received = await self.stream.receive_some(65_536)
            if not received:
                return None
            self.lines.feed(received)
        return json.loads(line)

    async def call(self, raw: bytes | Any) -> Any:
        await self.send(raw)
        return await self.receive()


def request(method: str, id: Any = 1, **params: Any) -> dict[str, Any]:
    return jsonrpc.request(id, method, params)


@asynccontextmanager
async def serving(path: Path, toy: Toy, **more: Any) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await server.serve(path, toy.answers, task_status=task_status, **more)

        await nursery.start(run)
        yield
        nursery.cancel_scope.cancel()


def with_server(
    path: Path, use: Callable[[Toy, Caller], Awaitable[None]], **more: Any
) -> None:
    async def main() -> None:
        toy = Toy()
        with trio.fail_after(10):
            async with serving(path, toy, **more):
                async with await trio.open_unix_socket(
                    os.path.realpath(path)
                ) as stream:
                    await use(toy, Caller(stream))

    trio.run(main)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blyand.sock"


def test_answers_and_errors(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        assert await caller.call(request("node.echo", word="a", times=2)) == {
            "jsonrpc": "2.0",
            "id": 1,
            "result": {"text": "aa"},
        }
        for asked, code, says in [
            (b"{nonsense\n", PARSE_ERROR, "not JSON"),
            (b"5\n", INVALID_REQUEST, "object"),
            (request("node.ecko"), UNKNOWN_METHOD, "did you mean 'node.echo'"),
            (request("node.echo"), INVALID_PARAMS, "'word' is missing"),
            (request("node.echo", word=5), INVALID_PARAMS, "expected text"),
            (request("node.echo", wrd="a"), INVALID_PARAMS, "did you mean 'word'"),
            (request("node.slow"), TIMED_OUT, "0.01 s"),
            (
                request("node.echo", word="x" * 1024, times=2**15),
                REPLY_TOO_LONG,
                "less",
            ),
            (request("chain.fail", word="rpc"), BLOCK_UNKNOWN, "no such block"),
            (request("chain.fail", word="group"), BLOCK_UNKNOWN, "no such block"),
        ]:
            error = (await caller.call(asked))["error"]
            assert error["code"] == code.code and says in error["message"]
        error = (await caller.call(request("chain.fail", word="route")))["error"]
        assert error == {"code": 305, "message": "nobody holds layer0.expert1"}
        error = (await caller.call(request("chain.fail", word="unavailable")))["error"]
        assert error == {"code": 300, "message": "chain.fail: unavailable"}
        assert (await caller.call(request("node.echo", word="b")))["result"]

    with_server(path, use)


def test_a_bug_is_logged_and_not_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        for word in ("bug", "bugs"):
            error = (await caller.call(request("chain.fail", word=word)))["error"]
            assert error["code"] == INTERNAL.code
            assert "secret" not in error["message"]

    with caplog.at_level(logging.ERROR):
        with_server(path, use)
    broken = [entry for entry in caplog.records if "BROKEN" in entry.getMessage()]
    assert len(broken) == 2 and all(entry.exc_info for entry in broken)


@pytest.mark.parametrize("word", ["disk", "disks"])
def test_a_local_fault_is_told_and_ends_the_server(path: Path, word: str) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        error = (await caller.call(request("chain.fail", word=word)))["error"]
        assert error["code"] == INTERNAL.code and "full" in error["message"]
        await trio.sleep_forever()  # the fault cancels us

    with pytest.raises(ExceptionGroup) as caught:
        with_server(path, use)
    fault, rest = caught.value.split(StorageFault)
    assert fault is not None and rest is None
    assert not path.exists()


def test_a_stream_then_its_result(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        await caller.send(request("train.count", id="s", word="n", times=3))
        for number in range(3):
            assert await caller.receive() == {
                "jsonrpc": "2.0",
                "method": "stream",
                "params": {"id": "s", "item": {"text": f"n{number}"}},
            }
        assert (await caller.receive())["result"] == {"text": "done"}
        # nobody to stream to
        await caller.send(
            {
                "jsonrpc": "2.0",
                "method": "train.count",
                "params": {"word": "n", "times": 3},
            }
        )
        assert (await caller.call(request("node.echo", id=2, word="b")))["id"] == 2

    with_server(path, use)


def test_a_slow_request_holds_up_nobody_and_ids_are_distinct(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        await caller.send(request("node.wait", id=1))
        await toy.until_waiting(1)
        assert (await caller.call(request("node.echo", id=2, word="b")))["id"] == 2
        error = (await caller.call(request("node.echo", id=1, word="b")))["error"]
        assert error["code"] == INVALID_REQUEST.code

    with_server(path, use)


def test_hanging_up_cancels_what_was_asked(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        async with await trio.open_unix_socket(path) as other:
            second = Caller(other)
            await second.send(request("train.count", id=1, word="endless", times=2))
            await second.send(request("node.wait", id=2))
            assert (await second.receive())["method"] == "stream"
            await toy.until_waiting(2)
        await toy.until_waiting(0)
        assert (await caller.call(request("node.echo", word="b")))["result"]

    with_server(path, use)


def test_a_line_of_ten_megabytes_is_one_error_and_the_end(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        await caller.send(request("node.wait", id=1))
        await toy.until_waiting(1)
        await caller.send(b"x" * 10_000_000)
        error = (await caller.receive())["error"]
        assert error["code"] == LINE_TOO_LONG.code
        await caller.stream.send_eof()
        assert await caller.receive() is None
        await toy.until_waiting(0)
        async with await trio.open_unix_socket(path) as other:
            assert await Caller(other).call(request("node.echo", word="b"))

    with_server(path, use)


def test_one_request_too_many_is_refused(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        for id in range(server.MAX_REQUESTS):
            await caller.send(request("node.wait", id=id))
        error = await caller.call(request("node.echo", id=999, word="b"))
        assert error["id"] == 999 and error["error"]["code"] == OVERLOADED.code

    with_server(path, use)


def test_a_batch(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        note = {"jsonrpc": "2.0", "method": "node.echo", "params": {"word": "x"}}
        replies = await caller.call(
            [request("node.echo", id=1, word="a"), note, 5, request("no.such", id=2)]
        )
        assert [reply["id"] for reply in replies] == [1, None, 2]
        assert replies[0]["result"] == {"text": "a"}
        assert [r["error"]["code"] for r in replies[1:]] == [
            INVALID_REQUEST.code,
            UNKNOWN_METHOD.code,
        ]
        # only notifications: no reply at all
        await caller.send([note, note])
        assert (await caller.call(request("node.echo", id=3, word="b")))["id"] == 3
        twice = [request("node.echo", id=1, word="a")] * 2
        assert (await caller.call(twice))["error"]["code"] == INVALID_REQUEST.code
        # all replies together stay below the limit
        big = [
            request("node.echo", id=id, word="x" * 1024, times=9 * 1024)
            for id in (1, 2)
        ]
        first, second = await caller.call(big)
        assert "result" in first and second["error"]["code"] == REPLY_TOO_LONG.code

    with_server(path, use)


def test_a_client_that_does_not_read_is_cut_off(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        async with await trio.open_unix_socket(path) as other:
            second = Caller(other)
            await second.send(request("node.wait", id=1))
            await toy.until_waiting(1)
            for id in range(2, 10):
                await second.send(
                    request("node.echo", id=id, word="x" * 1024, times=1024)
                )
            await toy.until_waiting(0)

    with_server(path, use, write_deadline_s=0.05)


def test_one_connection_too_many_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)

    async def use(toy: Toy, caller: Caller) -> None:
        assert await caller.call(request("node.echo", word="b"))
        async with await trio.open_unix_socket(path) as other:
            second = Caller(other)
            assert (await second.receive())["error"]["code"] == OVERLOADED.code
            assert await second.receive() is None

    with_server(path, use)


# The socket's file


def test_the_socket_is_private_and_gone_at_the_end(path: Path) -> None:
    async def use(toy: Toy, caller: Caller) -> None:
        mode = path.lstat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600

    with_server(path, use)
    assert not path.exists()
    path.symlink_to("/nowhere")  # what a killed daemon may leave
    with_server(path, use)


def test_a_long_path_is_bound_elsewhere_and_linked(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 60) / ("y" * 60)
    home.mkdir(parents=True)
    path = home / "blyand.sock"
    places: list[Path] = []

    async def use(toy: Toy, caller: Caller) -> None:
        places.append(Path(os.readlink(path)))
        assert stat.S_IMODE(places[0].parent.stat().st_mode) == 0o700
        assert await caller.call(request("node.echo", word="b"))

    with_server(path, use)
    assert not places[0].parent.exists() and not path.is_symlink()


def test_a_file_in_the_way_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(ConfigFault, match="in the way"):
        trio.run(server.serve, path, Toy().answers)
    assert path.read_text() == "mine"


# Binding


def test_every_method_has_exactly_one_answer(path: Path) -> None:
    answers = Answers(TOY)

    async def one(params: Word) -> Said:
        return Said("")

    answers(ECHO)(one)
    with pytest.raises(BindError, match="two answers"):
        answers(ECHO)(one)
    with pytest.raises(BindError, match="not a declared method"):
        answers(Method("node.other", Word, Said))(one)
    with pytest.raises(BindError, match="takes 1 arguments, not 2"):
        answers(COUNT)(one)
    with pytest.raises(BindError, match="no answer to chain.fail, node.slow"):
        trio.run(server.serve, path, answers)
    assert not path.exists()
