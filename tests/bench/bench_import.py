"""How fast checkpoints come in and go out, and what a node feels meanwhile.

    python -m tests.bench.bench_import [--quick] [--nodes 3]

Three shapes: the 52 M-parameter Mixtral in float32 and bfloat16, and one of many small
groups, whose blocks are what takes the time. The limit of the same run: copying the same
bytes with a sync, as a file system does it. `status` is the time of a small call to the
importing node meanwhile: what a busy loop would show.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench import made_checkpoint as made
from tests.functional.harness import Daemon, network, wait_for

MANY = made.TINY | {"num_hidden_layers": 16, "num_local_experts": 128}
QUICK_MANY = made.TINY | {"num_hidden_layers": 8, "num_local_experts": 64}


@contextmanager
def status_times(node: Daemon) -> Iterator[list[float]]:
    """Time small calls to a node until the block ends."""
    found: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with node.client() as client:
            while not over.wait(0.02):
                since = time.perf_counter()
                client.call("peer.list", {})
                found.append(time.perf_counter() - since)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def stages(node: Daemon, method: str, **params: object) -> dict[str, float]:
    """Run a call to its end; return how long each stage took, and "all"."""
    took: dict[str, float] = {}
    since = began = time.perf_counter()
    last = "start"
    with node.client() as client:
        for item in client.stream(method, params):
            now = time.perf_counter()
            if item["stage"] != last:
                took[last] = took.get(last, 0.0) + now - since
                since, last = now, item["stage"]
    took[last] = took.get(last, 0.0) + time.perf_counter() - since
    return took | {"all": time.perf_counter() - began}


def copied(folder: Path, target: Path) -> float:
    """Return the seconds that a plain copy with a sync takes."""
    since = time.perf_counter()
    shutil.copytree(folder, target)
    for path in target.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    took = time.perf_counter() - since
    shutil.rmtree(target)
    return took


def rss_mib(pid: int) -> float:
    """Return the most memory that a process had, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(
    node: Daemon, others: list[Daemon], name: str, shape: Mapping[str, int], dtype: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "in"
        made.make(folder, shape, dtype)
        size = sum(path.stat().st_size for path in folder.iterdir())
        copy_s = copied(folder, Path(scratch) / "copy")
        with status_times(node) as times:
            came = stages(node, "model.import", directory=str(folder), name=name)
        wanted = node.call("model.show", model=name)
        since = time.perf_counter()
        wait_for(lambda: all(is_held(other, name) for other in others), "it is held")
        spread_s = time.perf_counter() - since
        went = stages(
            node, "model.export", model=name, directory=str(Path(scratch) / "out")
        )
    groups = len(wanted["groups"])
    publishing = came.get("publishing", 0.0) + came.get("waiting for a checkpoint", 0.0)
    times.sort()
    print(
        f"{name:<12} {size / 1e6:7.1f} {groups:7d} {copy_s:7.2f} "
        f"{came.get('checking the files', 0):7.2f} {came.get('cutting', 0):7.2f} "
        f"{publishing:7.2f} {groups / publishing:8.0f} {came['all']:7.2f} "
        f"{spread_s:7.2f} {went['all']:7.2f} {1e3 * statistics.median(times):7.1f} "
        f"{1e3 * times[int(0.99 * len(times))]:7.1f} {1e3 * times[-1]:7.1f} "
        f"{rss_mib(node.pid):7.0f}",
        flush=True,
    )


def is_held(node: Daemon, name: str) -> bool:
    """True when a node holds what it is to hold, and others all the rest."""
    shown = node.call("model.show", model=name)
    return all(group["holders"] for group in shown["groups"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nodes", type=int, default=3)
    given = parser.parse_args()
    many = QUICK_MANY if given.quick else MANY
    print(
        "shape             MB  groups    copy   check     cut publish groups/s     all "
        "spread  export  status     p99    most MiB RSS"
    )
    print(
        f"{'':<12} {'':7} {'':7}"
        + f"{'s':>8}" * 4
        + f"{'':9}"
        + f"{'s':>8}" * 3
        + f"{'ms':>8}" * 3
    )
    with tempfile.TemporaryDirectory() as folder:
        with network(Path(folder) / "d", given.nodes) as net:
            shapes = [("many", many, "bf16"), ("52M bf16", made.BIG, "bf16")]
            if not given.quick:
                shapes.append(("52M f32", made.BIG, "f32"))
            for name, shape, dtype in shapes:
                measure(net[0], net.nodes[1:], name, shape, dtype)


if __name__ == "__main__":
    main()
