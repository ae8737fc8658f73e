"""The whole of Blyan on one machine: a network of daemons makes, trains and serves a model.

Everything goes through the control socket, as any user could type it; the commands are
printed as they run. `summary.json` in the devnet's directory holds the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blyan_proto.rpc.errors import RpcError
from blyanctl import acts, devnet, live
from blyanctl.client import Client, NoAnswer, NoDaemon
from blyanctl.render import duration

PRESET = "demo"
WEIGHTS = Path(__file__).with_name("demo.weights")  # what `blyanctl seed` made
ROUNDS = 16
# Of a run on a model that can write already: small steps. Learners know half of the
# experts each, and what suits those halves is not what suits the whole.
TUNING: dict[str, Any] = {"inner_rate": 0.00003}
PROMPT = "def "
TEMPERATURE, SEED = 0.6, 7
TOKENS = 96
LONG_TOKENS = 160  # of the answer in whose middle a node is killed
KILL_AFTER = 24  # tokens
DELTA, BLOBS = "/blyan/delta/1", "/blyan/blobs/1"


@dataclass
class Totals:
    """What the summary says, gathered on the way."""

    nodes: int
    rounds: int
    figures: dict[str, Any] = field(default_factory=dict)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--dir", type=Path, default=Path(".demo"), help="where (.demo)")
    parser.add_argument("--nodes", type=int, default=4, help="daemons (4)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"({ROUNDS})")
    parser.add_argument("--preset", default=PRESET, help="size of the model (demo)")
    parser.add_argument("--corpus", help="folder of text; default: Python's library")
    parser.add_argument("--keep", action="store_true", help="leave the network running")
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="begin with an untrained model, not with the seed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 when everything worked and all nodes hold the same bytes."""
    directory: Path = arguments.dir
    try:
        return _run(arguments, directory)
    except KeyboardInterrupt:
        acts.say("\nstopping the network")
        devnet.down(directory)
        return 130
    except (devnet.Failed, NoDaemon, NoAnswer) as error:
        sys.stderr.write(f"{error}\n")
    except RpcError as error:
        sys.stderr.write(f"{error.message}\n")
    acts.say(f"the logs are in {directory}/node*/log")
    devnet.down(directory)
    return 1


def _run(arguments: argparse.Namespace, directory: Path) -> int:
    began = time.monotonic()
    if list(directory.glob("node[0-9]*")):
        acts.say(f"removing the last demo in {directory}")
        devnet.down(directory)
        devnet.remove(directory)
    nodes = acts.start(directory, arguments.nodes)
    totals = Totals(len(nodes), arguments.rounds)
    acts.create(nodes[0], arguments.preset, first_weights(arguments))
    acts.add_corpus(nodes[0], arguments.corpus)
    acts.spread(nodes)
    asker = _fewest(nodes)
    before = _generate(asker, "before training")
    _train(arguments, nodes, totals)
    after = _generate(asker, "after training")
    _side_by_side(before, after)
    same = _kill_in_the_middle(directory, nodes, asker)
    good = _summary(directory, nodes, totals, after) and same
    acts.say(f"\nthe whole demo took {duration(time.monotonic() - began)}")
    if arguments.keep:
        acts.say("the network is still up; talk to it, for example:")
        for line in (
            f"blyanctl --home {asker.home} infer generate 'import ' --stream",
            f"blyanctl --home {asker.home} expert list",
            f"blyanctl devnet status --dir {directory}",
            f"blyanctl devnet down --dir {directory}",
        ):
            acts.say(f"    .venv/bin/{line}")
    else:
        devnet.down(directory)
    return 0 if good else 1


def first_weights(arguments: argparse.Namespace) -> Path | None:
    """Return the file that the model begins with; None: random weights."""
    return None if arguments.scratch or arguments.preset != PRESET else WEIGHTS


def _fewest(nodes: list[devnet.Node]) -> devnet.Node:
    """Return the node that hosts the fewest experts, not the first one if equal."""

    def count(node: devnet.Node) -> int:
        hosted = acts.call(node, "node.status")["hosted"]
        return sum("expert" in group for one in hosted for group in one["groups"])

    return min(reversed(nodes), key=count)


