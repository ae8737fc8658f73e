"""A state at a donor, and a joiner that takes it over. Run as a module with a folder, it
restores one state after the other into a database there, saying what has returned; for
every line it takes a byte of its input.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from blyan_proto.checkpoint import FinalCheckpoint
from blyand.store.db import Store, open_store
from blyand.store.frozen import Frozen
from blyand.store.restore import Restore
from blyand.store.state import State
from tests.vectors import make_proto as made

KEYS = 3000
LIMIT = 150  # bytes of a part: several a chunk


def donor(keys: int = KEYS) -> State:
    pairs = ((b"key/%d" % n, b"value %d" % n * (n % 5)) for n in range(keys))
    return State(pairs)


def final_of(root: bytes, height: int = 7) -> FinalCheckpoint:
    """Return a checkpoint that names a state; the store does not look at its votes."""
    checkpoint = replace(made.FINAL.checkpoint, state_root=root, height=height)
    return replace(made.FINAL, checkpoint=checkpoint)


def fetch(
    restore: Restore, frozen: Frozen, chunk: int, say=lambda *words: None
) -> None:
    """Put the parts of a chunk until it is complete."""
    while chunk in restore.missing():
        part = frozen.part(chunk, restore.after(chunk), LIMIT)
        is_whole = restore.put(part)
        say("part", chunk, restore.received_bytes, int(is_whole))


def restore_all(
    store: Store, state: State, say=lambda *words: None, height: int = 7
) -> None:
    """Begin, or go on, and finish."""
    final = final_of(state.root, height)
    frozen = state.freeze()
    restore = Restore.begin(store, final.checkpoint, frozen.manifest)
    say("begun", state.root.hex(), restore.received_bytes)
    for chunk in restore.missing():
        fetch(restore, frozen, chunk, say)
    restore.finish(final)
    say("finished", state.root.hex())


def main() -> None:
    states = [donor(), donor(KEYS - 1)]
    store = open_store(Path(sys.argv[1]))

    def say(*words: object) -> None:
        os.read(0, 1)  # may it go on?
        os.write(1, (" ".join(map(str, words)) + "\n").encode())

    while True:
        held = State.load(store).root
        say("held", held.hex())
        turn = held == states[0].root
        restore_all(store, states[turn], say, height=7 + turn)


if __name__ == "__main__":
    main()
