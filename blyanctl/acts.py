"""What is done with a devnet from outside, said as it is done: for the demo and the seed.

Everything goes through the control socket, as any user could type it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blyan_proto.rpc.errors import RpcError
from blyanctl import devnet, live
from blyanctl.client import Client
from blyanctl.render import size

CORPUS_MB = 12
JUDGED_TOKENS = 65_536  # of the held-out text, before and after
SPREAD_S = 120.0  # for experts and corpus to be where they belong


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def step(text: str) -> None:
    """Print the command that is run now."""
    say(f"\n== {text}")


def call(
    node: devnet.Node,
    method: str,
    params: dict[str, Any] | None = None,
    show: live.Show | None = None,
) -> dict[str, Any]:
    """Call a method of one node; `show` prints what comes meanwhile."""
    with Client(node.home) as client:
        stream = client.stream(method, params or {})
        if show is not None:
            show(stream, sys.stdout)
        result: dict[str, Any] = stream.result
        return result


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait; devnet.Failed when it takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise devnet.Failed("the network took too long.")
        time.sleep(0.2)


def start(directory: Path, count: int) -> list[devnet.Node]:
    """Have the nodes up, new or as they were left."""
    step(f"blyanctl devnet up --nodes {count} --dir {directory}")
    nodes = devnet.up(directory, count, lambda text: say(text.rstrip()))
    devnet.show(nodes, False)
    return nodes


def create(node: devnet.Node, preset: str, weights: Path | None) -> None:
    """Make a model, from packed weights or random ones."""
    file = str(weights.resolve()) if weights else None
    step(f"blyanctl model create {preset}" + (f" --weights {file}" if file else ""))
    params = {"preset": preset, "weights": file}
    made = call(node, "model.create", params, live.progress)
    say(
        f"{made['name']}: {made['parameters']:,} parameters in {made['groups']} groups, "
        f"{size(made['bytes'])}"
    )


def add_corpus(node: devnet.Node, folder: str | None) -> None:
    """Make a dataset of a folder's text, or of Python's library."""
    folder = str(Path(folder).resolve()) if folder else None
    step(f"blyanctl data add {folder or ''} --max-mb {CORPUS_MB}")
    added = call(
        node,
        "data.add",
        {"directory": folder, "max_mb": CORPUS_MB, "name": "corpus"},
        live.progress,
    )
    say(
        f"{added['files']} files, {size(added['bytes'])}; {added['held_out_files']} of "
        f"them ({size(added['held_out_bytes'])}) are held out"
    )


def spread(nodes: list[devnet.Node]) -> None:
    """Wait until every expert has its holders and every node the corpus."""
    say("waiting until every expert is on two nodes")
    until(lambda: all(_is_placed(node) for node in nodes), SPREAD_S)
    until(lambda: all(_has_corpus(node) for node in nodes), SPREAD_S)
    for node in nodes:
        status = call(node, "node.status")
        groups = [g for hosted in status["hosted"] for g in hosted["groups"]]
        experts = [g for g in groups if "expert" in g]
        say(f"{node.name} holds {len(experts)} experts and the trunk")


def _is_placed(node: devnet.Node) -> bool:
    """True once this node sees two live holders of every expert, itself included."""
    try:
        experts = call(node, "expert.list")["experts"]
    except RpcError:
        return False
    return all(expert["holders"] >= 2 for expert in experts)


def _has_corpus(node: devnet.Node) -> bool:
    datasets = call(node, "data.list")["datasets"]
    return any(one["local"] for one in datasets)


def options(params: dict[str, Any]) -> str:
    """Return params as one would type them."""
    return " ".join(
        (
            f"--no-{name.replace('_', '-')}"
            if value is False
            else f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        )
        for name, given in params.items()
        for value in (given if isinstance(given, list) else [given])
    )
