"""A recording layer under the store, and what a power cut may leave of it (DEC-D2).

A recording medium logs every operation on files, a recording store every batch of the
database; each prefix of a log is replayed with unsynced work dropped, kept or torn.
"""

import os
import random
import shutil

from blyand.store.medium import Medium
from blyand.store.memory import MemoryStore

# Nothing here waits for a disk, so memory will do, where there is some.
SPEEDY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


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
    """Logs what it did, and may be killed after some operation.

    It is a mutant if it leaves out all syncs of a kind, or the n-th of all (from 0).
    """

    def __init__(self, root, log, skip=(), nth=None):
        super().__init__(root)
        self.log, self.skip, self.nth = log, skip, nth
        self.kill_at = None
        self.syncs = 0

    def is_left_out(self, kind):
        self.syncs += 1
        return kind in self.skip or self.syncs - 1 == self.nth

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
        if not self.is_left_out("sync"):
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
        if not self.is_left_out("sync_folder"):
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


def recorded(folder, workload, kill_at, skip=(), nth=None):
    """Run `workload`, until it is killed and then again if it is; return the log."""
    log = Log()
    folder.mkdir(exist_ok=True)
    for life in (None,) if kill_at is None else (kill_at, None):
        medium = Recording(folder / "lived", log, skip, nth)
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


class RecordingStore(MemoryStore):
    """A database that logs its batches; what was not synced may be lost from the end.

    LevelDB appends its batches to one log: a power cut leaves a beginning of it that
    holds everything up to the last synced one. A mutant leaves
    out the n-th sync (from 0).
    """

    def __init__(self, log, nth=None):
        super().__init__()
        self.log, self.nth = log, nth
        self.syncs = 0

    def write_batch(self, batch, *, sync):
        super().write_batch(batch, sync=sync)
        if sync:
            sync = self.syncs != self.nth
            self.syncs += 1
        self.log.append(("batch", list(batch), sync))


def remains(log):
    """Yield the database that a power cut leaves at its worst, after each operation."""
    for length in range(len(log) + 1):
        durable = max((n + 1 for n in range(length) if log[n][-1] is True), default=0)
        left = MemoryStore()
        for op in log[:durable]:
            if op[0] == "batch":
                left.write_batch(op[1], sync=True)
        yield tuple(op[1:-1] for op in log[:length] if op[0] == "ack"), left
