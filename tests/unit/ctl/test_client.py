"""The blocking client that local Python programs import."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.errors import RpcError
from blyan_proto.rpc.spec import Mismatch
from blyanctl.client import Client, NoAnswer, NoDaemon, home_directory
from tests.unit.ctl.scripted import Script, scripted


def answer(result: dict[str, object], *items: dict[str, object]) -> Script:
    return lambda request: [
        *(jsonrpc.item(request["id"], item) for item in items),
        jsonrpc.result(request["id"], result),
    ]


def test_call_and_stream(tmp_path: Path) -> None:
    items = [{"text": "a"}, {"text": "b"}]
    with scripted(tmp_path, answer({"n": 1}, *items)) as daemon:
        with Client(tmp_path) as client:
            assert client.call("infer.generate", {"prompt": "x"}) == {"n": 1}
            stream = client.stream("infer.generate")
            assert list(stream) == items and stream.result == {"n": 1}
            # one left early does not confuse the next
            next(iter(client.stream("infer.generate")))
            assert client.call("infer.generate") == {"n": 1}
    first = daemon.requests[0]
    assert first == jsonrpc.request(1, "infer.generate", {"prompt": "x"})
    assert [request["id"] for request in daemon.requests] == [1, 2, 3, 4]


def test_an_error_is_an_rpc_error(tmp_path: Path) -> None:
    failed = RpcError(310, "no such block")
    with scripted(tmp_path, lambda r: [jsonrpc.failure(r["id"], failed)]):
        with Client(tmp_path) as client, pytest.raises(RpcError, match="such block"):
            client.call("chain.block", {"id": "00"})


def test_a_checked_client_validates_replies(tmp_path: Path) -> None:
    with scripted(tmp_path, answer({"pid": "7"})):
        assert Client(tmp_path).call("node.stop") == {"pid": "7"}
        with Client(tmp_path, checked=True) as client:
            with pytest.raises(Mismatch, match="pid: expected an integer"):
                client.call("node.stop")
    with scripted_again(tmp_path, answer({"pid": 7})):
        with Client(tmp_path, checked=True) as client:
            assert client.call("node.stop") == {"pid": 7}


def scripted_again(home: Path, script: Script):  # type: ignore[no-untyped-def]
    (home / "blyand.sock").unlink()
    return scripted(home, script)


@pytest.mark.parametrize("script", [lambda r: None, lambda r: [b"hello\n"]])
def test_a_daemon_that_ends_or_is_none(tmp_path: Path, script: Script) -> None:
    with scripted(tmp_path, script):
        with Client(tmp_path) as client, pytest.raises(NoDaemon):
            client.call("node.status")


def test_a_daemon_that_says_nothing(tmp_path: Path) -> None:
    with scripted(tmp_path, lambda request: []):
        with Client(tmp_path) as client, pytest.raises(NoAnswer, match="--timeout"):
            client.call("node.status", timeout_s=0.01)


def test_no_daemon_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="blyand init"):
        Client(tmp_path / "none").call("node.status")
    with pytest.raises(NoDaemon, match="blyand run"):
        Client(tmp_path).call("node.status")
    with scripted(tmp_path, lambda request: None):
        pass
    with pytest.raises(NoDaemon, match="blyand run"):  # the socket of a killed daemon
        Client(tmp_path).call("node.status")


def test_a_long_home_is_reached_through_its_link(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 60) / ("y" * 60)
    home.mkdir(parents=True)
    (home / "blyand.sock").symlink_to(tmp_path / "blyand.sock")
    with scripted(tmp_path, answer({"n": 1})):
        with Client(home) as client:
            assert client.call("node.status") == {"n": 1}


def test_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLYAN_HOME", raising=False)
    assert home_directory() == Path(os.path.expanduser("~/.blyan"))
    monkeypatch.setenv("BLYAN_HOME", "/a")
    assert home_directory() == Path("/a")
    assert home_directory("/b") == Path("/b")
