"""Applying retention to a disk, in steps that end soon and may be cut off anywhere.

Blocking: for one thread of a lane. What may go is `rules.chain.retention`'s; in which
order it is written, so that a kill leaves nothing half, `store.retained`'s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from blyan_proto.block.block import Block
from blyand.errors import Pruned
from blyand.rules.chain import retention as rules
from blyand.rules.chain.retention import Ordered, Place
from blyand.rules.records import CLOCK, GROUPS
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import REFUSED, CheckpointStore
from blyand.store.pins import PinKind, Pins
from blyand.store.retained import Retained
from blyand.store.schema import Batch

logger = logging.getLogger(__name__)

INDEXED_AT_ONCE = 256  # payloads
BLOCKS_AT_ONCE = 512  # judged in one batch, unless a checkpoint has more
CHECKPOINTS_AT_ONCE = 256
GROUPS_AT_ONCE = 64
BLOBS_AT_ONCE = 64
NAMES_AT_ONCE = 512
IDLE_S = 60.0  # a blob that somebody asked about is left alone for as long
ORPHAN_S = 86_400.0  # a blob that nothing names may still be on its way into a block
HURRIED_IDLE_S = 5.0  # the same, when the disk budget is used up
HURRIED_ORPHAN_S = 3600.0
HURRIED_ROUNDS = 64


@dataclass(frozen=True)
class Disk:
    """What is pruned."""

    blocks: BlockStore
    checkpoints: CheckpointStore
    blobs: BlobStore
    retained: Retained
    pins: Pins


class Pruner:
    """Drops payloads and blobs that are past their retention."""

    def __init__(
        self,
        disk: Disk,
        view: Callable[[], View],
        span_ms: int,
        in_use: Callable[[bytes], bool],
    ) -> None:
        """`in_use(root)`: this node's own versions of tiles stand on the blob."""
        self._disk = disk
        self._view = view
        self._span_ms = span_ms
        self._in_use = in_use
        self._idle_s = min(IDLE_S, span_ms / 1000)
        self._turn = threading.Lock()
        self._indexed: bytes | None = b""  # how far; None: all
        self._groups: list[tuple[bytes, int]] = []  # to be looked at again
        if disk.retained.knows_names:
            self._indexed = None

    @property
    def now_ms(self) -> int:
        """Median chain time."""
        clock = CLOCK.get(self._view())
        return 0 if clock is None else clock.time_ms

    def index(self) -> bool:
        """Index the names of some payloads of an older store; False when all are."""
        if self._indexed is not None:
            self._indexed = self._disk.retained.index_names(
                self._indexed, INDEXED_AT_ONCE
            )
        return self._indexed is not None

    def judge(self) -> bool:
        """Judge the blocks of the next checkpoints past their window; False: none is."""
        clock = CLOCK.get(self._view())
        retained = self._disk.retained
        if clock is None:
            return False
        start = retained.judged
        if start > clock.height:  # execution began anew (DEC-D4)
            retained.go_back_to(clock.height)
            return False
        height, blocks = start, 0
        writes: Batch = []
        needed: list[Ordered] = []
        while height - start < CHECKPOINTS_AT_ONCE and blocks < BLOCKS_AT_ONCE:
            final = self._disk.checkpoints.at(height + 1)
            if final is None or height + 1 > clock.height:
                break
            checkpoint = final.checkpoint
            if not rules.is_past(checkpoint.time_ms, clock.time_ms, self._span_ms):
                break
            for id in checkpoint.blocks:
                self._judge_one(id, clock.time_ms, writes, needed)
            height += 1
            blocks += len(checkpoint.blocks)
        if height == start:
            return False
        retained.judge(height, writes, needed)
        return True

    def _judge_one(
        self, id: bytes, now_ms: int, writes: Batch, needed: list[Ordered]
    ) -> None:
        block = self._ordered(id)
        if block is None:
            return  # dropped already, or a hole that a repaired database may have
        if not self._stays(block):
            writes += self._disk.blocks.prune([id], now_ms)
        elif isinstance(block.content, rules.VERSIONED):
            needed.append(block)

    def look_at_groups(self) -> None:
        """Let the next steps look at all groups again: a head, snapshot or pin moved."""
        with self._turn:
            self._groups = list(self._disk.retained.groups())

    def release(self) -> bool:
        """Drop what some groups no longer need; False when none is left to look at."""
        with self._turn:
            some, self._groups = (
                self._groups[:GROUPS_AT_ONCE],
                self._groups[GROUPS_AT_ONCE:],
            )
        for model, group in some:
            self._release_group(model, group)
        return bool(some)

    def _release_group(self, model: bytes, group: int) -> None:
        now_ms = self.now_ms
        oldest: Place | None = None
        record = GROUPS.get(self._view(), model, group)
        if record is not None:
            oldest = self._place_of(rules.oldest_kept(record))
        writes: Batch = []
        count = 0
        for key, place, id in self._disk.retained.kept(model, group):
            pinned = (PinKind.MODEL, model) in self._disk.pins
            if pinned or (oldest is not None and place >= oldest):
                break  # from there on all is needed, or will be looked at again
            block = self._ordered(id)
            if block is not None and self._stays(block):
                continue
            writes += [(key, None), *self._disk.blocks.prune([id], now_ms)]
            count += 1
            if count == BLOCKS_AT_ONCE:
                with self._turn:
                    self._groups.append((model, group))
                break
        if writes:
            self._disk.retained.write(writes)

    def unpinned(self, kind: PinKind, id: bytes) -> None:
        """Judge a blob or block again whose pin was taken away; models have their turn."""
        if kind is PinKind.BLOB:
            self._disk.retained.doom([id])
        elif kind is PinKind.BLOCK:
            self._drop_unpinned(id)

    def _drop_unpinned(self, id: bytes) -> None:
        block = self._ordered(id)
        if block is None or block.place[0] > self._disk.retained.judged:
            return  # it has its turn still to come
        if not self._stays(block):
            self._disk.retained.write(self._disk.blocks.prune([id], self.now_ms))

    def sweep(self, after: bytes, *, hurried: bool = False) -> bytes | None:
        """Remove some doomed blobs that nothing names; return where to go on, or None.

        What is in use stays doomed and is looked at in the next round.
        """
        idle_s = min(self._idle_s, HURRIED_IDLE_S) if hurried else self._idle_s
        roots = self._disk.retained.doomed(after, BLOBS_AT_ONCE)
        kept, removed = [], []
        for root in roots:
            if self._is_kept(root):
                kept.append(root)
            elif not self._in_use(root) and self._disk.blobs.put_away(root, idle_s):
                removed.append(root)
        if kept:
            self._disk.retained.spare(kept)
        if removed:
            self._disk.retained.removed(removed, self.now_ms)
        return roots[-1] + b"\0" if roots else None

    def make_room(self) -> None:
        """Remove at once what may go; for a disk budget that is used up."""
        after: bytes | None = b""
        for _ in range(HURRIED_ROUNDS):
            if after is not None:
                after = self.sweep(after, hurried=True)

    def find_orphans(
        self, folder: str, named_by_state: set[bytes], hurried: bool = False
    ) -> None:
        """Doom the blobs of a folder that nothing names, and that are old.

        A crash between a blob and its block leaves such; so does what came for a question
        and not for the chain.
        """
        age_s = HURRIED_ORPHAN_S if hurried else max(ORPHAN_S, self._span_ms / 1000)
        before_s = time.time() - age_s
        found = [
            root
            for root, changed_s in self._disk.blobs.in_stock(folder)
            if changed_s < before_s
            and self._disk.blobs.is_idle(root, age_s)
            and root not in named_by_state
            and not self._in_use(root)
            and not self._is_kept(root)
        ]
        if found:
            logger.info("%d blobs that nothing names go", len(found))
            self._disk.retained.doom(found)

    def lacking(self, after: bytes) -> tuple[dict[bytes, bytes], bytes]:
        """Look whether some named blobs are here; for an archive.

        Returns those that are not, with the author of a block that names each, and where
        to go on: at the start again behind the last.
        """
        some = self._disk.retained.names(after, NAMES_AT_ONCE)
        found = {}
        for root, id in some:
            signed = self._disk.blocks.signed_header(id)
            if signed is not None and not self._disk.blobs.bytes_of(root):
                found[root] = signed.header.account
        at_end = len(some) < NAMES_AT_ONCE
        return found, b"" if at_end else b"".join(some[-1]) + b"\0"

    def _is_kept(self, root: bytes) -> bool:
        pinned = (PinKind.BLOB, root) in self._disk.pins
        return pinned or self._disk.retained.is_named(root)

    def _ordered(self, id: bytes) -> Ordered | None:
        outcome = self._disk.blocks.outcome(id)
        try:
            block: Block | None = self._disk.blocks.get(id)
        except Pruned:
            return None
        if outcome is None or block is None:
            return None
        place = (outcome.height, outcome.position)
        return Ordered(id, place, outcome.code != REFUSED, block.content)

    def _place_of(self, id: bytes) -> Place | None:
        outcome = self._disk.blocks.outcome(id)
        return None if outcome is None else (outcome.height, outcome.position)

    def _stays(self, block: Ordered) -> bool:
        pins = self._disk.pins
        if (PinKind.BLOCK, block.id) in pins or (PinKind.DATASET, block.id) in pins:
            return True
        if isinstance(block.content, rules.VERSIONED):
            if (PinKind.MODEL, block.content.model) in pins:
                return True
        return rules.is_needed(self._view(), block, self._place_of)
