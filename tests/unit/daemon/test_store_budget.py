"""The disk budget: never overshot, refused in a sentence, and gone when room returns."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from blyan_tile import tblock
from blyand.errors import OverBudget
from blyand.store.blobs import BlobStore
from blyand.store.budget import Budget

MIB = 1 << 20
SIZE = tblock.outline_of(np.zeros(MIB, np.uint8)).file_bytes


def blob(number: int) -> np.ndarray:
    return np.full(MIB, number, np.uint8)


@pytest.fixture
def budget(tmp_path: Path) -> Budget:
    return Budget(8 * SIZE, tmp_path)


@pytest.fixture
def blobs(tmp_path: Path, budget: Budget):
    store = BlobStore(tmp_path / "blobs", budget=budget)
    yield store
    store.close()


def test_writers_at_once_do_not_overshoot_together(tmp_path, budget, blobs):
    outlines = [tblock.outline_of(blob(n)) for n in range(24)]
    refused: list[str] = []
    began = threading.Barrier(24)
    most = []
    measure = budget._counted

    def slowly() -> int:
        used = measure()
        time.sleep(0.001)  # others run between a look and a reservation
        return used

    budget.count(slowly)

    def look() -> int:
        """Count what lies there; too much if a file moves on in the meantime."""
        size = 0
        for path in (tmp_path / "blobs").rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size if path.is_file() else 0
        return size

    def arrive(number: int) -> None:
        began.wait()
        try:
            if number % 2:
                blobs.put_array(blob(number), durable=number % 4 == 1)
            else:
                partial = blobs.begin_fetch(outlines[number])
                for index in partial.missing():
                    offset = index * 256 * 1024
                    partial.write_leaf(index, blob(number)[offset:][: 256 * 1024].data)
                partial.finish()
        except OverBudget as error:
            refused.append(str(error))
        most.append(min(look() for _ in range(5)))

    threads = [threading.Thread(target=arrive, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = blobs.roots(durable=True) + blobs.roots(durable=False)
    assert len(held) == 8 and len(refused) == 16
    assert blobs.total_bytes == budget.used_bytes() == 8 * SIZE >= max(most)
    assert not list((tmp_path / "blobs" / "tmp").iterdir())
    for text in refused:
        assert text.startswith("the disk budget is full: 8 of 8 MiB are used")
        assert "store.disk_mib" in text and text.count(". ") == 0
    assert budget.trouble is not None and "8 of 8 MiB" in budget.trouble


def test_it_recovers_when_something_goes_and_asks_for_that_itself(blobs, budget):
    roots = [blobs.put_array(blob(n)) for n in range(8)]
    for root in roots:  # what is here needs no room again
        assert blobs.put_array(blob(roots.index(root))) == root
    with pytest.raises(OverBudget):
        blobs.put_array(blob(9))
    budget.make_room = lambda: blobs.delete(roots[0])
    blobs.put_array(blob(9))
    assert not blobs.has(roots[0])
    budget.make_room = lambda: None
    blobs.delete(roots[1])
    budget._refused_s = -1e9
    assert budget.trouble is None
    blobs.put_array(blob(10))


def test_what_is_not_ours_leaves_a_share(blobs, budget):
    budget.is_ours = lambda root: root == tblock.root_of(blob(100))
    for number in range(7):
        blobs.put_array(blob(number))
    with pytest.raises(OverBudget):
        blobs.put_array(blob(7))
    blobs.put_array(blob(100))


def test_files_beside_the_blobs_count(tmp_path, blobs, budget, monkeypatch):
    monkeypatch.setattr("blyand.store.budget.MEASURED_AGAIN_S", 0.0)
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "000001.log").write_bytes(bytes(3 * MIB))
    (tmp_path / "link").symlink_to("/proc/kcore")
    assert 3 * MIB <= budget.used_bytes() < 3 * MIB + 4096
    for number in range(5):
        blobs.put_array(blob(number))
    with pytest.raises(OverBudget):
        blobs.put_array(blob(5))


def test_an_interrupted_arrival_counts_and_may_go_on(tmp_path, budget, blobs):
    outline = tblock.outline_of(blob(1))
    blobs.begin_fetch(outline).close()
    for number in range(2, 9):
        blobs.put_array(blob(number))
    assert budget.used_bytes() == 8 * SIZE
    blobs.close()
    again = BlobStore(tmp_path / "blobs", budget=budget)
    partial = again.begin_fetch(outline)  # its room is its own
    for index in partial.missing():
        partial.write_leaf(index, blob(1)[index * 256 * 1024 :][: 256 * 1024].data)
    partial.finish()
    assert len(again.roots(durable=True)) == 8
    with pytest.raises(OverBudget):
        again.begin_fetch(tblock.outline_of(blob(50)))
    again.close()


def test_without_a_limit_nothing_is_measured_or_refused(tmp_path):
    budget = Budget(None, tmp_path)
    budget.make_room = budget.is_ours = None  # type: ignore[assignment]
    with budget.room(1 << 60, bytes(32)):
        pass
    assert budget.trouble is None