def _generate(node: devnet.Node, when: str) -> dict[str, Any]:
    acts.step(
        f"blyanctl --home {node.home} infer generate {PROMPT!r} --stream "
        f"--temperature {TEMPERATURE} --seed {SEED}   # {when}"
    )
    return _answer(node, TOKENS, lambda count: None)


def _answer(
    node: devnet.Node, tokens: int, seen: Callable[[int], None]
) -> dict[str, Any]:
    sys.stdout.write(PROMPT)
    with Client(node.home) as client:
        stream = client.stream(
            "infer.generate",
            {
                "prompt": PROMPT,
                "max_tokens": tokens,
                "temperature": TEMPERATURE,
                "seed": SEED,
            },
        )
        for count, item in enumerate(stream, 1):
            sys.stdout.write(live.printable(item["text"]))
            sys.stdout.flush()
            seen(count)
        result: dict[str, Any] = stream.result
    sys.stdout.write("\n")
    calls = {p["peer_id"]: p["calls"] for p in result["peers"]}
    me = acts.call(node, "node.status")["peer_id"]
    away = ", ".join(f"{n} to …{peer[-6:]}" for peer, n in calls.items() if peer != me)
    acts.say(
        f"-- {live.generated(result)}; first token after "
        f"{duration(result['timings']['time_to_first_token_s'] or 0.0)}; expert calls: "
        f"{calls.get(me, 0)} here, {away or 'none away'}"
    )
    return result


def _train(
    arguments: argparse.Namespace, nodes: list[devnet.Node], totals: Totals
) -> None:
    node = nodes[0]
    acts.say("measuring held-out loss before training")
    before = acts.call(node, "infer.evaluate", {"tokens": acts.JUDGED_TOKENS})
    marks = [_traffic(each) for each in nodes]
    tuning = TUNING if first_weights(arguments) else {}
    params = {"rounds": arguments.rounds, "preset": arguments.preset, **tuning}
    acts.step(f"blyanctl train start {acts.options(params)}; blyanctl train watch")
    acts.call(node, "train.start", params)
    began = time.monotonic()
    watched = acts.call(node, "train.watch", {}, live.rounds)
    seconds = time.monotonic() - began
    acts.until(lambda: _adopted(node) >= arguments.rounds, 60.0)
    moved = [_traffic(each) for each in nodes]
    up = sum(now[0] - mark[0] for now, mark in zip(moved, marks))
    down = sum(now[1] - mark[1] for now, mark in zip(moved, marks))
    acts.say("measuring held-out loss after training")
    after = acts.call(node, "infer.evaluate", {"tokens": acts.JUDGED_TOKENS})
    float32 = sum(_float32_bytes(each) for each in nodes)
    totals.figures |= {
        "held_out_loss_before": before["loss"],
        "held_out_loss_after": after["loss"],
        "held_out_tokens": after["tokens"],
        "tokens": watched["tokens"],
        "training_s": seconds,
        "bytes_up": up,
        "bytes_down": down,
        "compression_ratio": float32 / up if up else None,
    }


def _traffic(node: devnet.Node) -> tuple[int, int]:
    """Return bytes of deltas sent to primaries, and of updates fetched from them."""
    protocols = acts.call(node, "node.traffic")["protocols"]
    by_name = {p["protocol"]: p for p in protocols}
    up = by_name.get(DELTA, {"up_bytes": 0})["up_bytes"]
    down = by_name.get(BLOBS, {"down_bytes": 0})["down_bytes"]
    return up, down


def _float32_bytes(node: devnet.Node) -> float:
    """Return the float32 size of the tensors behind the deltas that a node sent."""
    total = 0.0
    with Client(node.home, timeout_s=60.0) as client:
        for item in client.stream("train.watch", {}):
            total += (item["compression_ratio"] or 0.0) * item["bytes_up"]
    return total


def _adopted(node: devnet.Node) -> int:
    rounds: int = acts.call(node, "model.list")["models"][0]["adopted_round"]
    return rounds


