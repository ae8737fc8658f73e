"""Several daemons on this machine, as one network: up, status, down.

Everything stands in one directory: `nodeN/` are the homes, `devnet.json` says which
ports they took, so that a node that was down comes back where the others look for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blyanctl.client import Client, NoAnswer, NoDaemon
from blyanctl.render import table

STATE = "devnet.json"
NODES = 4  # of a devnet, unless somebody says otherwise
START_S = 90.0
STOP_S = 15.0
LOOPBACK = "/ip4/127.0.0.1/tcp/{port}"
PER_GROUP = (
    "4096"  # all nodes have one address, which elsewhere may open few connections
)
SUPPLY_MICRO = 1_000_000 * 1_000_000


class Failed(Exception):
    """A devnet command did not work; the text says what to do."""


@dataclass
class Node:
    """One daemon of a devnet."""

    name: str
    home: Path

    def status(self) -> dict[str, Any] | None:
        """Return its status, or None while no daemon answers."""
        try:
            with Client(self.home, timeout_s=5.0) as client:
                return client.call("node.status")
        except (NoDaemon, NoAnswer):
            return None


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, about in (
        ("up", "make and start the nodes; those that run already stay as they are"),
        ("status", "show every node"),
        ("down", "stop every node; the homes stay"),
    ):
        made = verbs.add_parser(verb, help=about)
        made.add_argument("--dir", type=Path, default=Path(".devnet"), help="where")
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        if verb == "up":
            made.add_argument("--nodes", type=int, help=f"how many ({NODES})")
            made.add_argument(
                "--validators",
                type=int,
                help="how many of them agree on checkpoints (all; of less than 4, one)",
            )
            for option in ("--setting", "--parameter"):
                made.add_argument(
                    option,
                    action="append",
                    default=[],
                    metavar="NAME=NUMBER",
                    help="of the genesis, if one is made",
                )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    try:
        if arguments.verb == "up":
            nodes = up(
                arguments.dir,
                NODES if arguments.nodes is None else arguments.nodes,
                sys.stderr.write,
                arguments.validators,
                [f"--setting={one}" for one in arguments.setting]
                + [f"--parameter={one}" for one in arguments.parameter],
            )
        elif arguments.verb == "down":
            nodes = down(arguments.dir)
        else:
            nodes = nodes_of(arguments.dir)
    except Failed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if getattr(arguments, "nodes", None) not in (None, len(nodes)):
        sys.stderr.write(
            f"The devnet in {arguments.dir} was made with {len(nodes)} nodes and keeps "
            "them: for another number name another --dir.\n"
        )
    show(nodes, getattr(arguments, "json", False))
    return 0


def show(nodes: Sequence[Node], as_json: bool) -> None:
    """Print every node's state."""
    found = [(node, node.status()) for node in nodes]
    if as_json:
        rows = [
            {"name": node.name, "home": str(node.home), "status": status}
            for node, status in found
        ]
        print(json.dumps({"nodes": rows}))
        return
    rows = [
        {
            "node": node.name,
            "pid": status["pid"] if status else None,
            "peers": status["peers"] if status else None,
            "finalised": status["finalised"] if status else "down",
            "listen": status["listen"][0].split("/p2p/")[0] if status else "",
            "home": str(node.home),
        }
        for node, status in found
    ]
    print(table(rows))


def nodes_of(directory: Path) -> list[Node]:
    """Return the nodes of a directory; Failed when there is no devnet."""
    homes = sorted(directory.glob("node[0-9]*"), key=lambda p: int(p.name[4:]))
    if not homes:
        raise Failed(
            f"There is no devnet in {directory}: `blyanctl devnet up` makes one."
        )
    return [Node(home.name, home) for home in homes]


def up(
    directory: Path,
    count: int,
    say: Callable[[str], Any],
    validators: int | None = None,
    genesis: Sequence[str] = (),
) -> list[Node]:
    """Make what is missing, start what is down, and wait until all answer.

    `validators` None: all nodes; one of fewer than four, since then none may fail.
    `genesis` are further arguments of `blyand genesis create`, if it makes one.
    """
    if not 1 <= count <= 64:
        raise Failed("A devnet has 1 to 64 nodes.")
    if validators is None:
        validators = count if count >= 4 else 1
    if not 1 <= validators <= count:
        raise Failed(f"A devnet of {count} nodes has 1 to {count} validators.")
    directory.mkdir(parents=True, exist_ok=True)
    if not list(directory.glob("node[0-9]*")):
        say(f"making {count} homes in {directory}\n")
        _found(directory, count, validators, genesis)
    nodes = nodes_of(directory)
    if all(node.status() for node in nodes):
        return nodes
    first = _start(directory, nodes[0], len(nodes), None)
    started = [
        _start(directory, node, len(nodes), first["listen"][0], wait=False)
        for node in nodes[1:]
    ]
    del started
    for node in nodes[1:]:
        _ready(directory, node)
    _until(
        lambda: all((n.status() or {"peers": 0})["peers"] >= 1 for n in nodes[1:]),
        "the nodes did not find each other; see the logs in their homes",
    )
    return nodes


