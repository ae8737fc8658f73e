"""One answer, whoever computes it: real daemons beside one process (DEC-S1).

The nodes differ in what an answer may come from: one has room for a single expert, two hold
whole layers, one asks for experts in slices.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from blyan_proto.rpc.errors import shared_code
from blyan_tile.model.sampling import Sampling, choose_token
from blyan_tile.model.transformer import LocalModel
from tests.agreement import assert_same, read_model
from tests.bench import made_checkpoint
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.functional.test_one_node import connected, is_idle, memory_kib

pytestmark = pytest.mark.functional

SHAPE = made_checkpoint.TINY | {
    "hidden_size": 256,
    "intermediate_size": 512,  # 1.5 MiB for an expert
}
PROMPT = [(37 * place + 11) % 400 for place in range(21)]
TOKENS = 40
BUSY = shared_code("infer", "busy")
ROUTES = [(0, "experts"), (1, "local"), (2, "local"), (3, "spans"), (3, "experts")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("checkpoint") / "odd"
    made_checkpoint.make(path, SHAPE)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[LocalModel, list[int]]:
    """The model in this process, and its answer."""
    model = read_model(folder)
    return model, answer_of(model)


def answer_of(model: LocalModel) -> list[int]:
    """Return what one process makes of the prompt."""
    cache = model.trunk.new_cache(len(PROMPT) + TOKENS)
    chunk, made = torch.tensor(PROMPT), []
    with torch.no_grad():
        for _ in range(TOKENS):
            logits = model.prefill(chunk, cache).numpy()
            made.append(choose_token(logits, Sampling(), 0))
            chunk = torch.tensor(made[-1:])
    return made


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Network]:
    with opened(tmp_path_factory.mktemp("answers") / "d", folder) as made:
        yield made


@contextmanager
def opened(directory: Path, folder: Path) -> Iterator[Network]:
    """Give four nodes that have the model."""
    with network(directory, 4) as made:
        configure(made[1], spans='"0-1"')
        configure(made[2], spans='"0-1"', memory_mib="2", cache_mib="6")
        configure(made[3], slice_mib="1")
        told = made[0].call("model.import", directory=str(folder))
        wait_for(lambda: all(is_placed(made, node) for node in made.nodes), "placed")
        assert told["name"] == "odd"
        yield made


def configure(node: Daemon, **options: str) -> None:
    """Start a node again with other options of [inference]."""
    file = node.home / "config.toml"
    head, inference = file.read_text().split("[inference]")
    for name, value in options.items():
        lines = inference.splitlines(keepends=True)
        place = next(
            n for n, line in enumerate(lines) if line.startswith(f"# {name} =")
        )
        lines[place] = f"{name} = {value}\n"
        inference = "".join(lines)
    file.write_text(f"{head}[inference]{inference}")
    node.kill()
    node.start()


def is_placed(net: Network, node: Daemon) -> bool:
    """True when this node knows two holders of each expert, and both hosts of all."""
    experts = node.call("expert.list")["experts"]
    hosts = {net[1].peer_id, net[2].peer_id}
    return all(
        hosts
        <= {
            holder["peer_id"]
            for holder in node.call("expert.show", name=expert["name"])["holders"]
        }
        for expert in experts
    )


def asked(**more: Any) -> dict[str, Any]:
    return {"token_ids": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, **more}


def calls_of(answer: dict[str, Any]) -> dict[str, int]:
    return {peer["peer_id"]: peer["calls"] for peer in answer["peers"] if peer["calls"]}


@pytest.mark.parametrize("number, route", ROUTES)
def test_an_answer_is_the_same_by_every_way(net, expected, number, route):
    model, tokens = expected
    node = net[number]
    answer = node.call("infer.generate", **asked(route=route))
    assert_same(model, PROMPT, tokens, answer["token_ids"])
    calls = calls_of(answer)
    if route == "local":
        assert set(calls) == {node.peer_id}
    else:
        assert set(calls) - {node.peer_id}
    if route == "spans":
        assert set(calls) <= {net[1].peer_id, net[2].peer_id}
    if number == 2:
        cache = node.call("expert.cache")
        assert cache["evictions"] >= TOKENS and len(cache["experts"]) == 1
    if number == 3 and route == "experts":
        ready = [
            one["name"] for n in net.nodes for one in n.call("expert.cache")["experts"]
        ]
        assert any("#" in name for name in ready)


def test_a_thousand_at_once_are_answered_or_told_to_come_back(net, expected):
    """`net[2]` has memory for the keys and values of some fifty."""
    model, tokens = expected
    node = net[2]
    node.call("infer.generate", **asked(route="local"))
    before = memory_kib(node.pid)
    told: Counter[str] = Counter()
    with ExitStack() as kept:
        files = []
        for _ in range(20):
            sock = kept.enter_context(connected(node))
            for number in range(50):
                sock.sendall(line(number, max_tokens=40 - 1, route="local"))
            files.append(kept.enter_context(sock.makefile("rb")))
        for file in files:
            left = 50
            while left:
                reply = json.loads(file.readline())
                left -= "method" not in reply
                if "error" in reply:
                    assert reply["error"]["code"] == BUSY, reply
                    told["busy"] += 1
                elif "result" in reply:
                    made = reply["result"]["token_ids"]
                    assert_same(model, PROMPT, tokens[:-1], made)
                    told["answered"] += 1
    assert told["answered"] >= 40 and told["busy"] >= 600
    assert told.total() == told["answered"] + told["busy"] == 1000
    assert memory_kib(node.pid) < before + 64 * 1024, before


def test_who_hangs_up_is_not_computed_for(net):
    node = net[3]
    for route in ("spans", "experts"):
        with connected(node) as sock, sock.makefile("rb") as file:
            for number in range(8):
                sock.sendall(line(number, max_tokens=200, route=route))
            file.readline()
        wait_for(lambda: not node.call("infer.list")["requests"], "given up", 10.0)
        for other in net.nodes:
            wait_for(lambda: is_idle(other.pid), f"{other.name} computes nothing", 10.0)


def line(number: int, **more: Any) -> bytes:
    """Return a request as it travels."""
    request = {"jsonrpc": "2.0", "id": number, "method": "infer.generate"}
    return json.dumps(request | {"params": asked(**more)}).encode() + b"\n"


@pytest.mark.parametrize("route", ["spans", "experts", "auto"])
def test_a_replica_killed_at_a_random_moment_changes_no_token(net, expected, route):
    model, tokens = expected
    asker = net[3]
    wait_for(lambda: asker.status()["peers"] == 3, "everybody meets everybody")
    wait_for(lambda: is_placed(net, asker), "both hosts are known")
    whole = asker.call("infer.generate", **asked(route=route))
    moment = random.randrange(1, TOKENS - 4)
    calls = calls_of(whole)
    victim = max(net.nodes[1:3], key=lambda node: calls.get(node.peer_id, 0))
    with asker.client() as client:
        stream = client.stream("infer.generate", asked(route=route))
        for count, _ in enumerate(stream, 1):
            if count == moment:
                victim.kill()
        again = stream.result
    try:
        assert_same(model, PROMPT, tokens, again["token_ids"])
        assert len(again["token_ids"]) == TOKENS, moment
    finally:
        victim.start()