def _side_by_side(before: dict[str, Any], after: dict[str, Any]) -> None:
    acts.step("before | after")
    left = live.printable(PROMPT + before["text"]).splitlines() or [""]
    right = live.printable(PROMPT + after["text"]).splitlines() or [""]
    for index in range(min(12, max(len(left), len(right)))):
        one = left[index] if index < len(left) else ""
        other = right[index] if index < len(right) else ""
        acts.say(f"  {one[:36]:<36} | {other[:60]}")


def _kill_in_the_middle(
    directory: Path, nodes: list[devnet.Node], asker: devnet.Node
) -> bool:
    """Kill a node that answers while it answers; the text must come out the same."""
    acts.step("an answer, twice: the second time a node is killed in the middle of it")
    whole = _answer(asker, LONG_TOKENS, lambda count: None)
    me = acts.call(asker, "node.status")["peer_id"]
    calls = sorted((p["calls"], p["peer_id"]) for p in whole["peers"])
    homes = {acts.call(n, "node.status")["peer_id"]: n for n in nodes}
    busiest = [p for _, p in reversed(calls) if p != me]
    if len(nodes) < 4:  # one validator, without which nothing becomes final
        busiest.sort(key=lambda peer: homes[peer] is nodes[0])
    if not busiest:
        acts.say("every expert call was answered here: nobody to kill")
        return True
    victim = homes[busiest[0]]
    pid = acts.call(victim, "node.status")["pid"]

    def kill(count: int) -> None:
        if count == KILL_AFTER:
            os.kill(pid, signal.SIGKILL)
            sys.stdout.write(f"\x1b[7m<{victim.name} killed>\x1b[0m")

    again = _answer(asker, LONG_TOKENS, kill)
    same: bool = again["token_ids"] == whole["token_ids"]
    acts.say(
        f"{victim.name} is gone; the answer is {'the same' if same else 'ANOTHER ONE'}"
    )
    devnet.start(directory, victim, len(nodes))
    acts.say(f"{victim.name} is back")
    return same


def _summary(
    directory: Path,
    nodes: list[devnet.Node],
    totals: Totals,
    generated: dict[str, Any],
) -> bool:
    acts.step("summary")
    first = nodes[0]
    me = acts.call(_fewest(nodes), "node.status")["peer_id"]
    tips = acts.call(first, "chain.tips")["chains"]
    equal = _wait_for_equal_roots(nodes)
    timings = generated["timings"]
    summary = {
        "nodes": totals.nodes,
        "blocks": {one["chain"]: one["blocks"] for one in tips},
        "rounds": totals.rounds,
        **totals.figures,
        "tokens_per_s": timings["tokens_per_s"],
        "time_to_first_token_s": timings["time_to_first_token_s"],
        "remote_expert_calls": {
            p["peer_id"]: p["calls"] for p in generated["peers"] if p["peer_id"] != me
        },
        "tile_roots_equal": equal,
    }
    for key, value in summary.items():
        acts.say(f"  {key:<22} {json.dumps(value)}")
    (directory / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    acts.say(f"written to {directory / 'summary.json'}")
    return equal


def _wait_for_equal_roots(nodes: list[devnet.Node]) -> bool:
    """Ask every node for the roots of what it holds; compare group by group."""
    until = time.monotonic() + 60.0
    while True:
        answers = [acts.call(node, "tile.roots") for node in nodes]
        seen: dict[str, set[str]] = {}
        for answer in answers:
            for group in answer["groups"]:
                seen.setdefault(group["group"], set()).add(group["root"])
        holders = {
            name: sum(any(g["group"] == name for g in a["groups"]) for a in answers)
            for name in seen
        }
        equal = all(len(roots) == 1 for roots in seen.values())
        if equal and all(count >= min(2, len(nodes)) for count in holders.values()):
            acts.say(
                f"{len(seen)} groups asked of {len(nodes)} nodes: all roots are equal"
            )
            return True
        if time.monotonic() > until:
            wrong = sorted(name for name, roots in seen.items() if len(roots) > 1)
            acts.say(f"roots differ or are missing: {', '.join(wrong) or holders}")
            return False
        time.sleep(0.5)
