"""What this node is about to sign, on disk before the signature leaves (DEC-A9).

Strategy. One append-only file of 128-byte slots, each with its own checksum, outside
the database. A slot never spans a disk sector, so a torn write can only be the last
slot; a bad slot anywhere else is damage, and the node must ask its peers before it
signs again.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from blyan_proto.checkpoint import VoteStage
from blyand.errors import DiskFull, LocalFault, StorageFault
from blyand.store.medium import Medium

NAME = "log"
SLOT_BYTES = 128
COMPACT_SLOTS = 8192  # 1 MiB: rewritten when it has grown to this and to twice
HEIGHTS_KEPT = 64  # promises below this many heights under the newest are refused
ROUNDS_KEPT = 64  # heads likewise, per (run, group)

_BODY = struct.Struct("<BB6x32sQQ32s24x")  # kind, is none, key, a, b, value
_OPENING, _SEQUENCE, _VOTE, _VOTE_FLOOR, _HEAD, _HEAD_FLOOR = range(6)
_VERSION = 1
_PROPOSED = 3  # stands where a vote has its stage


class AlreadySigned(LocalFault):
    """Another vote or head for the same place was recorded before; do not sign this."""

    def __init__(self, what: str, earlier: bytes | None) -> None:
        super().__init__(f"{what} was promised to another digest")
        self.earlier = earlier  # None: a nil vote, or too long ago to know


@dataclass(frozen=True)
class _Slot:
    kind: int
    key: bytes = bytes(32)
    a: int = 0
    b: int = 0
    value: bytes | None = None

    def pack(self, index: int) -> bytes:
        none = self.value is None
        body = _BODY.pack(
            self.kind, none, self.key, self.a, self.b, self.value or bytes(32)
        )
        return body + _checksum(index, body)


class IntentLog:
    """The promises of one node. Blocking (one fdatasync); safe from several threads."""

    def __init__(self, path: Path, *, medium: Medium | None = None) -> None:
        self._medium = Medium(path) if medium is None else medium
        self._lock = threading.Lock()
        self._broken = False
        self._sequences: dict[bytes, int] = {}
        self._votes: dict[tuple[int, int, int], bytes | None] = {}
        self._vote_floor = 0
        self._heads: dict[tuple[bytes, int, int], bytes] = {}
        self._head_floors: dict[bytes, int] = {}
        self._slots = 0
        self._compacted = 0  # slots after the last rewrite
        self.fresh = False  # there was no log, and `settle` was not called since
        self.damaged = False  # some record is lost: treat the home as restored
        fd = self._medium.open(NAME, write=True)
        if fd is None:
            self.fresh = True
            fd = self._rewrite(fresh=True)
        self._fd = fd
        self._load()

    def sequence_of(self, account: bytes) -> int:
        """Return the highest sequence reserved for `account`, 0 for none."""
        with self._lock:
            return self._sequences.get(account, 0)

    def reserve_sequence(self, account: bytes, count: int = 1) -> int:
        """Return the first of `count` sequences never returned before, durably reserved."""
        with self._lock:
            sequence = self._sequences.get(account, 0) + 1
            self._reserve(account, sequence + count - 1)
            return sequence

    def raise_sequence_to(self, account: bytes, sequence: int) -> None:
        """Count on from `sequence`, as peers know it; a lower one changes nothing."""
        with self._lock:
            if sequence > self._sequences.get(account, 0):
                self._reserve(account, sequence)

    def settle(self) -> None:
        """Forget that records were lost: the peers have told what was signed."""
        with self._lock:
            self._compact(fresh=False)
            self.fresh = self.damaged = False

    def vote_at(
        self, height: int, round: int, stage: VoteStage
    ) -> tuple[bytes | None] | None:
        """Return the vote promised there as a 1-tuple (nil: (None,)), None for none."""
        with self._lock:
            place = (height, round, int(stage))
            return (self._votes[place],) if place in self._votes else None

    def highest_vote(self) -> tuple[int, int] | None:
        """Return (height, round) of the newest promise, None for none."""
        with self._lock:
            return max(((h, r) for h, r, _ in self._votes), default=None)

    def promises_at(
        self, height: int
    ) -> tuple[dict[tuple[int, VoteStage], bytes | None], frozenset[int]]:
        """Return the votes promised at a height, and the rounds of its proposals."""
        with self._lock:
            mine = {
                (round, stage): value
                for (at, round, stage), value in self._votes.items()
                if at == height
            }
        votes = {
            (round, VoteStage(stage)): value
            for (round, stage), value in mine.items()
            if stage != _PROPOSED
        }
        return votes, frozenset(r for r, stage in mine if stage == _PROPOSED)

    @property
    def vote_floor(self) -> int:
        """The lowest height at which new votes may be promised."""
        with self._lock:
            return self._vote_floor

    def raise_vote_floor(self, height: int) -> None:
        """Promise no vote below `height` that is not promised already; durable."""
        with self._lock:
            if height > self._vote_floor:
                self._append(_Slot(_VOTE_FLOOR, a=height))

    def record_vote(
        self, height: int, round: int, stage: VoteStage, checkpoint: bytes | None
    ) -> None:
        """Promise one vote durably.

        The same vote again is no error. AlreadySigned for another one at that place,
        or for a height so old that nothing is known about it any more.
        """
        self._promise(height, round, int(stage), checkpoint)

    def record_proposal(self, height: int, round: int, statement: bytes) -> None:
        """Promise one proposal, by the digest of its statement; like `record_vote`."""
        self._promise(height, round, _PROPOSED, statement)

    def _promise(
        self, height: int, round: int, stage: int, checkpoint: bytes | None
    ) -> None:
        place = (height, round, stage)
        with self._lock:
            if place in self._votes:
                if self._votes[place] != checkpoint:
                    raise AlreadySigned(f"vote {place}", self._votes[place])
                return
            if height < self._vote_floor:
                raise AlreadySigned(f"vote {place}", None)
            at = round << 8 | int(stage)
            self._append(_Slot(_VOTE, a=height, b=at, value=checkpoint))

    def head_at(
        self, group: str, run: bytes, round: int, epoch: int, rank: int = 0
    ) -> bytes | None:
        """Return the digest of the head promised there, None for none."""
        with self._lock:
            place = (_head_key(group, run), round, _leased(epoch, rank))
            return self._heads.get(place)

    def record_head(
        self,
        group: str,
        run: bytes,
        round: int,
        epoch: int,
        digest: bytes,
        rank: int = 0,
    ) -> None:
        """Promise one head of a lease and rank durably; like `record_vote` (DEC-A6).

        `rank` is the head's: who cosigned the first rank's may still make its own.
        """
        key = _head_key(group, run)
        epoch = _leased(epoch, rank)
        with self._lock:
            earlier = self._heads.get((key, round, epoch))
            if earlier is not None:
                if earlier != digest:
                    raise AlreadySigned(f"head {group} round {round}", earlier)
                return
            if round < self._head_floors.get(key, 0):
                raise AlreadySigned(f"head {group} round {round}", None)
            self._append(_Slot(_HEAD, key, round, epoch, digest))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._broken = True
            self._medium.close_file(self._fd)
            self._medium.close()

    # Inside; the lock is held

    def _reserve(self, account: bytes, sequence: int) -> None:
        self._append(_Slot(_SEQUENCE, account.ljust(32, b"\0"), sequence, len(account)))

    def _append(self, slot: _Slot) -> None:
        if self._broken:
            raise StorageFault("the intent log is closed or failed before")
        try:
            if self._slots >= max(COMPACT_SLOTS, 2 * self._compacted):
                self._compact(fresh=self.fresh)
            raw, at = slot.pack(self._slots), self._slots * SLOT_BYTES
            self._medium.write(self._fd, at, raw)
            self._sync(self._fd)
        except DiskFull:
            raise  # what was written of the slot is written over by the next one
        except BaseException:
            self._broken = True  # what is on disk is unknown until the next start
            raise
        self._slots += 1
        self._remember(slot)

    def _remember(self, slot: _Slot) -> None:
        if slot.kind == _SEQUENCE:
            account = slot.key[: slot.b]
            self._sequences[account] = max(slot.a, self._sequences.get(account, 0))
        elif slot.kind == _VOTE:
            self._votes[slot.a, slot.b >> 8, slot.b & 0xFF] = slot.value
        elif slot.kind == _VOTE_FLOOR:
            self._vote_floor = max(self._vote_floor, slot.a)
        elif slot.kind == _HEAD and slot.value is not None:
            self._heads[slot.key, slot.a, slot.b] = slot.value
        elif slot.kind == _HEAD_FLOOR:
            floor = self._head_floors.get(slot.key, 0)
            self._head_floors[slot.key] = max(floor, slot.a)

    def _load(self) -> None:
        raw = self._medium.read(self._fd, 0, os.fstat(self._fd).st_size)
        count = len(raw) // SLOT_BYTES
        last_is_torn = False
        for index in range(count):
            piece = raw[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]
            slot = _unpack(index, piece)
            if slot is None and index == count - 1 and len(raw) % SLOT_BYTES == 0:
                last_is_torn = True
            elif slot is None:
                self.damaged = True
            elif slot.kind == _OPENING and slot.a != _VERSION:
                raise StorageFault(f"the intent log has version {slot.a}, not 1")
            elif slot.kind == _OPENING and slot.b:
                self.fresh = True  # it ended before it was settled
            else:
                self._remember(slot)
        self._slots = count - last_is_torn
        if not self._slots:  # torn while it was made
            self.fresh = True
            self._compact(fresh=True)
        elif len(raw) != self._slots * SLOT_BYTES:
            self._medium.truncate(self._fd, self._slots * SLOT_BYTES)
        # A kill may have left slots that are visible and not durable.
        self._medium.sync(self._fd)
        self._medium.sync_folder("")

    def _compact(self, *, fresh: bool) -> None:
        if self._votes:
            newest = max(height for height, _, _ in self._votes)
            self._vote_floor = max(self._vote_floor, newest - HEIGHTS_KEPT)
        for key, round, _ in self._heads:
            floor = self._head_floors.get(key, 0)
            self._head_floors[key] = max(floor, round - ROUNDS_KEPT)
        self._votes = {
            place: value
            for place, value in self._votes.items()
            if place[0] >= self._vote_floor
        }
        self._heads = {
            place: value
            for place, value in self._heads.items()
            if place[1] >= self._head_floors[place[0]]
        }
        replaced, self._fd = self._fd, self._rewrite(fresh=fresh)
        self._medium.close_file(replaced)

    def _rewrite(self, *, fresh: bool) -> int:
        """Write what is known to a new file, put it in the log's place, return it."""
        opening = _Slot(_OPENING, a=_VERSION, b=int(fresh))
        slots = [opening, _Slot(_VOTE_FLOOR, a=self._vote_floor)]
        for account, sequence in self._sequences.items():
            key = account.ljust(32, b"\0")
            slots.append(_Slot(_SEQUENCE, key, sequence, len(account)))
        for (height, round, stage), value in self._votes.items():
            slots.append(_Slot(_VOTE, a=height, b=round << 8 | stage, value=value))
        for key, floor in self._head_floors.items():
            slots.append(_Slot(_HEAD_FLOOR, key, floor))
        for (key, round, epoch), value in self._heads.items():
            slots.append(_Slot(_HEAD, key, round, epoch, value))
        self._medium.unlink(f"{NAME}.new")
        fd = self._medium.create(f"{NAME}.new")
        raw = b"".join(slot.pack(index) for index, slot in enumerate(slots))
        try:
            self._medium.write(fd, 0, raw)
            self._sync(fd)
        except BaseException:
            self._medium.close_file(fd)  # the old file stands
            raise
        try:
            self._medium.rename(f"{NAME}.new", NAME)
            self._medium.sync_folder("")
        except BaseException:
            self._broken = True  # which file stands is unknown until the next start
            self._medium.close_file(fd)
            raise
        self._slots = self._compacted = len(slots)
        return fd

    def _sync(self, fd: int) -> None:
        """Sync a file. A disk that is full says so before; here it is a fault of its own."""
        try:
            self._medium.sync(fd)
        except DiskFull as error:
            raise StorageFault(f"the intent log is not on the disk: {error}") from error


def _leased(epoch: int, rank: int) -> int:
    return rank << 32 | epoch  # epochs have 32 bits


def _head_key(group: str, run: bytes) -> bytes:
    name = group.encode()
    parts = len(run).to_bytes(2, "little") + run + name
    return hashlib.blake2b(parts, digest_size=32, person=b"blyan head").digest()


def _checksum(index: int, body: bytes) -> bytes:
    place = index.to_bytes(16, "little")
    return hashlib.blake2b(
        body, digest_size=16, salt=place, person=b"blyan intent"
    ).digest()


def _unpack(index: int, piece: bytes) -> _Slot | None:
    body, check = piece[: _BODY.size], piece[_BODY.size :]
    if check != _checksum(index, body):
        return None
    kind, none, key, a, b, value = _BODY.unpack(body)
    return _Slot(kind, key, a, b, None if none else value)
