"""The typed clients: blocking, and for trio."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from blyan_proto.rpc import infer, jsonrpc
from blyan_proto.rpc.errors import RpcError
from blyan_proto.rpc.methods import all_methods
from blyan_proto.rpc.spec import Mismatch
from blyan_proto.rpc.stubs import stubs
from blyanctl import nouns
from blyanctl.client import Client, NoAnswer, NoDaemon
from blyanctl.trio_client import Client as TaskClient
from tests.long import long
from tests.unit.ctl.scripted import Script, scripted

ROOT = Path(__file__).parents[3]
CANCELLED = {"request": "mine"}
TOKENS = [
    infer.generate.write_item(infer.Token("a", 1, position, -0.5, [], 7, None, "mine"))
    for position in (3, 4)
]
GENERATED = {"n": 1}


def script(request):
    """One method with a result, and one that streams."""
    if request["method"] == "infer.cancel":
        return [
            jsonrpc.result(request["id"], {"request": request["params"]["request"]})
        ]
    if request["method"] == "infer.list":
        return [jsonrpc.failure(request["id"], RpcError(901, "everyone is busy"))]
    if request["method"] == "node.stop":
        return None
    return [
        *(jsonrpc.item(request["id"], item) for item in TOKENS),
        jsonrpc.result(request["id"], answered()),
    ]


def answered():
    """Any result of infer.generate."""
    return infer.generate.write_result(
        infer.Generated(
            **{
                **dict.fromkeys(infer.Generated.__annotations__, 0),
                "text": "aa",
                "token_ids": [1, 1],
                "logprobs": [],
                "finish_reason": "length",
                "timings": infer.Timings(None, None, 1.0),
                "peers": [],
                "checkpoint": bytes(32),
                "request": "mine",
            }
        )
    )


def test_the_stubs_are_those_of_the_declarations():
    there = (ROOT / "blyanctl" / "nouns.pyi").read_text()
    assert ast.dump(ast.parse(there)) == ast.dump(ast.parse(stubs())), "run `make docs`"
    for name in all_methods():
        noun, verb = name.split(".")
        assert f"def {verb}" in there and f"{noun}: {noun.title()}" in there


def test_a_blocking_program(tmp_path):
    with scripted(tmp_path, script) as daemon, Client(tmp_path) as client:
        assert client.infer.cancel("mine") == infer.Cancelled("mine")
        answer = client.infer.generate("Once", max_tokens=2, stop=["x"])
        assert [(token.text, token.position) for token in answer] == [
            ("a", 3),
            ("a", 4),
        ]
        assert answer.result.text == "aa" and answer.result.checkpoint == bytes(32)
        with pytest.raises(RpcError, match="busy"):
            client.infer.list()
    assert daemon.requests[0]["params"] == {"request": "mine"}
    params = daemon.requests[1]["params"]
    assert (params["prompt"], params["max_tokens"], params["stop"]) == (
        "Once",
        2,
        ["x"],
    )
    assert None not in params.values()
    assert infer.generate.read_params(params).top_p == 1.0


def test_wrong_use_is_told_before_anything_is_sent(tmp_path):
    client = Client(tmp_path)
    with pytest.raises(AttributeError, match="did you mean 'infer'"):
        client.infe.generate("a")
    with pytest.raises(AttributeError, match="did you mean 'generate'"):
        client.infer.generat("a")
    with pytest.raises(TypeError, match="at most 1 params by place"):
        client.infer.generate("a", "b")
    with pytest.raises(TypeError, match="given twice"):
        client.infer.generate("a", prompt="b")
    with pytest.raises(TypeError, match="max_token"):
        client.infer.generate("a", max_token=1)
    with pytest.raises(Mismatch, match="max_tokens: expected an integer"):
        client.infer.generate("a", max_tokens="1")
    with pytest.raises(NoDaemon, match="No daemon runs"):
        client.infer.generate("a")
    assert nouns.params_of(infer.generate, ("a",), {})["prompt"] == "a"


def test_a_program_in_trio(tmp_path):
    async def main():
        async with TaskClient(tmp_path) as client:
            assert await client.infer.cancel("mine") == infer.Cancelled("mine")
            async with client.infer.generate("Once") as answer:
                with pytest.raises(RuntimeError, match="not complete"):
                    _ = answer.result
                assert [token.position async for token in answer] == [3, 4]
            assert answer.result.text == "aa"
            async with client.infer.generate("Once") as answer:
                async for _ in answer:
                    break  # the connection goes, and the answer with it
            with pytest.raises(RpcError, match="busy"):
                await client.infer.list()
            with pytest.raises(NoDaemon, match="ended before it answered"):
                await client.node.stop()
        with pytest.raises(NoDaemon, match="There is no home"):
            await TaskClient(tmp_path / "none").infer.cancel("x")

    with scripted(tmp_path, script):
        trio.run(main)


def test_a_silent_daemon_in_trio(tmp_path):
    async def main():
        with pytest.raises(NoAnswer, match="did not answer in time"):
            await TaskClient(tmp_path, timeout_s=0.05).infer.cancel("x")

    silent: Script = lambda request: []  # noqa: E731
    with scripted(tmp_path, silent):
        trio.run(main)


PROGRAM = """
from blyanctl.client import Client
from blyanctl.trio_client import Client as TaskClient

client = Client()
reveal_type(client.node.status().peers)
answer = client.infer.generate("a", max_tokens=3)
for token in answer:
    reveal_type(token.logprob)
reveal_type(answer.result.checkpoint)
client.infer.generate(max_tokens="3")
client.infer.nothing()

async def main() -> None:
    async with TaskClient() as tasks:
        reveal_type((await tasks.infer.list()).requests[0].age_s)
        async with tasks.infer.generate("a") as answer:
            async for token in answer:
                reveal_type(token.top[0].text)
"""


@long
def test_a_type_checker_knows_every_method(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    made = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", "program.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    ).stdout
    revealed = [line.split('"')[1] for line in made.splitlines() if "Revealed" in line]
    assert [one.removeprefix("builtins.") for one in revealed] == [
        "int",
        "float",
        "bytes",
        "float",
        "str",
    ]
    wrong = [line for line in made.splitlines() if ": error:" in line]
    assert len(wrong) == 2, made
    assert '"max_tokens"' in wrong[0] and '"nothing"' in wrong[1]
