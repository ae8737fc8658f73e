"""Money: transfers executed a second, postings written, an audit of a million accounts.

    python -m tests.bench.bench_ledger [--quick] [--accounts 1000000]

Execution is one checkpoint of signed transfers among accounts that state holds, as the
machine executes it: first alone, then with the new state root, then with the commit
that makes it durable. Signatures are checked at intake and not counted here; the same
number of checks is timed beside it, as the bound that intake sets. The audit adds up
every purse and compares it with the baseline and the statements; its first run writes
the baseline. Its limit in the same run: reading the same rows and doing nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import trio

from blyan_proto.block.block import check_block_signature
from blyan_proto.block.economy import Transfer
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.codec import encode
from blyan_proto.genesis import Balance as Given
from blyand.compute import Threads
from blyand.events import Broadcast
from blyand.ledger.auditor import Auditor
from blyand.metrics import Metrics
from blyand.rules.chain.execute import Moment, begin, execute
from blyand.rules.chain.order import order
from blyand.rules.economy.book import BALANCES, SUPPLY, Balance, Purse, Supply
from blyand.rules.records import CLOCK, Clock
from blyand.rules.view import Overlay
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import LevelStore, open_store
from blyand.store.schema import AREAS
from blyand.store.state import State
from blyand.store.statements import Statements, rows_of
from tests.unit.daemon.chain_world import genesis_of, key, sign_block, some
from tests.vectors import make_proto as made

PAYERS = 256  # a genesis gives to so many
AT_ONCE = 20_000


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


class Book:
    """A view of the rows of one database: what state reads, without its tree."""

    def __init__(self, store: LevelStore) -> None:
        self._store = store

    def get(self, name: bytes) -> bytes | None:
        return self._store.get(AREAS[0].value + name)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for name, value in self._store.scan(AREAS[0].value + prefix):
            yield name[1:], value


def transfers(folder: Path, count: int, repeats: int) -> None:
    """Time checkpoints of `count` transfers each, every payer with its own chain."""
    keys = [key(f"payer {n}") for n in range(PAYERS)]
    given = tuple(Given(one.account, 10**12) for one in keys)
    genesis = genesis_of(keys[:3], some("tail").randbytes(32), balances=given)
    store = open_store(folder / "transfers")
    state, checkpoints = State.load(store), CheckpointStore(store)
    first = begin(genesis)
    checkpoints.put_state(first.changes)
    state.apply(first.changes)
    source = Random(1)
    pure, rooted, whole, postings, checks = [], [], [], 0, 0.0
    for turn in range(1, repeats + 1):
        blocks = [
            sign_block(
                genesis,
                keys[n % PAYERS],
                Transfer(1, keys[source.randrange(PAYERS)].account, 5, 150, ""),
                sequence=turn * count + n,
            )
            for n in range(count)
        ]
        checks += timed(lambda: [check_block_signature(b) for b in blocks])
        blocks = order(blocks)
        clock = CLOCK.get(state)
        assert clock is not None
        moment = Moment(
            clock.height + 1,
            clock.time_ms + 250,
            genesis,
            keys[0].public,
            source.randbytes(32),
        )
        start = time.perf_counter()
        done = execute(state, blocks, moment, [])
        pure.append(time.perf_counter() - start)
        checkpoint = made.CHECKPOINT.__class__(
            **{
                name: getattr(made.CHECKPOINT, name)
                for name in made.CHECKPOINT.__dataclass_fields__
            }
            | {
                "height": moment.height,
                "blocks": tuple(block.id for block in blocks),
                "state_root": state.preview(done.changes),
            }
        )
        rooted.append(time.perf_counter() - start)
        moved = [(one.block, one.postings) for one in done.outcomes]
        rows = [
            *state.writes(done.changes),
            *rows_of(moment.height, moved, done.postings),
        ]
        final = FinalCheckpoint(checkpoint, made.FINAL.votes)
        results = [(int(bool(o.error)), o.error or "") for o in done.outcomes]
        checkpoints.commit_checkpoint(final, done.changes, results, rows)
        state.apply(done.changes)
        whole.append(time.perf_counter() - start)
        postings += sum(len(one.postings) for one in done.outcomes)
    store.close()
    rate = [count / statistics.median(times) for times in (pure, rooted, whole)]
    each = postings / (count * repeats)
    row(
        f"{count:,}",
        *(f"{one:,.0f}" for one in rate),
        f"{rate[2] * each:,.0f}",
        f"{count * repeats / checks:,.0f}",
    )


def fill(store: LevelStore, accounts: int) -> None:
    """Write so many purses, in key order."""
    source = Random(2)
    names = sorted(source.randbytes(20) for _ in range(accounts))
    free = bytes([Purse.FREE])
    for at in range(0, accounts, AT_ONCE):
        rows = [
            (
                AREAS[0].value + b"balance/" + name + free,
                encode(Balance(name, Purse.FREE, 1_000_000)),
            )
            for name in names[at : at + AT_ONCE]
        ]
        store.write_batch([*rows], sync=False)
    overlay = Overlay(Book(store))
    SUPPLY.put(overlay, Supply(accounts * 1_000_000, 0))
    CLOCK.put(overlay, Clock(9, 9, (bytes(32),)))
    changes = [(AREAS[0].value + k, v) for k, v in overlay.changes.items()]
    store.write_batch(changes, sync=True)


def audits(folder: Path, accounts: int) -> None:
    """Time an audit without a baseline, one with it, and reading alone."""
    store = open_store(folder / "audits")
    filled = timed(lambda: fill(store, accounts))
    book = Book(store)
    auditor = Auditor(
        lambda: book,
        Statements(store),
        Broadcast(),
        Threads("bench", 1),
        Metrics(),
        lambda height, text: print(text),
    )

    async def audit() -> None:
        async def silent(purses: int) -> None:
            await trio.lowlevel.checkpoint()

        assert (await auditor.audit(silent)).sound

    first, second = (timed(lambda: trio.run(audit)) for _ in range(2))
    raw = timed(lambda: sum(1 for _ in book.scan(b"balance/")))
    decoded = timed(lambda: sum(1 for _ in BALANCES.scan(book)))
    store.close()
    print(f"\n{accounts:,} accounts, filled in {filled:.1f} s")
    print("\n| audit | seconds | purses a second | over reading |")
    print("| --- | --- | --- | --- |")
    for name, seconds in (
        ("first, writes the baseline", first),
        ("compared with the baseline", second),
        ("read the rows", raw),
        ("read and decode them", decoded),
    ):
        rate = accounts / seconds
        row(name, f"{seconds:.2f}", f"{rate:,.0f}", f"{seconds / raw:.1f}×")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--accounts", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        print(
            "\n| transfers in a checkpoint | executed /s | and rooted /s "
            "| and committed /s | postings /s | signatures checked /s |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for count in (16, 512) if given.quick else (1, 16, 128, 512):
            (path / str(count)).mkdir()
            transfers(path / str(count), count, 3 if given.quick else 15)
        audits(path, 50_000 if given.quick else given.accounts)


if __name__ == "__main__":
    main()
