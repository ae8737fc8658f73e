"""argv -> request -> output and exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.errors import RpcError
from blyanctl import live
from blyanctl.__main__ import main
from tests.unit.ctl.scripted import scripted

GENERATED = {
    "text": "a time\x1b[2J",
    "token_ids": [1, 2],
    "prompt_tokens": 1,
    "finish_reason": "length",
    "timings": {"time_to_first_token_s": 0.1, "tokens_per_s": 20.0, "total_s": 0.15},
    "peers": [{"peer_id": "p", "calls": 4}],
    "checkpoint": "00" * 32,
    "retries": 0,
}
TOKENS = [
    {"text": "a ", "token_id": 1, "position": 1, "top": []},
    {"text": "time", "token_id": 2, "position": 2, "top": []},
]


def generate(request: dict[str, Any]) -> list[Any]:
    id = request["id"]
    return [
        *(jsonrpc.item(id, token) for token in TOKENS),
        jsonrpc.result(id, GENERATED),
    ]


def test_json_prints_exactly_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(tmp_path, generate) as daemon:
        argv = ["--home", str(tmp_path), "--json", "infer", "generate", "Once"]
        assert main([*argv, "--max-tokens", "2"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == GENERATED and out.count("\n") == 1 and not err
    assert daemon.requests[0]["params"] == {"prompt": "Once", "max_tokens": 2}


def test_text_alone_or_as_it_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--home", str(tmp_path), "infer", "generate", "Once"]
    with scripted(tmp_path, generate):
        assert main(argv) == 0
        assert capsys.readouterr() == ("a time\N{REPLACEMENT CHARACTER}[2J\n", "")
        assert main([*argv, "--stream"]) == 0
        out, err = capsys.readouterr()
        assert out == "a time\n"
        assert (
            err == "2 tokens in 0.15 s, 20.0 tokens/s, 1 node, cut off at its length\n"
        )
        assert main([*argv, "--stream", "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines == [*TOKENS, GENERATED]


def test_the_likeliest_tokens_are_told_with_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [{"text": "\n", "token_id": 3, "logprob": -0.25}]
    told = [{**token, "logprob": -1.5, "top": others} for token in TOKENS]

    def answer(request: dict[str, Any]) -> list[Any]:
        items = [jsonrpc.item(request["id"], token) for token in told]
        return [*items, jsonrpc.result(request["id"], GENERATED)]

    argv = ["--home", str(tmp_path), "infer", "generate", "Once", "--logprobs", "1"]
    with scripted(tmp_path, answer):
        assert main(argv) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first.split() == ['"a', '"', "-1.50", "|", '"\\n"', "-0.25"]
        assert second.startswith('"time" -1.50')
        assert main([*argv, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == GENERATED


def test_raw_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(tmp_path, lambda r: [jsonrpc.result(r["id"], {"n": 1})]) as daemon:
        argv = ["--home", str(tmp_path), "rpc", "any.method", '{"a": [1]}']
        assert main(argv) == 0
    assert capsys.readouterr().out == '{"n": 1}\n'
    assert daemon.requests[0]["method"] == "any.method"
    assert daemon.requests[0]["params"] == {"a": [1]}


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    assert main([*home, "node", "status"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*home, "chain", "block", "zz"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    failed = RpcError(310, "No such block is here.")
    with scripted(tmp_path, lambda r: [jsonrpc.failure(r["id"], failed)]):
        assert main([*home, "chain", "block", "00" * 32]) == 1
    assert capsys.readouterr() == ("", "No such block is here. (error 310)\n")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "watch"], "Stopped watching; the run goes on.\n"),
        (
            ["model", "import", "x"],
            "Interrupted; the same command goes on from there.\n",
        ),
        (["infer", "generate", "x", "--stream"], "Interrupted.\n"),
    ],
)
def test_interrupts_end_cleanly(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    says: str,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    name = f"{command[0]}.{command[1]}"
    table = live.ALWAYS if name in live.ALWAYS else live.ON_REQUEST
    monkeypatch.setitem(table, name, interrupted)
    with scripted(tmp_path, lambda request: []):
        assert main(["--home", str(tmp_path), *command]) == 130
    assert capsys.readouterr().err == says
