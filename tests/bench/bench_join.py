"""A fresh node joins a network by a checkpoint: from its start to its first answer.

Behind it stand a long chain, a large state and a model; donors are real daemons on
loopback. Run: python -m tests.bench.bench_join [--quick] [--blocks N] [--keys N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import trio

from blyan_proto.protocols import blobs, blocks, sync
from blyan_proto.rpc.errors import RpcError
from blyanctl.client import Client
from blyand import genesis as genesis_file
from blyand import keystore
from blyand.finality.beacon import BeaconChain
from blyand.home import Home
from blyand.store.buckets import area_of, write_entries
from blyand.store.db import open_store
from tests.bench.bench_sync import BLYAND, call, running
from tests.bench.made_chain import Maker

BLOCKS, KEYS, PRESET = 100_000, 1_000_000, "demo"
QUICK = 2_000, 20_000, "tiny"
VALUE_BYTES = 100
AT_ONCE = 50_000
LIMIT_S = 60.0
PROTOCOLS = (sync.PROTOCOL_ID, blocks.PROTOCOL_ID, blobs.PROTOCOL_ID)


class Extension(Maker):
    """Goes on with the chain of a home whose key is its only validator."""

    step_ms = 1  # chain time must not run ahead of clocks

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.validator = keystore.open(home)
        self.beacon = BeaconChain(self.validator.secret)
        self.genesis = genesis_file.load(home.genesis)


@dataclass
class Row:
    """One join."""

    joined_s: float
    answered_s: float
    whole_s: float
    state_bytes: int
    hosted_bytes: int
    until_answer: dict[str, int]  # bytes received, by protocol
    until_whole: dict[str, int]


def fill_state(database: Path, keys: int) -> None:
    """Put keys into the executed state that no rule reads; the next root has them."""
    store, source = open_store(database), Random(1)
    area = area_of(store)
    for at in range(0, keys, AT_ONCE):
        rows = [
            (
                area.value + b"filler/" + n.to_bytes(8, "big"),
                source.randbytes(VALUE_BYTES),
            )
            for n in range(at, min(keys, at + AT_ONCE))
        ]
        store.write_batch([*rows], sync=False)
    write_entries(store, area)
    store.close()


def make_donor(path: Path, count: int, keys: int, preset: str) -> None:
    """Found a network with a model, then put a chain and a state behind it."""
    init = [*BLYAND, "init", "--home", str(path)]
    roles = ["--roles", "learn,serve,validate,archive", "--json"]
    made = subprocess.run([*init, *roles], check=True, capture_output=True, text=True)
    founder, genesis = path.with_suffix(".founder"), path.with_suffix(".genesis")
    founder.write_text(made.stdout)
    account = json.loads(made.stdout)["account"]
    create = [*BLYAND, "genesis", "create", str(genesis), "--founder", str(founder)]
    create += ["--balance", f"{account}=1000", "--parameter", "work_bits=0"]
    subprocess.run(create, check=True, capture_output=True)
    take = [*init, "--genesis", str(genesis), "--force"]
    subprocess.run(take, check=True, capture_output=True)
    with running(path):
        call(path, "node.status")
        with Client(path, timeout_s=None) as client:
            client.call("model.create", {"preset": preset})
        wait(lambda: answer(path), 120.0)
    home = Home(path)
    fill_state(home.database, keys)
    trio.run(Extension(home).fill, home.database, path / "poison", count)


def answer(home: Path) -> dict[str, Any] | None:
    """Ask for a few tokens; None while this node cannot."""
    try:
        with Client(home, timeout_s=30.0) as client:
            return client.call("infer.generate", {"prompt": "def ", "max_tokens": 4})
    except RpcError:
        return None


def wait(condition: Any, limit_s: float) -> Any:
    """Return the first true value of a condition."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.1)
    raise RuntimeError(f"not within {limit_s:g} s")


