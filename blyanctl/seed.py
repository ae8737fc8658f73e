"""The seed model: made by a network of daemons, proven from genesis, packed into one file.

What was done is not done again: the same command goes on where it was stopped.
docs/training.md, "The seed model".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from blyan_proto.rpc.errors import RpcError
from blyanctl import acts, devnet, live
from blyanctl.client import NoAnswer, NoDaemon
from blyanctl.render import size

PRESET = "demo"
AS_READ = "as-read"  # the model that is made of the packed file, to measure it
# Few learners and long rounds: on one machine bytes are cheap and steps are not. Plain
# averages: at this inner rate outer momentum overshoots (docs/decisions/0035).
RECIPE: dict[str, Any] = {
    "preset": PRESET,
    "inner_steps": 40,
    "batch": 3,
    "sequence": 192,
    "codec": ["LR4:32"],
    "outer_rate": 1.0,
    "outer_momentum": 0.0,
    "from_residual": False,
    "quorum": 1.0,
    "deadline_s": 120.0,
}
ROUNDS = 48
NODES = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--dir", type=Path, default=Path(".seed"), help="where (.seed)")
    parser.add_argument("--nodes", type=int, default=NODES, help=f"daemons ({NODES})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"({ROUNDS})")
    parser.add_argument(
        "--preset", default=PRESET, help=f"size of the model ({PRESET})"
    )
    parser.add_argument("--corpus", help="folder of text; default: Python's library")
    parser.add_argument("--out", type=Path, help="the file (DIR/PRESET.weights)")
    parser.add_argument(
        "--check", type=Path, help="a file that must be what this network packs"
    )
    parser.add_argument("--keep", action="store_true", help="leave the network running")


def run(arguments: argparse.Namespace) -> int:
    """Make the seed; 0 when its weights are proven and the file is the one to check."""
    directory: Path = arguments.dir
    try:
        good = _run(arguments, directory)
    except KeyboardInterrupt:
        acts.say("\nstopping the network; the same command goes on from here")
        devnet.down(directory)
        return 130
    except (devnet.Failed, NoDaemon, NoAnswer) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except RpcError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    if not arguments.keep:
        devnet.down(directory)
    return 0 if good else 1


def _run(arguments: argparse.Namespace, directory: Path) -> bool:
    nodes = acts.start(directory, arguments.nodes)
    first = nodes[0]
    models = [one["name"] for one in acts.call(first, "model.list")["models"]]
    if arguments.preset not in models:
        acts.create(first, arguments.preset, None)
    if not acts.call(first, "data.list")["datasets"]:
        acts.add_corpus(first, arguments.corpus)
    acts.spread(nodes)
    _train(first, arguments)
    acts.say(f"held out: {_loss(first, arguments.preset):.4f} nats per token")
    proven = _prove(first, arguments.preset)
    file = (arguments.out or directory / f"{arguments.preset}.weights").resolve()
    return _pack(first, arguments.preset, file, arguments.check) and proven


def _train(node: devnet.Node, arguments: argparse.Namespace) -> None:
    """Have the run finished: begin it, or look on."""
    if acts.call(node, "train.status")["run"] is None:
        params = {**RECIPE, "preset": arguments.preset, "rounds": arguments.rounds}
        acts.step(
            f"blyanctl train start --model {arguments.preset} {acts.options(params)}"
        )
        acts.call(node, "train.start", {**params, "model": arguments.preset})
    acts.step("blyanctl train watch")
    watched = acts.call(node, "train.watch", {}, live.rounds)
    acts.say(f"{watched['tokens']:,} tokens")


def _loss(node: devnet.Node, model: str) -> float:
    params = {"model": model, "tokens": acts.JUDGED_TOKENS}
    loss: float = acts.call(node, "infer.evaluate", params)["loss"]
    return loss


def _prove(node: devnet.Node, model: str) -> bool:
    """Compute every group again from its first weights; the first node is an archive."""
    acts.step(f"blyanctl tile replay GROUP --model {model} --from-genesis")
    groups = acts.call(node, "model.show", {"model": model})["groups"]
    updates = 0
    for group in groups:
        params = {"group": group["name"], "model": model, "from_genesis": True}
        proof = acts.call(node, "tile.replay", params)
        if not proof["sound"]:
            acts.say(f"{group['name']}: {proof['problem']}")
            return False
        updates += proof["updates"]
    acts.say(f"{updates} updates of {len(groups)} groups, computed again: all sound")
    return True


def _pack(node: devnet.Node, model: str, file: Path, check: Path | None) -> bool:
    """Write the file, measure it as a newcomer reads it, compare it."""
    acts.step(f"blyanctl model pack {model} {file}")
    file.unlink(missing_ok=True)
    params = {"model": model, "file": str(file)}
    packed = acts.call(node, "model.pack", params, live.progress)
    acts.say(f"{size(packed['bytes'])}, round {packed['round']}, root {packed['root']}")
    models = [one["name"] for one in acts.call(node, "model.list")["models"]]
    if AS_READ not in models:
        params = {"preset": model, "name": AS_READ, "weights": str(file)}
        acts.call(node, "model.create", params, live.progress)
    acts.say(f"held out, as read: {_loss(node, AS_READ):.4f} nats per token")
    if check is None:
        return True
    same = check.read_bytes() == file.read_bytes()
    acts.say(f"{check} is {'the same file' if same else 'ANOTHER FILE'}")
    return same
