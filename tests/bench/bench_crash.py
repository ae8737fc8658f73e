"""SIGKILL at random instants, many times: what was acknowledged is there afterwards.

First a process that stores blocks, checkpoints and blobs over the real stores; then a
whole daemon that its peers feed, killed again and again while it follows a chain of
blocks and blobs, whose own sends are the acknowledged ones.

Run: python -m tests.bench.bench_crash [--quick]
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from blyan_proto.rpc.errors import RpcError
from blyanctl.client import NoAnswer, NoDaemon
from tests.functional.harness import Daemon, network, wait_for
from tests.unit.daemon.crash_life import Lives, Said, losses

KILLS, DAEMON_KILLS = 50, 10
QUICK_KILLS, QUICK_DAEMON_KILLS = 10, 2


def kill_writers(kills: int, rng: random.Random) -> list[str]:
    """Kill the small process; return a line of the table, or raise for a loss."""
    said: Said = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with Lives(Path(folder) / "home") as lives:
            for life in range(kills):
                said += lives.one(life, rng)
                wrong = list(losses(Path(folder) / "home", said))
                assert not wrong, wrong[:10]
    counted = Counter(words[0] for words in said)
    return _row("stores and intake", kills, counted, time.monotonic() - began)


def kill_daemon(kills: int, rng: random.Random) -> list[str]:
    """Kill a daemon that its peer feeds; both must end equal, and what it sent be there."""
    counted: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with network(Path(folder) / "d", 2) as net:
            feeder, victim = net.nodes
            net.make_model()
            net.start_run(rounds=10_000, deadline_s=1.0)
            sent: list[str] = []  # each was acknowledged by the victim
            for _ in range(kills):
                until = time.monotonic() + rng.uniform(0.5, 4.0)
                while time.monotonic() < until:
                    sent += _say_something(victim, Path(folder), len(sent))
                victim.kill()
                victim.start()
                for block in sent:
                    victim.call("chain.block", id=block)
                told = victim.call("chain.verify")
                assert told["sound"], told["problems"][:10]
            net.end_runs()
            wait_for(lambda: _equal(feeder, victim), "both are equal")
            told = victim.call("chain.verify")
            assert told["sound"], told["problems"][:10]
            counted["block"] = told["blocks"]
            counted["final"] = told["checkpoints"]
            counted["blob"] = told["blobs"]
    return _row("a daemon and its feeder", kills, counted, time.monotonic() - began)


def _say_something(victim: Daemon, folder: Path, number: int) -> list[str]:
    """Have the victim publish a small dataset; return its block when that is done."""
    texts = folder / f"texts{number}"
    texts.mkdir(exist_ok=True)
    for name in ("a", "b", "c"):
        (texts / f"{name}.txt").write_text(f"{name} {number} " * 400)
    try:
        made = victim.call("data.add", directory=str(texts), name=f"texts{number}")
    except (RpcError, NoDaemon, NoAnswer):
        return []
    return [made["dataset_id"]]


def _equal(one: Daemon, other: Daemon) -> bool:
    first, second = one.call("chain.tips"), other.call("chain.tips")
    return bool(first["state_root"] == second["state_root"])


def _row(what: str, kills: int, counted: Counter[str], took_s: float) -> list[str]:
    numbers = [str(counted[word]) for word in ("block", "final", "blob")]
    return [what, str(kills), *numbers, "0", f"{took_s:.0f}"]


def main() -> None:
    quick = "--quick" in sys.argv
    rng = random.Random(time.time_ns() if not quick else 1)
    heads = ["killed", "kills", "blocks", "checkpoints", "blobs", "lost", "s"]
    rows = [heads, ["---"] * len(heads)]
    rows.append(kill_writers(QUICK_KILLS if quick else KILLS, rng))
    rows.append(kill_daemon(QUICK_DAEMON_KILLS if quick else DAEMON_KILLS, rng))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
