"""DEC-D2: whatever a power cut leaves, what was acknowledged is there and nothing torn
is believed. A recording medium logs every operation of blobs and intents; each prefix
of the log is replayed with unsynced work dropped, kept or torn, and opened again.
"""

import os
import random
import shutil
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
from blyand.store.medium import Medium

# Nothing here waits for a disk, so memory will do, where there is some.
SPEEDY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=SPEEDY) as path:
        yield Path(path)


class Killed(BaseException):
    """The process ends here; what it wrote stays in the kernel."""


class Quick(Medium):
    """A medium that leaves durability to the kernel: the replay decides about it."""

    def sync(self, fd):
        pass

    def sync_folder(self, name):
        pass


class Log(list):
    """Operations; `inodes` gives each file a number that is never used again."""

    def __init__(self):
        super().__init__()
        self.inodes = {}

    def born(self, fd):
        self.inodes[os.fstat(fd).st_ino] = len(self)
        return len(self)

    def inode(self, fd):
        return self.inodes[os.fstat(fd).st_ino]


class Recording(Quick):
    """Logs what it did, and may be killed after some operation."""

    def __init__(self, root, log, skip=()):
        super().__init__(root)
        self.log, self.skip = log, skip
        self.kill_at = None

    def note(self, *operation):
        self.log.append(operation)
        if self.kill_at is not None:
            self.kill_at -= 1
            if self.kill_at < 0:
                raise Killed

    def create(self, name):
        fd = super().create(name)
        self.note("create", name, self.log.born(fd))
        return fd

    def allocate(self, fd, size):
        super().allocate(fd, size)
        self.note("size", self.log.inode(fd), size)

    def truncate(self, fd, size):
        super().truncate(fd, size)
        self.note("size", self.log.inode(fd), size)

    def write(self, fd, offset, piece):
        super().write(fd, offset, piece)
        self.note("write", self.log.inode(fd), offset, bytes(piece))

    def sync(self, fd):
        if "sync" not in self.skip:
            self.note("sync", self.log.inode(fd))

    def rename(self, old, new):
        super().rename(old, new)
        self.note("rename", old, new)

    def adopt(self, path, new):
        raw = path.read_bytes()
        super().adopt(path, new)
        fd = self.open(new)
        number = self.log.born(fd)
        self.close_file(fd)
        self.log.append(("write", number, 0, raw))
        self.note("create", new, number)

    def unlink(self, name):
        super().unlink(name)
        self.note("unlink", name)

    def make_folder(self, name):
        super().make_folder(name)
        self.note("folder", name)

    def sync_folder(self, name):
        if "sync_folder" not in self.skip:
            self.note("sync_folder", name)


