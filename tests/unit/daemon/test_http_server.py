"""The gateway under clients that mean harm, or nothing at all."""

from __future__ import annotations

import json

import pytest
import trio

from blyand.errors import Busy, ConfigFault, NoRoute, StorageFault, TooSlow
from blyand.http import connection, request, server
from tests.unit.daemon.http_world import (
    TOKEN,
    Answered,
    World,
    ask,
    connect,
    head,
    read_all,
    serving,
)


def with_world(check, **limits):
    async def main():
        world = World(**limits.pop("world", {}))
        async with serving(world, **limits):
            await check(world)

    trio.run(main)


async def until(condition):
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


def test_who_may_come_in():
    async def check(world):
        port = world.port
        assert (await ask(world)).status == 200
        assert (await ask(world, authorization=None)).status == 200
        for host in (f"localhost:{port}", "proxy.example", "proxy.example:444"):
            assert (await ask(world, host=host)).status == 200, host
        for host in ("evil.example", "127.0.0.1", f"127.0.0.2:{port}", "localhost", ""):
            rebound = await ask(world, host=host)
            assert (rebound.status, rebound.error["code"]) == (421, "wrong_host"), host
        own = f"http://127.0.0.1:{port}"
        assert (await ask(world, origin=own)).status == 200
        proxied = dict(host="proxy.example", origin="https://proxy.example")
        assert (await ask(world, **proxied)).status == 200
        for origin in ("https://evil.example", "null", f"http://localhost:{port}"):
            other = await ask(world, origin=origin)
            assert (other.status, other.error["code"]) == (403, "wrong_origin")
        # a page of another site that knows the token is still of another site
        foreign = await ask(world, "POST", "/echo", {}, origin="https://evil.example")
        assert foreign.status == 403
        preflight = await ask(world, "OPTIONS", "/echo", origin="https://evil.example")
        assert preflight.status == 403
        assert "access-control-allow-origin" not in preflight.headers

    with_world(check)


def test_the_token_opens_what_is_not_open():
    async def check(world):
        assert (await ask(world, "POST", "/echo", {"a": 1})).json == {"a": 1}
        lower = await ask(world, "POST", "/echo", {}, authorization=f"bearer {TOKEN}")
        assert lower.status == 200
        for given in (
            None,
            "Bearer x",
            f"Basic {TOKEN}",
            TOKEN,
            f"Bearer {TOKEN}x",
            "",
        ):
            refused = await ask(world, "POST", "/echo", {}, authorization=given)
            assert refused.status == 401, given
            assert refused.error["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        # without the token nobody learns what is here
        assert (await ask(world, path="/none", authorization=None)).status == 401
        missing = await ask(world, path="/none")
        assert (missing.status, missing.error["code"]) == (404, "unknown_url")
        wrong = await ask(world, "GET", "/echo")
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
        assert (await ask(world, path="/part/x")).json == {"path": "/part/x"}

    with_world(check)


@pytest.mark.parametrize(
    "body, code",
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"\xff"', "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": "\\ud800"}', "invalid_json"),
        (b'{"a": ' + b"[" * 100_000, "invalid_json"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "invalid_json"),
        (b"", "invalid_json"),
    ],
)
def test_bodies_that_are_not_json_are_refused(body, code):
    async def check(world):
        refused = await ask(world, "POST", "/echo", body)
        assert (refused.status, refused.error["code"]) == (400, code)

    with_world(check)


def test_bodies_have_a_kind_a_size_and_a_time(monkeypatch):
    async def check(world):
        plain = await ask(world, "POST", "/echo", {}, content_type="text/plain")
        assert plain.status == 415
        pair = '{"a": "\\ud83d\\ude00"}'.encode()
        assert (await ask(world, "POST", "/echo", pair)).json == {"a": "\U0001f600"}
        long = await ask(world, "POST", "/echo", b"x" * (request.MAX_BODY_BYTES + 1))
        assert (long.status, long.error["code"]) == (413, "body_too_long")
        claimed = await ask(world, "POST", "/echo", content_length="9" * 11)
        assert claimed.status == 413
        chunk = b"%x\r\n" % 65536 + b"x" * 65536 + b"\r\n"
        chunked = dict(content_length=None, transfer_encoding="chunked")
        async with await connect(world) as stream:
            await stream.send_all(head(world, "POST", "/echo", **chunked) + chunk * 17)
            assert Answered(await read_all(stream)).status == 413
        monkeypatch.setattr(request, "BODY_S", 0.05)
        async with await connect(world) as stream:
            await stream.send_all(head(world, "POST", "/echo", content_length="10"))
            assert Answered(await read_all(stream)).status == 408

    with_world(check)


def test_a_head_that_comes_slowly_or_is_too_long_ends_the_connection(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.1)

    async def check(world):
        async with await connect(world) as stream:
            with trio.fail_after(10):
                await stream.send_all(b"GET /open HTTP/1.1\r\n")
                assert await read_all(stream) == b""
        async with await connect(world) as stream:
            await stream.send_all(b"GET /open HTTP/1.1\r\nx: " + b"y" * 30_000)
            assert Answered(await read_all(stream)).status in (400, 431)

    with_world(check)


