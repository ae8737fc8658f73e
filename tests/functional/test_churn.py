"""Six daemons of which some are killed and come back: one graph, no leak."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.functional.harness import Daemon, network, wait_for
from tests.long import long

pytestmark = pytest.mark.functional
KILLED = (1, 2)
HELD = ("connections", "tasks", "files", "resident_bytes")
TASKS_PER_CONNECTION = 10


@long
def test_a_network_stays_whole_while_nodes_are_killed(tmp_path):
    with network(tmp_path / "d", 6, validators=1) as net:
        whole(net.nodes, tmp_path)
        first: dict[str, int] = {}
        for _ in range(2):
            for index in KILLED:
                net[index].kill()
            left = [node for at, node in enumerate(net.nodes) if at not in KILLED]
            whole(left, tmp_path)
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda index: net[index].start(), KILLED))
            whole(net.nodes, tmp_path)
            first = first or footprint(net[0])
        # what a leak holds does not come back; what is under way does
        wait_for(lambda: no_more(footprint(net[0]), first), f"no more than {first}")


def no_more(now: dict[str, int], before: dict[str, int]) -> bool:
    """True if a second identical cycle left nothing behind (DEC-E3)."""
    twice = (
        now["files"] - before["files"]
    )  # peers that dialled us while we dialled them
    return (
        now["connections"] == before["connections"]
        and twice <= len(KILLED)
        and now["tasks"] <= before["tasks"] + 2 + TASKS_PER_CONNECTION * max(0, twice)
        and now["resident_bytes"] <= 1.05 * before["resident_bytes"]
    )


def whole(live: list[Daemon], directory: Path) -> None:
    """All live nodes know each other, and what one publishes reaches all of them."""
    wait_for(
        lambda: all(node.status()["peers"] == len(live) - 1 for node in live),
        f"{len(live)} nodes know each other",
    )
    name = publish(live[-1], directory)
    wait_for(lambda: all(knows(node, name) for node in live), f"{name} is known")


def publish(node: Daemon, directory: Path) -> str:
    """Make a small dataset; return its name."""
    name = f"news {len(list(directory.glob('news*')))}"
    (directory / name).mkdir()
    (directory / name / "text.py").write_text(f"{name} = 1\n" * 200)
    node.call("data.add", directory=str(directory / name), name=name)
    return name


def knows(node: Daemon, name: str) -> bool:
    return any(one["name"] == name for one in node.call("data.list")["datasets"])


def footprint(node: Daemon) -> dict[str, int]:
    """What a node holds at rest: the least of some looks."""
    looks = [node.call("node.resources") for _ in range(8)]
    return {name: min(look[name] for look in looks) for name in HELD}
