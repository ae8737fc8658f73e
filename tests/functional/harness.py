"""Real daemons on loopback, driven through the client that users have.

Every reply is checked against its declaration. At the end every daemon is stopped by
the id of a process that we started, no child may be left, and no log may hold the word
that stands for a bug of ours.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blyan_proto.rpc.errors import RpcError
from blyanctl import devnet
from blyanctl.client import Client, NoAnswer, NoDaemon
from tests.functional.processes import children_of, daemons_of, is_running

BROKEN = "BROKEN"
PATIENCE_S = 120.0
SHARED = {"embed"} | {
    f"layer{n}.{part}" for n in (0, 1) for part in ("trunk", "router")
}


def wait_for(
    condition: Callable[[], Any],
    what: str,
    timeout_s: float = PATIENCE_S,
    seen: Callable[[], Any] = str,
) -> Any:
    """Return the first true value of `condition`, asked for again until it is.

    `seen` tells, where it never is, what there is instead.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            if value := condition():
                return value
        except (RpcError, NoDaemon, NoAnswer):
            pass
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s:g} s: {what} {seen()}")
        time.sleep(0.1)


# Waits for the end of the tests, however they end, and leaves no daemon of theirs.
GUARD = """
import os, signal, sys
from tests.functional.processes import daemons_of
sys.stdin.read()
for pid in daemons_of(sys.argv[1]):
    os.kill(pid, signal.SIGKILL)
"""


