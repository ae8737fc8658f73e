"""One daemon: what it refuses, how it ends, and what is left of it after a kill."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from blyan_proto.rpc import errors
from blyan_proto.rpc.errors import RpcError
from blyanctl.client import Client
from blyanctl.trio_client import Client as TaskClient
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.functional.processes import children_of, is_running

pytestmark = pytest.mark.functional
FIRST = b'{"jsonrpc": "2.0", "id": 1, "method": "node.status", "params": {}}\n'


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    with network(tmp_path_factory.mktemp("one") / "d", 1) as made:
        made[0].call("model.create", preset="tiny")
        made[0].call("data.add", max_mb=1, name="corpus")
        wait_for(lambda: len(made[0].hosted()) == 13, "it holds all groups")
        yield made


@pytest.fixture
def node(net: Network) -> Daemon:
    return net[0]


def test_the_readme_s_program_runs_as_it_stands(node: Daemon, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    lines = program.replace(".demo/node1", str(node.home)).splitlines()
    assert len([line for line in lines if line]) <= 7
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Timings(" in done.stdout and done.stdout.rstrip().endswith(" 0")


def test_a_program_in_trio_leaves_an_answer_and_the_daemon_does_too(node: Daemon):
    async def main():
        async with TaskClient(node.home) as client:
            async with client.infer.generate("a", max_tokens=200) as answer:
                async for token in answer:
                    break
            left = token.request
            async with client.infer.generate("a", max_tokens=200) as answer:
                async for token in answer:
                    if token.position == 4:
                        await client.infer.cancel(token.request)
            assert answer.result.finish_reason == "cancelled"
            assert 4 <= len(answer.result.token_ids) < 200
            with trio.fail_after(20):
                while left in [o.request for o in (await client.infer.list()).requests]:
                    await trio.sleep(0.05)

    trio.run(main)


def test_answers_by_schema_and_by_seed(node: Daemon):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "boolean"}},
        "required": ["a", "n"],
        "additionalProperties": False,
    }
    with Client(node.home) as client:
        made = client.infer.generate("a", schema=schema, temperature=1.0, seed=3)
        assert json.loads(made.result.text).keys() == {"a", "n"}
        assert made.result.finish_reason == "end"
        with pytest.raises(RpcError, match="the schema cannot be used"):
            client.infer.generate("a", schema={"type": "x"}).result
        drawn = [
            client.infer.generate(
                "a", max_tokens=8, temperature=1.0, seed=5, top_k=20, top_p=0.9
            ).result.token_ids
            for _ in range(2)
        ]
        assert drawn[0] == drawn[1]


# What cannot work says so in one sentence


def test_commands_that_cannot_work_say_one_sentence(node: Daemon, tmp_path: Path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("not yours")
    spelt = tmp_path / "spelt"
    subprocess.run(blyand("init", spelt), check=True, capture_output=True)
    taken = tmp_path / "taken"
    subprocess.run(blyand("init", taken), check=True, capture_output=True)
    with (spelt / "config.toml").open("a") as file:
        file.write("\n[net2]\n")
    listen = node.address.split("/p2p/")[0]
    cases = [
        (blyand("init", node.home), "is initialised already"),
        (blyand("init", foreign), "is not empty and not a Blyan home"),
        (blyand("run", foreign), "is not a Blyan home"),
        (blyand("run", tmp_path / "none"), "there is no home"),
        (blyand("run", node.home), f"another daemon (pid {node.pid})"),
        (blyand("run", spelt), "the nearest known one is net"),
        (blyand("run", taken, "--listen", listen), "is in use; choose another"),
    ]
    begun = [
        (subprocess.Popen(command, stderr=subprocess.PIPE, text=True), sentence)
        for command, sentence in cases
    ]
    for process, sentence in begun:
        _, said = process.communicate(timeout=90)
        last = said.strip().splitlines()[-1]
        assert process.returncode == 1, said
        assert sentence in last and last.startswith("blyand: "), said
        assert "Traceback" not in said
    assert (foreign / "letter.txt").read_text() == "not yours"
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]


def test_a_record_is_proved_to_somebody_without_a_daemon(node: Daemon, tmp_path: Path):
    genesis, account = node.home / "genesis.json", "ee" * 20
    for what, name in (("expert", "layer0.expert0"), ("balance", account)):
        told = node.call("chain.prove", what=what, name=name)
        assert told["proof_bytes"] < 20_000
        file = tmp_path / "proof.json"
        file.write_text(json.dumps(told))
        command = [sys.executable, "-m", "blyanctl", "--json", "verify", str(file)]
        made = subprocess.run(
            [*command, "--genesis", str(genesis)], capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        shown = json.loads(made.stdout)
        assert shown["checkpoint"] == told["checkpoint"]
        assert shown["present"] == (what == "expert") == (told["record"] is not None)
    refused = subprocess.run(
        [*command, "--checkpoint", "00" * 32], capture_output=True, text=True
    )
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1


def test_status_and_config_of_a_node_alone(node: Daemon):
    status = node.status()
    assert status["peers"] == 0 and status["network_name"] == "blyan-devnet"
    assert "validate" in status["roles"]
    options = {o["name"]: o for o in node.call("node.config")["options"]}
    assert options["net.listen"]["source"] == "command line"
    assert options["log.level"]["source"] == "default"
    assert (node.home.stat().st_mode & 0o777) == 0o700
    assert (node.home / "blyand.sock").stat().st_mode & 0o777 == 0o600
    assert (node.home / "key").stat().st_mode & 0o777 == 0o600


# The control socket


def asking(method: str, **params: object) -> bytes:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return json.dumps(request).encode()


@pytest.mark.parametrize(
    "line, code",
    [
        (b"{", errors.PARSE_ERROR),
        (b"\xff\xfe", errors.PARSE_ERROR),
        (b"[]", errors.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 1}', errors.INVALID_REQUEST),
        (asking("node.statis"), errors.UNKNOWN_METHOD),
        (asking("node.status", verbose=True), errors.INVALID_PARAMS),
        (asking("infer.generate", prompt=7), errors.INVALID_PARAMS),
        (asking("infer.generate", prompt="a", max_tokens=0), errors.INVALID_PARAMS),
        (asking("infer.generate", prompt="a", token_ids=[1]), errors.PROMPT_INVALID),
        (asking("chain.block", id="zz"), errors.INVALID_PARAMS),
        (asking("train.start", preset="tiny", rounds=2**70), errors.INVALID_PARAMS),
        (asking("tile.show", group="layer9.trunk", index=0), errors.TILE_UNKNOWN),
    ],
)
def test_a_bad_request_is_answered_and_the_next_one_too(
    node: Daemon, line: bytes, code: errors.ErrorCode
):
    with connected(node) as sock:
        file = sock.makefile("rb")
        sock.sendall(line + b"\n")
        reply = json.loads(file.readline())
        assert reply["error"]["code"] == code.code, reply
        assert len(reply["error"]["message"]) > 10
        sock.sendall(FIRST)
        assert json.loads(file.readline())["result"]["pid"] == node.pid


def test_a_line_of_ten_megabytes_ends_the_connection_and_nothing_else(node: Daemon):
    before = memory_kib(node.pid)
    with connected(node) as sock:
        try:
            sock.sendall(b"x" * 10_000_000 + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it hung up before it had all of it
        reply = json.loads(sock.makefile("rb").readline())
        assert reply["error"]["code"] == errors.LINE_TOO_LONG.code
        assert "1048576" in reply["error"]["message"]
    assert memory_kib(node.pid) < before + 16 * 1024
    assert node.status()["pid"] == node.pid


def test_clients_that_vanish_leave_no_work_behind(node: Daemon):
    clients = []
    for _ in range(24):
        client = node.client()
        stream = client.stream("infer.generate", {"prompt": "a", "max_tokens": 240})
        next(iter(stream))
        clients.append(client)
    for client in clients:
        client.close()  # 240 tokens for each would take a minute
    wait_for(lambda: is_idle(node.pid), "the answers are given up", 20.0)
    answer = node.call("infer.generate", prompt="a", max_tokens=3)
    assert len(answer["token_ids"]) == 3


def test_use_is_seen_and_a_plan_is_made_before_any_download(node: Daemon):
    before = node.call("expert.usage")["tokens"]
    answer = node.call("infer.generate", prompt="heat", max_tokens=9, ignore_eos=True)
    used = node.call("expert.usage")
    assert used["tokens"] >= before + len(answer["token_ids"])
    assert sum(one["visits"] for one in used["experts"]) > 0
    hot = node.call("expert.suggestions")["hot"]
    assert hot and hot[0]["visits"] == max(one["visits"] for one in used["experts"])
    assert node.call("expert.groups")["tokens"] == used["tokens"]
    wait_for(lambda: node.status()["hardware"], "the hardware is measured")
    assert node.status()["hardware"]["tier"] in (0, 1)
    plan = node.call("model.plan")
    assert (
        plan["ways"][0]["tokens_per_s"] > 0 and "tokens/s by local" in plan["verdict"]
    )


# The end of a daemon


def test_what_was_acknowledged_survives_a_kill_during_training(node: Daemon):
    run = node.call("train.start", preset="tiny", rounds=60)
    wait_for(lambda: node.call("train.status")["finalised_round"] >= 2, "two rounds")
    model = node.call("model.list")["models"][0]["model_id"]
    data = node.call("data.list")["datasets"][0]["dataset_id"]
    lines = node.call("chain.log", limit=1000)["blocks"]
    top = node.status()["finalised"]
    before = [node.call("chain.checkpoint", height=h)["id"] for h in range(1, top + 1)]
    wait_for(lambda: children_of(node.pid), "a worker")
    node.kill()  # asserts that no child outlives it
    node.start()
    after = [node.call("chain.checkpoint", height=h)["id"] for h in range(1, top + 1)]
    assert after == before
    assert node.status()["finalised"] >= top
    for id in (model, data, run["run"], *(line["id"] for line in lines)):
        assert node.call("chain.block", id=id)["id"] == id
    held = node.call("train.status")
    assert held["run"] == run["run"] and held["finalised_round"] >= 2
    rounds = held["finalised_round"]
    wait_for(
        lambda: node.call("train.status")["finalised_round"] > rounds + 1,
        "training goes on",
    )


def test_a_damaged_blob_is_made_again_or_named(node: Daemon):
    """Alone: what follows from other blobs is computed again, the rest is named."""
    node.call("train.stop")
    wait_for(lambda: is_idle(node.pid), "the last round is over", 30.0)
    whole = node.call("infer.generate", prompt="def ", max_tokens=4)
    roots = node.call("tile.roots")
    tile = node.call("tile.list", group="layer1.expert1")["tiles"][0]["weights_root"]
    archive = node.call("data.show")["blob"]
    node.kill()
    for root in (tile, archive):
        path = node.blob(root)
        path.chmod(0o600)
        os.truncate(path, path.stat().st_size // 2)
    node.start()
    wait_for(lambda: node.call("tile.roots") == roots, "the version is made again")
    again = node.call("infer.generate", prompt="def ", max_tokens=4)
    assert again["token_ids"] == whole["token_ids"]
    assert not node.call("data.show")["local"]
    node.call("train.start")
    text = archive[:16]
    wait_for(lambda: text in node.call("train.status")["reason"], "the archive's name")
    node.call("train.stop")


def test_a_stop_leaves_no_process(node: Daemon):
    children = children_of(node.pid)
    node.call("node.stop")
    wait_for(lambda: not is_running(node.pid), "it ends", 30.0)
    wait_for(lambda: not any(map(is_running, children)), "its workers end", 10.0)
    assert not (node.home / "blyand.sock").exists()
    with pytest.raises(Exception, match="No daemon runs"):
        node.status()


def blyand(verb: str, home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "blyand", verb, "--home", str(home), *arguments]


def connected(node: Daemon) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    path = node.home / "blyand.sock"
    sock.connect(os.readlink(path) if path.is_symlink() else str(path))
    return sock


def memory_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def is_idle(pid: int) -> bool:
    """True when the process used less than a tenth of a processor for a while."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(0.5)
    return ticks() - before <= 5  # of 50
