"""A second node becomes a validator, changes its key, and retires: real daemons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blyan_proto.rpc.errors import RpcError
from blyanctl.client import Client, NoAnswer, NoDaemon
from tests.functional.harness import BROKEN, wait_for
from tests.functional.processes import is_running
from tests.long import long

pytestmark = pytest.mark.functional
EPOCH_MS = 4_000
SETTINGS = (f"epoch_span_ms={EPOCH_MS}", "validator_bond_micro=1000000")


class Node:
    """One daemon of a network that is not a devnet."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home, self.options = home, options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "blyand", "run", "--home", str(self.home)]
        with (self.home / "stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options], stdout=log, stderr=log
            )
        wait_for(lambda: self.call("node.status"), "the node is ready")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        with Client(self.home, timeout_s=60.0, checked=True) as client:
            return client.call(method, params)

    def address(self) -> str:
        return str(self.call("node.status")["listen"][0])

    def line(self, account: str) -> dict[str, Any]:
        lines = self.call("validator.list")["validators"]
        none = {"status": "", "key": "", "signed": 0}
        return next((line for line in lines if line["account"] == account), none)

    def height(self) -> int:
        return int(self.call("node.status")["finalised"])


def command(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "blyand", *map(str, words), "--json"],
        check=True,
        capture_output=True,
    )
    made: dict[str, Any] = json.loads(done.stdout)
    return made


@contextmanager
def two(folder: Path) -> Iterator[tuple[Node, Node, str]]:
    """Give a founder of weight 3 and a node with money that the genesis does not name."""
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0")
    founder, new = folder / "founder", folder / "new"
    plain = command("init", "--home", founder, *listen, "--roles", "serve,validate")
    other = command("init", "--home", new, *listen, "--roles", "serve,validate")
    card = folder / "founder.json"
    card.write_text(json.dumps(plain))
    genesis = folder / "genesis.json"
    words: list[object] = ["genesis", "create", "--founder", card, genesis]
    for setting in SETTINGS:
        words += ["--setting", setting]
    words += ["--weight", f"{plain['public_key']}=3"]
    words += ["--balance", f"{other['account'].removeprefix('0x')}=50000000"]
    command(*words)
    for home in (founder, new):
        command("init", "--home", home, "--genesis", genesis, "--force")
    nodes = [Node(founder), Node(new)]
    try:
        nodes[0].start()
        nodes[1].options = ("--bootstrap", nodes[0].address())
        nodes[1].start()
        yield nodes[0], nodes[1], other["account"].removeprefix("0x")
    finally:
        for node in nodes:
            if node.process is not None and is_running(node.process.pid):
                os.kill(node.process.pid, signal.SIGTERM)
                node.process.wait(timeout=30)
            logs = [node.home / "stderr"]
            assert not any(BROKEN in log.read_text() for log in logs if log.exists())


def busy(node: Node, condition: Any, what: str) -> None:
    """Wait for something while checkpoints are made: each transfer is one."""

    def step() -> Any:
        try:
            node.call("ledger.send", to="00" * 19 + "01", amount_micro=1)
        except (RpcError, NoDaemon, NoAnswer):
            time.sleep(0.2)
        return condition()

    wait_for(step, what)


@long
def test_a_node_becomes_a_validator_changes_its_key_and_retires(tmp_path: Path):
    with two(tmp_path) as (founder, new, account):
        wait_for(lambda: founder.line(account)["status"], "it has registered by itself")
        assert founder.line(account)["status"] in ("bond", "candidate")
        assert new.call("validator.register")["bond_micro"] == 1_000_000
        busy(founder, lambda: founder.line(account)["status"] == "signing", "it signs")
        busy(
            founder, lambda: founder.line(account)["signed"] > 2, "checkpoints name it"
        )

        old = new.call("key.show")
        made = new.call("key.rotate")
        wait_for(lambda: new.call("key.show")["key"] == made["key"], "it started again")
        held = new.call("key.show")
        assert held["account"] == old["account"] and held["older"] == [old["key"]]
        assert held["peer_id"] == made["peer_id"] != old["peer_id"]
        new.kill()
        new.start()
        assert new.call("key.show")["key"] == made["key"]
        busy(
            founder,
            lambda: founder.line(account)["key"] == made["key"]
            and founder.line(account)["signed"] > 2,
            "the set has the new key, and it signs",
        )

        new.call("validator.retire")
        busy(
            founder,
            lambda: all(
                line["account"] != account
                for line in founder.call("validator.list")["validators"]
            ),
            "it has left",
        )
        new.call("validator.bond", release_micro=1_000_000)
        shown = new.call("validator.show")
        assert shown["unbonding_micro"] == 1_000_000 and shown["releases"]
        assert new.call("slash.list")["slashes"] == []
        height = founder.height()
        busy(founder, lambda: founder.height() > height + 2, "the chain goes on")
