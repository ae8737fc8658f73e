"""The executed state at a million keys: root updates, proofs, snapshots, restore.

    python -m tests.bench.bench_state [--quick] [--keys 1000000]

Keys are those of balances, values as long as theirs. A root update is what a checkpoint
costs the state: `preview` of its changes, and apart from it the batch that makes them
durable and `apply`, which the event loop runs. Beside them what the tree before this one
did: hash a 256th of all keys for one that changes. A snapshot is `freeze` and all parts
of all chunks; a restore is the same parts into another database, checked. Its limit in
the same run: the same rows written into an empty LevelDB in batches as large.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from blyan_proto.codec import encode
from blyan_proto.digest import Domain, digest
from blyan_proto.state import CHUNKS, StatePart, path_of, verify_state
from blyand.store.buckets import write_entries
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import LevelStore, open_store
from blyand.store.frozen import Frozen
from blyand.store.restore import Restore
from blyand.store.schema import AREAS, META_EXECUTED, u64
from blyand.store.state import State
from tests.vectors import make_proto as made

AT_ONCE = 10_000
TOUCHED = (1, 100, 10_000)
VALUE_BYTES = 64


def key_of(number: int) -> bytes:
    return b"balance/" + digest(Domain.SEED, number.to_bytes(8, "big"))[:20]


def value_of(source: Random) -> bytes:
    return source.randbytes(VALUE_BYTES)


def fill(store: LevelStore, keys: int) -> None:
    """Write the values in key order, as compaction would leave them, and the tree."""
    source = Random(1)
    ordered = sorted(map(key_of, range(keys)))
    for at in range(0, keys, AT_ONCE):
        some = ordered[at : at + AT_ONCE]
        rows = [(AREAS[0].value + key, value_of(source)) for key in some]
        store.write_batch([*rows], sync=False)
    write_entries(store, AREAS[0])


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def resident_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def parts_of(frozen: Frozen, chunk: int) -> Iterator[StatePart]:
    part = frozen.part(chunk, None)
    yield part
    while not part.is_last:
        part = frozen.part(chunk, path_of(part.pairs[-1].key))
        yield part


def row(what: str, *figures: str) -> None:
    print("| " + " | ".join((what, *figures)) + " |", flush=True)


def updates(store: LevelStore, state: State, keys: int, repeats: int) -> None:
    print("\n| keys touched | preview | least … most | batch, synced | apply | bar |")
    print("| --- | --- | --- | --- | --- | --- |")
    source, height = Random(2), 0
    for count, bar in zip(TOUCHED, ("1 ms", "10 ms", "500 ms")):
        times: list[tuple[float, float, float]] = []
        for _ in range(repeats):
            picked = source.sample(range(keys), min(count, keys))
            changes = {key_of(number): value_of(source) for number in picked}
            height += 1
            preview = timed(lambda: state.preview(changes))
            rows = [*state.writes(changes), (META_EXECUTED, u64(height))]
            write = timed(lambda: store.write_batch(rows, sync=True))
            times.append((preview, write, timed(lambda: state.apply(changes))))
        preview, write, apply = (statistics.median(each) * 1e3 for each in zip(*times))
        least, most = (f(t[0] for t in times) * 1e3 for f in (min, max))
        spread = f"{least:.2f} … {most:.2f}"
        figures = f"{preview:.2f} ms", spread, f"{write:.2f} ms", f"{apply:.3f} ms"
        row(f"{count:,}", *figures, f"< {bar}")
    pairs = [(key_of(number), value_of(source)) for number in range(keys // 256)]
    parts = [part for pair in sorted(pairs) for part in pair]
    before = [timed(lambda: digest(Domain.STATE, *parts)) for _ in range(repeats)]
    text = f"{statistics.median(before) * 1e3:.2f} ms"
    row("1, hashing a 256th of all pairs in memory", text, "", "", "", "")


def reading(state: State, keys: int) -> None:
    source, count = Random(3), 2000
    picked = [key_of(source.randrange(keys)) for _ in range(count)]
    read = timed(lambda: [state.get(key) for key in picked]) / count
    proofs = [state.prove(key) for key in picked]
    proved = timed(lambda: [state.prove(key) for key in picked]) / count
    pairs = list(zip(picked, proofs))
    root = state.root
    checked = timed(lambda: [verify_state(root, *pair) for pair in pairs]) / count
    sizes = [len(encode(proof)) for proof in proofs]
    row("one value read", f"{read * 1e6:.1f} us")
    row("a proof, median", f"{statistics.median(sizes):,.0f} bytes")
    row("a proof, largest of 2,000", f"{max(sizes):,} bytes (SYNC-06: < 1 MB)")
    row("a proof made", f"{proved * 1e6:.0f} us")
    row("a proof checked", f"{checked * 1e6:.0f} us")


def snapshot_and_restore(state: State, folder: Path) -> None:
    before = resident_mib()
    row("freeze", f"{timed(state.freeze) * 1e6:.0f} us")
    frozen, taken = state.freeze(), 0
    begun = time.perf_counter()
    for chunk in range(CHUNKS):
        taken += sum(len(encode(part)) for part in parts_of(frozen, chunk))
    export_s = time.perf_counter() - begun
    row("all 256 chunks, encoded", f"{taken / 2**20:,.1f} MiB")
    rate = taken / export_s / 2**20
    row("their export", f"{export_s:.2f} s, {rate:.1f} MiB/s")
    row("resident memory more for it", f"{resident_mib() - before:.0f} MiB")

    checkpoint = replace(made.FINAL.checkpoint, state_root=state.root, height=9)
    final = replace(made.FINAL, checkpoint=checkpoint)
    store = open_store(folder / "restored")
    restore, spent = Restore.begin(store, checkpoint, frozen.manifest), 0.0
    plain, limit = open_store(folder / "plain"), 0.0
    before = resident_mib()
    for chunk in range(CHUNKS):
        for part in parts_of(frozen, chunk):
            spent += timed(lambda: restore.put(part))
            rows = [(b"X" + pair.key, pair.value) for pair in part.pairs]
            limit += timed(lambda: plain.write_batch([*rows], sync=False))
    spent += timed(lambda: restore.finish(final))
    row("restore: written, checked, taken over", f"{spent:.2f} s")
    row("resident memory more for it", f"{resident_mib() - before:.0f} MiB")
    assert State.load(store).root == state.root
    store.close()
    plain.close()
    ratio = f"{spent / limit:.1f} times the limit"
    row("limit: the values alone into LevelDB", f"{limit:.2f} s; {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="30,000 keys, few repeats")
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    keys, repeats = (30_000, 3) if options.quick else (options.keys, 7)
    with tempfile.TemporaryDirectory(prefix="blyan-bench-") as name:
        folder = Path(name)
        store = open_store(folder / "db")
        filled = timed(lambda: fill(store, keys))
        store.close()
        store = open_store(folder / "db")
        before = resident_mib()
        begun = time.perf_counter()
        state = State.load(store)
        opened = time.perf_counter() - begun
        assert len(state) == keys
        print(f"{keys:,} keys with {VALUE_BYTES} bytes each; filled in {filled:.1f} s")
        updates(store, state, keys, repeats)
        print("\n| what | figure |\n| --- | --- |")
        row("open, hashes trusted", f"{opened * 1e3:.0f} ms")
        row("resident memory of the state", f"{resident_mib() - before:.0f} MiB")
        checkpoints = CheckpointStore(store)
        audit = timed(checkpoints.stored_state_root)
        row("open after a kill, all recomputed", f"{audit:.2f} s more")
        reading(state, keys)
        snapshot_and_restore(state, folder)
        store.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row("resident memory at most, all of the above", f"{peak:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
