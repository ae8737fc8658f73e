"""/rpc, /ready and /metrics over a toy set of methods; the token's file; the fields."""

from __future__ import annotations

import json
import os
import stat
from functools import partial

import pytest
import trio

from blyan_proto.rpc.spec import Method, arg, record
from blyand.errors import ConfigFault
from blyand.home import Home
from blyand.http.app import App, Route
from blyand.http.control import Control
from blyand.http.door import Door
from blyand.http.place import Place, is_loopback, read_token, write_place
from blyand.metrics import Metrics
from blyand.rpc.bind import Answers
from blyand.rpc.server import dispatch
from tests.unit.daemon import http_world
from tests.unit.daemon.http_inference import dechunked


@record
class Word:
    """Say a word."""

    word: str = arg("word")
    times: int = arg("times", default=1, low=1)


@record
class Said:
    """What was said."""

    text: str = arg("text")


ECHO = Method("node.echo", Word, Said, public=True)
HIDDEN = Method("node.hidden", Word, Said)
COUNT = Method("train.count", Word, Said, streams=Said, public=True)


class Rpc:
    def __init__(self):
        self.place = Place(token=http_world.TOKEN)
        self.troubles = []
        methods = {method.name: method for method in (ECHO, HIDDEN, COUNT)}
        answers = Answers(methods)

        @answers(ECHO)
        async def echo(params):
            return Said(params.word * params.times)

        @answers(HIDDEN)
        async def hidden(params):
            raise AssertionError("not reachable")

        @answers(COUNT)
        async def count(params, emit):
            if params.word == "fail":
                raise RuntimeError("a bug")
            for number in range(params.times):
                await emit(Said(str(number)))
            return Said(params.word)

        control = Control(methods, partial(dispatch, answers), lambda: self.troubles)
        routes = {
            "/rpc": Route("POST", control.rpc),
            "/health": Route("GET", control.health, is_open=True),
            "/ready": Route("GET", control.ready, is_open=True),
        }
        self.app = App(Door(self.place), routes, 8, Metrics())

    async def call(self, *requests):
        """Return the replies to one request or a batch; the body of no answer is None."""
        body = requests[0] if len(requests) == 1 else list(requests)
        answer = await http_world.ask(self, "POST", "/rpc", body)
        assert answer.status in (200, 204), answer.body
        if answer.headers["content-type"] != "application/x-ndjson":
            return answer.json if answer.body else None
        lines = dechunked(answer.body).splitlines()
        return [json.loads(line) for line in lines]


def asked(method, id=1, **params):
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def with_rpc(check):
    async def main():
        made = Rpc()
        async with http_world.serving(made):
            with trio.fail_after(30):
                await check(made)

    trio.run(main)


def test_public_methods_are_answered_and_no_others():
    async def check(rpc):
        assert (await rpc.call(asked("node.echo", word="a", times=2)))["result"] == {
            "text": "aa"
        }
        hidden = await rpc.call(asked("node.hidden", word="a"))
        assert hidden["error"]["code"] == -32014
        unknown = await rpc.call(asked("node.ecko", word="a"))
        assert "node.echo" in unknown["error"]["message"]
        wrong = await rpc.call(asked("node.echo", word=1))
        assert wrong["error"]["code"] == -32602
        broken = await http_world.ask(rpc, "POST", "/rpc", b"{")
        assert broken.json["error"]["code"] == -32700
        silent = {"jsonrpc": "2.0", "method": "node.echo", "params": {"word": "a"}}
        assert await rpc.call(silent) is None
        both = await rpc.call(
            asked("node.echo", 1, word="a"), silent, asked("node.hidden", 2, word="b")
        )
        assert [one["id"] for one in both] == [1, 2]
        kind = await http_world.ask(
            rpc, "POST", "/rpc", b"{}", content_type="text/plain"
        )
        assert kind.status == 415

    with_rpc(check)


def test_a_stream_comes_line_by_line_and_the_result_last(caplog):
    async def check(rpc):
        *items, last = await rpc.call(asked("train.count", 7, word="done", times=3))
        assert [one["params"]["item"]["text"] for one in items] == ["0", "1", "2"]
        assert all(one["params"]["id"] == 7 for one in items)
        assert last == {"jsonrpc": "2.0", "id": 7, "result": {"text": "done"}}
        failed = await rpc.call(asked("train.count", word="fail"))
        assert failed["error"]["code"] == -32603

    with_rpc(check)
    assert caplog.text.count("BROKEN") == 1


def test_readiness_says_why_not():
    async def check(rpc):
        assert (await http_world.ask(rpc, path="/health")).json == {"status": "ok"}
        assert (await http_world.ask(rpc, path="/ready")).status == 200
        rpc.troubles.append("no model has all its weights yet")
        told = await http_world.ask(rpc, path="/ready", authorization=None)
        assert told.status == 503 and "no model" in told.json["reasons"][0]

    with_rpc(check)


def test_the_token_is_made_once_and_private(tmp_path):
    home = Home(tmp_path)
    token = read_token(home)
    assert len(token) >= 43 and read_token(home) == token
    assert stat.S_IMODE(home.http_token.stat().st_mode) == 0o600
    place = Place(token=token)
    assert place.admits(token) and not place.admits(token[:-1])
    assert token not in place.owner.hex() and place.page is None
    home.http_token.chmod(0o644)
    with pytest.raises(ConfigFault, match="chmod 600"):
        read_token(home)
    home.http_token.chmod(0o600)
    home.http_token.write_text("short\n")
    with pytest.raises(ConfigFault, match="remove it"):
        read_token(home)
    home.http_token.unlink()
    home.http_token.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigFault, match="cannot read"):
        read_token(home)
    told = json.loads(write_place(home, "http://127.0.0.1:1").read_text())
    assert told["url"] == "http://127.0.0.1:1" and told["pid"] == os.getpid()


def test_an_open_address_is_warned_of():
    assert is_loopback("127.0.0.1") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.2")
    place = Place(url="http://0.0.0.0:1", is_public=True)
    assert "in the clear" in place.warnings()[0]
    place.is_public = False
    assert place.warnings() == []