@pytest.mark.parametrize(
    "raw",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_the_next_client_served(raw):
    async def check(world):
        async with await connect(world) as stream:
            with trio.fail_after(10):
                await stream.send_all(raw)
                await stream.send_eof()
                answer = Answered(await read_all(stream))
        assert answer.status is None or 400 <= answer.status < 500
        assert (await ask(world)).status == 200

    with_world(check)


def test_upgrades_are_not_taken(caplog):
    async def check(world):
        h2c = dict(
            connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AA"
        )
        async with await connect(world) as stream:
            await stream.send_all(head(world, "GET", "/open", **h2c))
            assert Answered(await stream.receive_some(65536)).status == 200
        key = dict(
            sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==", sec_websocket_version="13"
        )
        socket = dict(connection="Upgrade", upgrade="websocket", **key)
        assert (await ask(world, **socket)).status == 403
        await until(lambda: True)

    with_world(check)
    assert "BROKEN" not in caplog.text


def test_requests_follow_one_another_on_a_connection():
    async def check(world):
        async with await connect(world) as stream:
            for _ in range(3):
                await stream.send_all(head(world, "GET", "/open", connection=None))
                raw = b""
                while b"/open" not in raw:
                    raw += await stream.receive_some(65536)
                assert Answered(raw).status == 200

    with_world(check)


def test_the_next_request_may_come_before_an_answer_has_quite_ended():
    async def check(world):
        async with await connect(world) as stream:
            for _ in range(3):
                await stream.send_all(head(world, "GET", "/late", connection=None))
                raw = b""
                while not raw.endswith(b"late"):
                    part = await stream.receive_some(65536)
                    assert part, "the connection ended"
                    raw += part

    with_world(check)


def test_who_hangs_up_ends_what_it_asked_for():
    async def check(world):
        for path in ("/wait", "/flow"):
            world.waiting = world.cancelled = 0
            async with await connect(world) as stream:
                await stream.send_all(head(world, "POST", path, b"{}"))
                await until(lambda: world.waiting == 1)
            await until(lambda: world.cancelled == 1)
        # nor can a further request hide that nobody is there
        world.waiting = world.cancelled = 0
        async with await connect(world) as stream:
            asked = head(world, "POST", "/wait", b"{}", connection=None)
            await stream.send_all(asked + asked)
            await until(lambda: world.server.connections == 0)
            assert world.waiting == world.cancelled

    with_world(check)


def test_who_does_not_read_is_cut_off(monkeypatch):
    monkeypatch.setattr(connection, "WRITE_S", 0.1)

    async def check(world):
        async with await connect(world) as stream:
            await stream.send_all(head(world, "POST", "/flow", b"{}"))
            await until(lambda: world.cancelled == 1)
        assert (await ask(world)).status == 200

    with_world(check)


def test_a_thousand_at_once_are_refused_early():
    """Connections above the limit, and requests above theirs, hear 429 at once."""

    async def check(world):
        answers = []

        async def one():
            answers.append(await ask(world, "POST", "/wait", {}))

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(one)
            await until(lambda: len(answers) >= 992)
            world.go_on.set()
        assert world.waiting == 8
        statuses = [answer.status for answer in answers]
        assert statuses.count(200) == 8
        assert set(statuses) <= {200, 429, None}  # None: not even told
        told = [answer for answer in answers if answer.status == 429]
        assert len(told) > 100
        assert all(answer.headers["retry-after"] == "1" for answer in told)
        assert all(answer.error["code"] == "busy" for answer in told)
        assert (await ask(world, "POST", "/echo", {})).status == 200

    with_world(check, world={"max_requests": 8}, max_connections=300)


def test_failures_have_a_status_and_a_sentence(caplog):
    async def check(world):
        for failure, status, code, retry in (
            (Busy("32 requests are under way"), 429, "busy", "1"),
            (NoRoute("nobody holds layer0.expert1"), 503, "no_route", "10"),
            (TooSlow("no answer in time"), 504, "too_slow", None),
            (RuntimeError("secret"), 500, "internal_error", None),
            (ExceptionGroup("", [Busy("full")]), 429, "busy", "1"),
            (
                ExceptionGroup("", [Busy("full"), KeyError("k")]),
                500,
                "internal_error",
                None,
            ),
        ):
            world.failure = failure
            answer = await ask(world, "POST", "/fail", {})
            assert (answer.status, answer.error["code"]) == (status, code)
            assert answer.headers.get("retry-after") == retry
            assert "secret" not in answer.error["message"]
        assert json.loads((await ask(world)).body) == {"path": "/open"}

    with_world(check)
    assert caplog.text.count("BROKEN") == 2


def test_a_fault_of_this_machine_is_told_and_ends_the_daemon():
    world = World()
    world.failure = StorageFault("the disk is gone")
    told = []

    async def main():
        async with serving(world):
            told.append(await ask(world, "POST", "/fail", {}))
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(StorageFault)
    assert "the daemon stops" in told[0].error["message"]


def test_addresses_that_cannot_be_listened_on_say_what_to_do():
    for address in (
        "",
        "8080",
        "localhost",
        "example.org:80",
        "127.0.0.1:x",
        "1.2.3.4:70000",
    ):
        with pytest.raises(ConfigFault, match="such as 127.0.0.1:8080"):
            server.bound(address)
    with server.bound("127.0.0.1:0") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigFault, match="is in use"):
            server.bound(f"127.0.0.1:{port}")
    with server.bound("[::1]:0") as sock:
        assert server.url_of(sock).startswith("http://[::1]:")
