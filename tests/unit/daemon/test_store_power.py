"""DEC-D2: whatever a power cut leaves, what was acknowledged is there and nothing torn
is believed. A recording medium logs every operation of blobs and intents; each prefix
of the log is replayed with unsynced work dropped, kept or torn, and opened again.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.checkpoint import VoteStage
from blyan_tile import tblock
from blyand.store import intents
from blyand.store.blobs import BlobStore
from blyand.store.intents import AlreadySigned, IntentLog
from tests.unit.daemon.power import SPEEDY, Quick, recorded, violations


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=SPEEDY) as path:
        yield Path(path)


# Blobs


def array(number):
    return np.full(300, LIKE[number], np.float32)


def one_folder(count):
    """Return numbers whose arrays share a folder: folders are slow to make and remove."""
    first = tblock.root_of(np.full(300, 0, np.float32))[0]
    numbers = (
        number
        for number in range(10**5)
        if tblock.root_of(np.full(300, number, np.float32))[0] == first
    )
    return [number for number, _ in zip(numbers, range(count))]


LIKE = one_folder(5)


def store_blobs(medium, folder, acknowledge):
    blobs = BlobStore(folder / "lived", medium=medium)
    for number in range(3):
        root = blobs.put_array(array(number), durable=number != 1)
        acknowledge(root, number != 1)
    path = folder / "outside"
    path.write_bytes(tblock.to_bytes(array(3)))
    acknowledge(blobs.put_file(path), True)
    partial = blobs.begin_fetch(tblock.outline_of(array(4)))
    for index in partial.missing():
        partial.write_leaf(index, array(4).tobytes())
    acknowledge(partial.finish(), True)
    blobs.put_array(array(1))
    acknowledge(tblock.root_of(array(1)), True)


def check_blobs(root, facts):
    blobs = BlobStore(root, medium=Quick(root))
    for blob, durable in facts:
        if durable and not blobs.has(blob):
            yield f"acknowledged blob {blob.hex()[:8]} is gone"
    for number in range(5):
        blob = tblock.root_of(array(number))
        if blobs.has(blob) and blobs.open_array(blob).tobytes() != (
            array(number).tobytes()
        ):
            yield f"blob {number} is torn and believed"
    blobs.close()


# Intents

ACCOUNT = b"a" * 20


def make_promises(medium, folder, acknowledge):
    log = IntentLog(folder / "lived", medium=medium)
    for number in range(5):
        acknowledge("sequence", log.reserve_sequence(ACCOUNT))
        log.record_vote(number, 0, VoteStage.PRECOMMIT, bytes([number]) * 32)
        acknowledge("vote", number)
        log.record_head("layer0.trunk", bytes(32), number, 1, bytes([number]) * 32)
        acknowledge("head", number)
    log.raise_sequence_to(ACCOUNT, 70)
    acknowledge("sequence", 70)


def check_promises(root, facts):
    log = IntentLog(root, medium=Quick(root))
    if log.damaged:
        yield "a power cut looks like damage"
    if facts and not (log.sequence_of(ACCOUNT) or log.highest_vote()):
        yield "the log is gone"
    for kind, number in facts:
        if kind == "sequence" and log.sequence_of(ACCOUNT) < number:
            yield f"sequence {number} would be used again"
        try:
            if kind == "vote":
                log.record_vote(number, 0, VoteStage.PRECOMMIT, None)
                yield f"vote {number} could be given twice"
            if kind == "head":
                log.record_head("layer0.trunk", bytes(32), number, 1, b"x" * 32)
                yield f"head {number} could be given twice"
        except AlreadySigned:
            pass
    if log.reserve_sequence(ACCOUNT) <= max(
        (number for kind, number in facts if kind == "sequence"), default=0
    ):
        yield "a sequence was given twice"
    log.close()


# Small files: bans, addresses of peers, the mark of a damaged database


VERSIONS = itertools.count()


def put_files(medium, folder, acknowledge):
    for _ in range(3):
        for name in ("bans", "peers"):
            version = next(VERSIONS)
            medium.put(name, version.to_bytes(4, "big") * 400)
            acknowledge(name, version)


def check_files(root, facts):
    for name, version in dict(facts).items():  # the newest of each
        raw = (root / name).read_bytes() if (root / name).exists() else b""
        if raw != raw[:4] * 400 or int.from_bytes(raw[:4], "big") < version:
            yield f"{name} is neither version {version} nor a later one"


WORK = {
    "blobs": (store_blobs, check_blobs),
    "intents": (make_promises, check_promises),
    "files": (put_files, check_files),
}


@pytest.mark.parametrize("what", WORK)
@settings(max_examples=3, deadline=None)
@given(kill_at=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_power_cuts(what, kill_at, seed):
    workload, check = WORK[what]
    with tempfile.TemporaryDirectory(dir=SPEEDY) as path:
        log = recorded(Path(path), workload, kill_at)
        assert any(op[0] == "ack" for op in log)
        assert list(violations(Path(path), log, check, seed)) == []


# Syncs of a new home that another one covers before anything is acknowledged, and the
# place of a kill after which they matter: what was visible then was not yet durable.
AFTER_A_KILL = {"blobs": {0: 9}, "intents": {1: 5, 2: 5, 3: 5}, "files": {}}


@pytest.mark.parametrize("what", WORK)
def test_any_one_sync_that_is_missing_is_found(folder, what):
    workload, check = WORK[what]
    log, unseen = recorded(folder / "whole", workload, None), []
    count = sum(op[0] in ("sync", "sync_folder") for op in log)
    assert count > 8
    for nth in range(count):
        root, kill_at = folder / str(nth), AFTER_A_KILL[what].get(nth)
        log = recorded(root, workload, kill_at, nth=nth)
        if next(violations(root, log, check, 0), None) is None:
            unseen.append(nth)
    assert unseen == []


@pytest.mark.parametrize("what", WORK)
@pytest.mark.parametrize("skip", ["sync", "sync_folder"])
def test_a_missing_sync_is_found(folder, what, skip):
    workload, check = WORK[what]
    log = recorded(folder, workload, None, skip=(skip,))
    assert next(violations(folder, log, check, 0), None) is not None


def test_a_missing_sync_of_the_root_is_found(folder):
    log = recorded(folder, store_blobs, None)
    log[:] = [op for op in log if op != ("sync_folder", "")]
    assert next(violations(folder, log, check_blobs, 0), None) is not None


def test_compaction_survives_power_cuts(folder, monkeypatch):
    monkeypatch.setattr(intents, "COMPACT_SLOTS", 6)
    log = recorded(folder, make_promises, 30)
    assert sum(op[0] == "rename" for op in log) > 2
    assert list(violations(folder, log, check_promises, 1)) == []