def torn(content, operation, rng):
    """Apply a write or a change of size, or half of it, or nothing."""
    fate = rng.choice(("all", "none", "half"))
    if fate == "none":
        return
    if operation[0] == "size":
        resize(content, operation[2] if fate == "all" else operation[2] // 2)
        return
    _, _, offset, piece = operation
    if fate == "half":
        # sectors may reach the disk in any order; a slot of 128 bytes in one piece
        cut = len(piece) // 2 if len(piece) > 512 else rng.choice((0, len(piece)))
        resize(content, max(len(content), offset + len(piece)))
        piece = piece[:cut]
    overwrite(content, offset, piece)


def resize(content, size):
    if size > len(content):
        content.extend(bytes(size - len(content)))
    else:
        del content[size:]


def overwrite(content, offset, piece):
    resize(content, max(len(content), offset + len(piece)))
    content[offset : offset + len(piece)] = piece


def survivors(log, mode, rng):
    """Return {folder: {base: bytes}} that a power cut after `log` leaves."""
    contents, waiting = {}, {}  # inode -> bytearray, unsynced operations
    folders, synced = {"": []}, {"": 0}  # folder -> its changes, how many are durable
    for op in log:
        if op[0] == "create":
            contents.setdefault(op[2], bytearray())
            folder, _, base = op[1].rpartition("/")
            folders[folder].append((base, op[2]))
        elif op[0] in ("write", "size"):
            contents.setdefault(op[1], bytearray())
            waiting.setdefault(op[1], []).append(op)
        elif op[0] == "sync":
            for pending in waiting.pop(op[1], ()):
                apply_fully(contents[op[1]], pending)
        elif op[0] == "rename":
            (old, _, old_base), (new, _, new_base) = (
                name.rpartition("/") for name in op[1:]
            )
            moved = names(folders[old])[old_base]
            if old == new:
                folders[old].append((old_base, None, new_base, moved))
            else:
                folders[old].append((old_base, None))
                folders[new].append((new_base, moved))
        elif op[0] == "unlink":
            folder, _, base = op[1].rpartition("/")
            folders[folder].append((base, None))
        elif op[0] == "folder" and op[1] not in folders:
            folders[op[1]], synced[op[1]] = [], 0
            folders[""].append((op[1], "folder"))
        elif op[0] == "sync_folder":
            synced[op[1]] = len(folders[op[1]])
    for inode, pending in waiting.items():
        for op in pending:
            if mode == "keep":
                apply_fully(contents[inode], op)
            elif mode == "torn":
                torn(contents[inode], op, rng)
    left = {}
    for folder, changes in folders.items():
        least = synced[folder]
        count = {"drop": least, "keep": len(changes)}.get(
            mode, rng.randint(least, len(changes))
        )
        left[folder] = names(changes[:count])
    there = {name for name, what in left[""].items() if what == "folder"} | {""}
    return {
        folder: {
            base: bytes(contents[inode])
            for base, inode in entries.items()
            if inode != "folder"
        }
        for folder, entries in left.items()
        if folder in there
    }


def names(changes):
    found = {}
    for change in changes:
        for base, what in zip(change[::2], change[1::2]):
            found[base] = what
    return {base: what for base, what in found.items() if what is not None}


def apply_fully(content, op):
    if op[0] == "size":
        resize(content, op[2])
    else:
        overwrite(content, op[2], op[3])


def materialise(root, left):
    root.mkdir()
    for folder, files in left.items():
        (root / folder).mkdir(exist_ok=True)
        for base, raw in files.items():
            (root / folder / base).write_bytes(raw)


def recorded(folder, workload, kill_at, skip):
    """Run `workload` until it is killed, then again in a new process; return the log."""
    log = Log()
    for life in (kill_at, None):
        medium = Recording(folder / "lived", log, skip)
        medium.kill_at = life
        try:
            workload(medium, folder, lambda *fact: log.append(("ack", *fact)))
        except Killed:
            continue
        finally:
            medium.close()
    return log


def violations(folder, log, check, seed):
    """Yield what is wrong after a power cut at each place of the log."""
    rng, seen = random.Random(seed), set()
    for length in range(len(log) + 1):
        facts = tuple(op[1:] for op in log[:length] if op[0] == "ack")
        for mode in ("drop", "keep", "torn"):
            left = survivors(log[:length], mode, rng)
            if (facts, repr(left)) in seen:
                continue
            seen.add((facts, repr(left)))
            root = folder / f"{length}{mode}"
            materialise(root, left)
            for wrong in check(root, facts):
                yield f"{wrong} after {length} operations, {mode}"
            shutil.rmtree(root)


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
    if facts and log.fresh:
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


WORK = {"blobs": (store_blobs, check_blobs), "intents": (make_promises, check_promises)}


@pytest.mark.parametrize("what", WORK)
@settings(max_examples=3, deadline=None)
@given(kill_at=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_power_cuts(what, kill_at, seed):
    workload, check = WORK[what]
    with tempfile.TemporaryDirectory(dir=SPEEDY) as path:
        log = recorded(Path(path), workload, kill_at, skip=())
        assert any(op[0] == "ack" for op in log)
        assert list(violations(Path(path), log, check, seed)) == []


@pytest.mark.parametrize("what", WORK)
@pytest.mark.parametrize("skip", ["sync", "sync_folder"])
def test_a_missing_sync_is_found(folder, what, skip):
    workload, check = WORK[what]
    log = recorded(folder, workload, 10**6, skip=(skip,))
    assert next(violations(folder, log, check, 0), None) is not None


def test_a_missing_sync_of_the_root_is_found(folder):
    log = recorded(folder, store_blobs, 10**6, skip=())
    log[:] = [op for op in log if op != ("sync_folder", "")]
    assert next(violations(folder, log, check_blobs, 0), None) is not None


def test_compaction_survives_power_cuts(folder, monkeypatch):
    monkeypatch.setattr(intents, "COMPACT_SLOTS", 6)
    log = recorded(folder, make_promises, 30, skip=())
    assert sum(op[0] == "rename" for op in log) > 2
    assert list(violations(folder, log, check_promises, 1)) == []
