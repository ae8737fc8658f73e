"""A node that prunes and one that archives: what goes, what stays, and who says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blyan_proto.rpc import errors
from blyan_proto.rpc.errors import RpcError
from tests.functional.harness import Daemon, Network, wait_for

pytestmark = pytest.mark.functional

WINDOW_MS = 2_000
GROUP = "layer0.trunk"


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Two nodes of a network that forgets within seconds; the first archives."""
    directory = tmp_path_factory.mktemp("retention") / "d"
    genesis = (
        f"--parameter=retention_span_ms={WINDOW_MS}",
        "--parameter=idle_interval_ms=500",
    )
    made = Network(directory, 2, genesis)
    try:
        made.open()
        made.make_model()
        yield made
    finally:
        made.close()


def blyanctl(node: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blyanctl", "--home", str(node.home), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def history(node: Daemon) -> list[str]:
    """Return the blocks that made the versions of one group, the newest first."""
    told = node.call("expert.history", name=GROUP)["versions"]
    return [version["block"] for version in told]


def test_old_payloads_and_deltas_go_and_the_rest_is_proven(net: Network):
    archive, pruning = net[0], net[1]
    assert "archive" in archive.status()["roles"]
    first = archive.call("model.list")["models"][0]["model_id"]
    pruning.call("pin.add", kind="model", name=first)
    pruning.call("pin.remove", kind="model", name=first)
    numbers = dict(inner_steps=1, batch=1, sequence=16, snapshot_every=2, adopt_every=2)
    net.start_run(rounds=6, **numbers)
    wait_for(
        lambda: archive.call("train.status")["state"] == "finished", "six rounds", 60
    )
    blocks = history(archive)  # of rounds 6 to 1, and the first weights
    assert len(blocks) == 7

    def is_pruned(block: str) -> bool:
        told = pruning.call("chain.block", id=block)
        return told["pruned_ms"] is not None

    # The last two snapshots are of rounds 4 and 6.
    wait_for(lambda: all(map(is_pruned, blocks[3:])), "old payloads go", 30)
    assert not any(map(is_pruned, blocks[:3]))
    assert history(pruning) == blocks[:3]

    # An archive still answers, and the pruned payload says what it is and since when.
    whole = archive.call("chain.block", id=blocks[4], payload=True)
    assert whole["payload"]["round"] == 1 and whole["pruned_ms"] is None
    said = blyanctl(pruning, "chain", "block", blocks[4], "--payload")
    assert said.returncode == 1 and "was pruned at 20" in said.stderr
    assert "archive" in said.stderr and said.stderr.count("\n") == 1
    with pytest.raises(RpcError) as caught:
        pruning.call("chain.block", id=blocks[4], payload=True)
    assert caught.value.code == errors.shared_code("chain", "pruned")
    shown = blyanctl(pruning, "chain", "block", blocks[4], "--json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["pruned_ms"] > 0

    # The deltas went with them.
    old = whole["payload"]["blob"]
    new = archive.call("chain.block", id=blocks[0], payload=True)["payload"]["blob"]
    wait_for(lambda: not has_blob(pruning, old), "an old delta goes", 30)
    assert has_blob(pruning, new) and has_blob(archive, old)

    # What is kept proves the head; what is gone needs the archive.
    proven = pruning.call("tile.replay", group=GROUP)
    assert proven["sound"] and not proven["from_genesis"]
    assert proven["updates"] >= 2 and proven["head"] == blocks[0]
    with pytest.raises(RpcError, match="archive"):
        pruning.call("tile.replay", group=GROUP, from_genesis=True)
    whole_way = archive.call("tile.replay", group=GROUP, from_genesis=True)
    assert whole_way["sound"] and whole_way["from_genesis"]
    assert whole_way["updates"] == 6

    verified = pruning.call("chain.verify")
    assert verified["sound"] and verified["pruned"] > 4, verified["problems"]
    assert archive.call("chain.verify")["pruned"] == 0


def test_pins_survive_a_restart_and_unknown_things_are_named(
    net: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    archive, pruning = net[0], net[1]
    block = history(archive)[3]
    said = blyanctl(pruning, "pin", "add", "block", block)
    assert said.returncode == 1 and "no longer kept here" in said.stderr
    for kind, name in (
        ("block", "ff" * 32),
        ("blob", "ee" * 32),
        ("blob", "zz"),
        ("model", "none such"),
        ("dataset", "none such"),
    ):
        said = blyanctl(pruning, "pin", "add", kind, name)
        assert said.returncode == 1 and said.stderr.count("\n") == 1, said
    assert pruning.call("pin.list")["pins"] == []
    old = archive.call("chain.block", id=block, payload=True)["payload"]["blob"]
    pinned = json.loads(blyanctl(pruning, "pin", "add", "blob", old, "--json").stdout)
    assert pinned["kind"] == "blob" and pinned["bytes"] > 0
    pruning.call("pin.add", kind="dataset", name="corpus")
    pruning.kill()
    monkeypatch.setenv("BLYAND_STORE_DISK_MIB", "1")  # it has more already
    pruning.start()
    assert [pin["kind"] for pin in pruning.call("pin.list")["pins"]] == [
        "dataset",
        "blob",
    ]
    assert has_blob(pruning, old)
    gone = blyanctl(pruning, "pin", "remove", "blob", old)
    assert gone.returncode == 0
    again = blyanctl(pruning, "pin", "remove", "blob", old)
    assert again.returncode == 1 and "not pinned" in again.stderr
    # Without room it keeps nothing new, says so, and goes on.
    status = pruning.status()
    assert status["disk_bytes"] > status["disk_limit_bytes"] == 1 << 20
    assert any("disk budget is full" in text for text in status["warnings"])
    (tmp_path / "text.txt").write_text("more of it\n" * 1000)
    with pytest.raises(RpcError, match="disk budget is full") as caught:
        pruning.call("data.add", directory=str(tmp_path), max_mb=1, name="more")
    assert caught.value.code == errors.shared_code("data", "disk full")
    wait_for(lambda: pruning.status()["finalised"] > status["finalised"], "it follows")
    # Versions between the snapshots went with the restart: this is from the older one.
    blocks = history(pruning)
    proven = pruning.call("tile.replay", group=GROUP)
    assert proven["sound"] and proven["updates"] == 2
    assert (proven["start"], proven["head"]) == (blocks[2], blocks[0])


def has_blob(node: Daemon, root: str) -> bool:
    name = Path(root[:2]) / f"{root[2:]}.tblk"
    return (node.home / "blobs" / name).exists()