def start(directory: Path, node: Node, count: int) -> dict[str, Any]:
    """Start one node that is down, through any node that is up."""
    others = [n for n in nodes_of(directory) if n.name != node.name]
    up_now = [status for status in (other.status() for other in others) if status]
    bootstrap = up_now[0]["listen"][0] if up_now else None
    return _start(directory, node, count, bootstrap)


def join(directory: Path, through: Node, *, by_state: bool = False) -> Node:
    """Make and start one more node that knows nobody but `through`.

    `by_state`: it joins by the state of the newest checkpoint that `through` has.
    """
    node = Node("", directory / f"node{len(nodes_of(directory))}")
    node.name = node.home.name
    status = through.status()
    if status is None:
        raise Failed(f"{through.name} is down; join through another node.")
    genesis = ["--genesis", str(through.home / "genesis.json")]
    _finish_init(*_begin_init(node.home, genesis))
    options = []
    if by_state:
        with Client(through.home) as client:
            options = ["--checkpoint", client.call("sync.checkpoint")["checkpoint"]]
    count = len(nodes_of(directory))
    _start(directory, node, count, status["listen"][0], options=options)
    return node


def down(directory: Path) -> list[Node]:
    """Stop every node and wait until it is gone."""
    nodes = nodes_of(directory)
    pids = []
    for node in nodes:
        status = node.status()
        if status is not None:
            pids.append(status["pid"])
            try:
                with Client(node.home, timeout_s=5.0) as client:
                    client.call("node.stop")
            except (NoDaemon, NoAnswer):
                pass
    until = time.monotonic() + STOP_S
    for pid in pids:
        while _alive(pid) and time.monotonic() < until:
            time.sleep(0.05)
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)
    return nodes


def remove(directory: Path) -> None:
    """Delete a devnet that is down."""
    for home in directory.glob("node[0-9]*"):
        shutil.rmtree(home)
    (directory / STATE).unlink(missing_ok=True)


def _found(
    directory: Path, count: int, validators: int, genesis: Sequence[str]
) -> None:
    """Make the homes: keys first, then one genesis with all of them."""
    begun = [
        _begin_init(
            directory / f"node{index}",
            [
                "--roles",
                "learn,serve"
                + (",validate" if index < validators else "")
                + (",archive" if index == 0 else ""),
            ],
        )
        for index in range(count)
    ]
    file = directory / "genesis.json"
    command = [
        sys.executable,
        "-m",
        "blyand",
        "genesis",
        "create",
        str(file),
        "--force",
    ]
    for home, process in begun:
        made = _finish_init(home, process)
        founder = home / "founder.json"
        founder.write_text(json.dumps(made) + "\n")
        command += ["--founder", str(founder)]
        command += ["--balance", f"{made['account']}={SUPPLY_MICRO // count}"]
    create = subprocess.run([*command, *genesis], capture_output=True, text=True)
    if create.returncode:
        raise Failed(create.stderr.strip() or "`blyand genesis create` failed")
    for home, _ in begun:
        shutil.copyfile(file, home / "genesis.json")


def _begin_init(home: Path, arguments: list[str]) -> tuple[Path, subprocess.Popen[str]]:
    command = [sys.executable, "-m", "blyand", "init", "--home", str(home), "--json"]
    command += ["--max-per-group", PER_GROUP]
    process = subprocess.Popen(
        command + arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return home, process


def _finish_init(home: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate()
    if process.returncode:
        raise Failed(errors.strip() or f"`blyand init` failed for {home}")
    answer: dict[str, Any] = json.loads(output)
    return answer


def _start(
    directory: Path,
    node: Node,
    count: int,
    bootstrap: str | None,
    wait: bool = True,
    options: Sequence[str] = ("--checkpoint", "own"),
) -> dict[str, Any]:
    """Start a node. All nodes are this user's, so what they have is what there is."""
    status = node.status()
    if status is not None:
        return status
    listen = LOOPBACK.format(port=_ports(directory).get(node.name, 0))
    command = [sys.executable, "-m", "blyand", "run", "--home", str(node.home)]
    command += ["--listen", listen, "--daemons-on-host", str(count)]
    command += options
    if bootstrap:
        command += ["--bootstrap", bootstrap]
    errors = (node.home / "stderr").open("wb")
    subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        start_new_session=True,  # Ctrl-C in this terminal is for us, not for it
    )
    errors.close()
    return _ready(directory, node) if wait else {}


def _ready(directory: Path, node: Node) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def answers() -> bool:
        status = node.status()
        if status is not None:
            found.append(status)
        return status is not None

    _until(answers, f"{node.name} did not start; see {node.home / 'stderr'}")
    ports = _ports(directory)
    ports[node.name] = int(found[-1]["listen"][0].split("/")[4])
    (directory / STATE).write_text(json.dumps({"ports": ports}) + "\n")
    return found[-1]


def _ports(directory: Path) -> dict[str, int]:
    try:
        state: dict[str, int] = json.loads((directory / STATE).read_text())["ports"]
    except (OSError, ValueError, KeyError):
        return {}
    return state


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > until:
            raise Failed(otherwise[0].upper() + otherwise[1:] + ".")
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # if it is our child, do not leave a zombie
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
