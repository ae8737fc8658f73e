"""A process that stores blocks, blobs and checkpoints until it is killed (DEC-D1).

It prints a line for each thing after the call that makes it durable has returned. Run
as ``python -m tests.unit.daemon.crash_child HOME``: for every line of its input it forks
one such process, so that what is slow to import is imported once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import trio

from blyan_proto.block.block import Block
from blyand.compute import Threads
from blyand.finality import beacon
from blyand.home import Home, create_home
from blyand.store.commit import GroupCommit
from blyand.stores import Stores, open_stores
from tests.unit.daemon.chain_node import Node
from tests.unit.daemon.chain_world import beat, child_of, key, sign_block

beacon.LINKS = 1024  # a life is short, and a long chain slow to make
WRITERS = 8  # blocks under way at once, so that commits are groups
PER_CHECKPOINT = 20


class DiskNode(Node):
    """A node's chain over real stores and the real group commit."""

    def __init__(self, home: Home, stores: Stores) -> None:
        self.stores = stores
        super().__init__(home.path)

    def open(self) -> None:
        self.store = self.stores.database  # type: ignore[assignment]
        super().open()

    def commit(self) -> GroupCommit:
        return self.stores.commit


def say(*words: object) -> None:
    """Print a line at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def write_blocks(node: DiskNode, name: str) -> None:
    """Store a chain of one author's blocks, link by link."""
    author, made = key(name), []
    while True:
        fields = {"sequence": len(made) + 1}
        if made:
            block: Block = child_of(
                node.genesis, author, beat(load=len(made)), made[-1], **fields
            )
        else:
            block = sign_block(node.genesis, author, beat(), **fields)
        await node.intake.submit(block)
        say("block", block.id.hex())
        made.append(block)


async def write_checkpoints(node: DiskNode) -> None:
    """Order what is pending, and execute it."""

    def is_ordered(id: bytes) -> bool:
        return node.blocks.outcome(id) is not None

    while True:
        await trio.sleep(0.01)
        ready = node.pool.ready(
            is_ordered,
            lambda block: True,
            replace(node.genesis.parameters, checkpoint_blocks=PER_CHECKPOINT),
        )
        final = await node.final(*ready)
        await node.machine.apply(final, ready)
        for block in ready:
            node.pool.remove(block.id)
        say("final", final.checkpoint.height, final.checkpoint.id.hex())


async def write_blobs(stores: Stores, life: int) -> None:
    """Store blobs of a quarter to two leaves, durable ones and derived ones in turn."""
    lane = Threads("blobs", 1)
    rng = np.random.default_rng(life)
    for number in range(10**6):
        array = rng.random((rng.integers(1, 9), 1 << 14), np.float32)
        durable = number % 3 != 2
        root = await lane.run(
            lambda: stores.blobs.put_array(array, durable=durable)  # noqa: B023
        )
        if durable:
            say("blob", root.hex())


async def live(stores: Stores, home: Home, life: int) -> None:
    """Do all of it at once, for ever."""
    node = DiskNode(home, stores)
    async with trio.open_nursery() as nursery:
        await nursery.start(stores.commit.run)
        await nursery.start(node.intake.run)
        for writer in range(WRITERS):
            nursery.start_soon(write_blocks, node, f"life {life} writer {writer}")
        nursery.start_soon(write_checkpoints, node)
        nursery.start_soon(write_blobs, stores, life)


def main() -> None:
    home = create_home(Path(sys.argv[1]))
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            with open_stores(home) as stores:
                say("open", os.getpid())
                trio.run(live, stores, home, int(line))
        status = os.waitpid(pid, 0)[1]
        say("ended", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