def received(home: Path) -> dict[str, int]:
    told = call(home, "node.traffic")["protocols"]
    return {
        one["protocol"]: one["down_bytes"]
        for one in told
        if one["protocol"] in PROTOCOLS
    }


def measure(directory: Path, donors: list[Path], name: str) -> Row:
    """Let a fresh node join by running donors."""
    home, genesis = directory / name, donors[0] / "genesis.json"
    command = [*BLYAND, "init", "--home", str(home), "--genesis", str(genesis)]
    subprocess.run(command, check=True, capture_output=True)
    addresses = [call(donor, "node.status")["listen"][0] for donor in donors]
    pin = call(donors[0], "sync.checkpoint")["checkpoint"]
    began = time.perf_counter()
    with running(home, *addresses, options=["--checkpoint", pin]):
        call(home, "node.status")
        wait(lambda: call(home, "sync.status")["phase"] == "following", 600.0)
        joined = time.perf_counter() - began
        wait(lambda: answer(home), 120.0)
        answered = time.perf_counter() - began
        until_answer = received(home)
        told = call(home, "sync.status")
        hosted = sum(f.stat().st_size for f in (home / "blobs").rglob("*.tblk"))
        wait(lambda: call(home, "sync.status")["blocks_from"] == 1, 600.0)
        whole = time.perf_counter() - began
        return Row(
            joined,
            answered,
            whole,
            told["state_bytes"],
            hosted,
            until_answer,
            received(home),
        )


def bench(directory: Path, count: int, keys: int, preset: str) -> list[tuple[int, Row]]:
    """Make the network, then let one node join by one donor, and one by two."""
    began = time.perf_counter()
    donors = [directory / "donor0", directory / "donor1"]
    make_donor(donors[0], count, keys, preset)
    genesis = donors[0] / "genesis.json"
    command = [*BLYAND, "init", "--home", str(donors[1]), "--genesis", str(genesis)]
    subprocess.run(command, check=True, capture_output=True)
    for part in ("db", "blobs"):
        shutil.copytree(donors[0] / part, donors[1] / part, dirs_exist_ok=True)
    print(f"made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    rows = []
    with ExitStack() as stack:
        stack.enter_context(running(donors[0]))
        rows.append((1, measure(directory, donors[:1], "by-one")))
        address = call(donors[0], "node.status")["listen"][0]
        stack.enter_context(running(donors[1], address))
        rows.append((2, measure(directory, donors, "by-two")))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=json.dumps(QUICK))
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--keys", type=int)
    arguments = parser.parse_args()
    count, keys, preset = QUICK if arguments.quick else (BLOCKS, KEYS, PRESET)
    count, keys = arguments.blocks or count, arguments.keys or keys
    directory = Path(tempfile.mkdtemp(prefix="blyan-bench-"))
    try:
        rows = bench(directory, count, keys, preset)
    finally:
        shutil.rmtree(directory)
    print(
        f"{count:,} blocks, {keys:,} state keys of {VALUE_BYTES} bytes, model {preset}"
    )
    print(f"load average: {os.getloadavg()[0]:.2f}\n")
    print(
        "| donors | state taken over | first answer | history whole | state | hosted "
        "| received by then | of both | received in all |"
    )
    print("| --- " * 9 + "|")
    for donors, row in rows:
        down, all_down = (sum(d.values()) for d in (row.until_answer, row.until_whole))
        ratio = down / (row.state_bytes + row.hosted_bytes)
        verdict = "" if row.answered_s < LIMIT_S else f" (over {LIMIT_S:g})"
        print(
            f"| {donors} | {row.joined_s:.1f} s | {row.answered_s:.1f} s{verdict} "
            f"| {row.whole_s:.1f} s | {row.state_bytes / 2**20:.1f} MiB "
            f"| {row.hosted_bytes / 2**20:.1f} MiB | {down / 2**20:.1f} MiB "
            f"| {100 * ratio:.0f} % | {all_down / 2**20:.1f} MiB |"
        )


if __name__ == "__main__":
    main()