class Daemon:
    """One node of a test network."""

    def __init__(self, network: Network, node: devnet.Node) -> None:
        self.network = network
        self.node = node
        self.home = node.home
        self.name = node.name
        self.pid = 0
        self.peer_id = ""
        self.address = ""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return a call's result; RpcError, NoDaemon and NoAnswer as they are."""
        with Client(self.home, timeout_s=PATIENCE_S, checked=True) as client:
            return client.call(method, params)

    def client(self) -> Client:
        return Client(self.home, timeout_s=PATIENCE_S, checked=True)

    def status(self) -> dict[str, Any]:
        return self.call("node.status")

    def hosted(self) -> set[str]:
        """Return the names of the groups whose finalised version is here."""
        return {name for one in self.status()["hosted"] for name in one["groups"]}

    def log(self) -> str:
        text = (self.home / "log").read_text(errors="replace")
        return text + (self.home / "stderr").read_text(errors="replace")

    def blob(self, root: str) -> Path:
        """Return the file of a blob, durable or derived."""
        files = (self.home / "blobs").rglob("*.tblk")
        return next(
            path for path in files if (path.parent.name + path.stem).endswith(root)
        )

    def wait_for_log(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the log holds `text`."""
        wait_for(lambda: text in self.log(), f"{self.name} logs {text!r}", timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait until the process and its workers are gone."""
        children = children_of(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: not is_running(self.pid), f"{self.name} is gone")
        wait_for(
            lambda: not any(map(is_running, children)),
            f"{self.name} leaves no child",
            15.0,
        )

    def start(self) -> None:
        """Start it where it was; wait until it answers."""
        devnet.start(self.network.directory, self.node, len(self.network.nodes))
        self.note()

    def note(self) -> None:
        """Remember the process's id: the one that may be killed."""
        status = self.status()
        self.pid, self.peer_id = status["pid"], status["peer_id"]
        self.address = status["listen"][0]


class Network:
    """A devnet in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        count: int,
        genesis: Sequence[str] = (),
        validators: int | None = None,
    ) -> None:
        self.directory = directory
        self.count = count
        self.genesis = genesis
        self.validators = validators  # None: as devnet decides
        self.nodes: list[Daemon] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-c", GUARD, str(directory)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )

    def open(self) -> None:
        """Make and start the nodes."""
        devnet.up(
            self.directory,
            self.count,
            lambda text: None,
            self.validators,
            genesis=self.genesis,
        )
        self.nodes = [Daemon(self, node) for node in devnet.nodes_of(self.directory)]
        for node in self.nodes:
            node.note()

    def __getitem__(self, index: int) -> Daemon:
        return self.nodes[index]

    def join(self, through: Daemon, *, by_state: bool = False) -> Daemon:
        """Add a node that knows nobody but `through`."""
        made = devnet.join(self.directory, through.node, by_state=by_state)
        node = Daemon(self, made)
        self.nodes.append(node)
        node.note()
        return node

    def make_model(self, megabytes: int = 1) -> None:
        """Create the tiny model and a small dataset, and wait until all is placed."""
        first = self.nodes[0]
        first.call("model.create", preset="tiny")
        first.call("data.add", max_mb=megabytes, name="corpus")
        wait_for(lambda: all(map(is_placed, self.nodes)), "every expert on two nodes")
        wait_for(lambda: all(map(has_corpus, self.nodes)), "the corpus everywhere")

    def start_run(self, **settings: Any) -> int:
        """Have a run under way, in which all nodes take part; return its rounds."""
        joined = [node.call("train.status") for node in self.nodes]
        if any(
            told["state"] in ("off", "finished")
            or not told["run"]
            or told["finalised_round"] >= told["rounds"]
            for told in joined
        ):
            asked = {"preset": "tiny", "dataset": "corpus", **settings}
            started = self.nodes[0].call("train.start", **asked)
        else:
            started = self.nodes[0].call("train.start")
        for node in self.nodes[1:]:
            wait_for(
                lambda: node.call("train.status")["run"] == started["run"], "joins"
            )
            node.call("train.start")
        rounds: int = started["rounds"]
        return rounds

    def end_runs(self) -> None:
        """Let all nodes stop learning; the run stays open."""
        for node in self.nodes:
            node.call("train.stop")

    def group_roots(self, *nodes: Daemon) -> dict[str, set[str]]:
        """Return the roots that `nodes` tell of each group that they hold."""
        found: dict[str, set[str]] = {}
        for node in nodes:
            for group in node.call("tile.roots")["groups"]:
                found.setdefault(group["group"], set()).add(group["root"])
        return found

    def wait_for_equal_roots(self, *nodes: Daemon) -> None:
        """Wait until `nodes` hold all there is, every group at one version."""

        def equal() -> bool:
            if not all(SHARED < node.hosted() for node in nodes):
                return False
            roots = self.group_roots(*nodes)
            return len(roots) == 13 and all(len(one) == 1 for one in roots.values())

        def seen() -> str:
            roots = self.group_roots(*nodes)
            apart = {group: found for group, found in roots.items() if len(found) > 1}
            lacking = {node.name: SHARED - node.hosted() for node in nodes}
            return f"but {apart} of {len(roots)} groups; lacking: {lacking}"

        wait_for(equal, "equal roots on all nodes", seen=seen)

    def close(self) -> None:
        """Stop everything; complain about what should not be there."""
        pids = daemons_of(self.directory)
        children = [child for pid in pids for child in children_of(pid)]
        try:
            devnet.down(self.directory)
            for pid in pids + children:
                wait_for(lambda: not is_running(pid), f"process {pid} ends", 20.0)
        except devnet.Failed:
            pass  # it never came so far as to have nodes
        finally:
            self._guard.communicate()  # it kills what did not end by itself
        broken = [
            line
            for node in self.nodes
            for line in node.log().splitlines()
            if BROKEN in line
        ]
        assert not broken, "\n".join(broken)[:4000]


@contextmanager
def network(
    directory: Path,
    count: int,
    genesis: Sequence[str] = (),
    validators: int | None = None,
) -> Iterator[Network]:
    """Give a network of `count` nodes and end it.

    `genesis` are arguments of `blyand genesis create`.
    """
    made = Network(directory, count, genesis, validators)
    try:
        made.open()
        yield made
    finally:
        made.close()


def is_placed(node: Daemon) -> bool:
    """True when this node sees two holders of every expert, and serves its own."""
    experts = node.call("expert.list")["experts"]
    return all(expert["holders"] >= 2 for expert in experts)


def has_corpus(node: Daemon) -> bool:
    return any(one["local"] for one in node.call("data.list")["datasets"])
