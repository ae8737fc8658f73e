"""Proofs that an author made two blocks under one sequence of one chain (DEC-A9).

Nobody is slashed for it: the second block is a no-op wherever it is ordered. The proof
is kept because it shows a damaged or dishonest author, and holds by itself: two headers
with their signatures, whatever becomes of the blocks. At most one for each author and
chain; when there are many, only those of registered authors are added.

Strategy. A block whose sequence is above all that its author used has no twin, which is
almost every block: the largest sequence of recent authors is remembered. The index of
authors is scanned for the others only, and a bounded part of it. What is being written
is not in the index yet, so recent blocks are remembered, too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from blyan_proto.block.header import SignedHeader
from blyan_proto.codec import encode, message
from blyan_proto.constants import MAX_BLOCK_BYTES
from blyan_proto.signing import account_of
from blyan_proto.types import Chain
from blyand.store.db import Store
from blyand.store.schema import (
    EQUIVOCATION,
    HEADER,
    Batch,
    author_key,
    decode_own,
)

MAX_OF_STRANGERS = 4096  # proofs, from which on only registered authors get one
RECENT = 2048  # blocks and authors remembered: more than are ever under way at once
MAX_PROOF_BYTES = 2 * MAX_BLOCK_BYTES
LOOKED_AT = 64  # blocks under one sequence of an account, of all chains

Slot = tuple[bytes, bytes, Chain, int]  # account, author, chain, sequence


@message
class Equivocation:
    """Two different headers of one account, chain and sequence; ids ascending."""

    first: SignedHeader
    second: SignedHeader


class Equivocations:
    """The proofs of one node. Blocking; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._recent: OrderedDict[Slot, SignedHeader] = OrderedDict()
        self._highest: OrderedDict[bytes, int] = OrderedDict()  # account -> sequence
        self._count: int | None = None

    def __iter__(self) -> Iterator[Equivocation]:
        """Iterate the proofs, by account and chain."""
        for _, raw in self._store.scan(EQUIVOCATION):
            yield decode_own(Equivocation, raw, MAX_PROOF_BYTES)

    def __len__(self) -> int:
        return sum(1 for _ in self._store.scan(EQUIVOCATION))

    def of(self, account: bytes, chain: Chain) -> Equivocation | None:
        """Return the proof against an author on a chain, None when there is none."""
        raw = self._store.get(_key(account, chain))
        return None if raw is None else decode_own(Equivocation, raw, MAX_PROOF_BYTES)

    def batch(
        self, signed: SignedHeader, is_registered: Callable[[bytes], bool]
    ) -> Batch:
        """Return the write of the proof that this block makes, if it makes one."""
        header = signed.header
        account, chain = header.account, header.chain
        with self._lock:
            twin = self._twin(signed)
            if twin is None or self._store.get(_key(account, chain)) is not None:
                return []
            if account_of(header.author) != account:
                return []  # of a stranger who names somebody else's account
            if self._count is None:
                self._count = len(self)
            if self._count >= MAX_OF_STRANGERS and not is_registered(account):
                return []
            self._count += 1
        pair = sorted((signed, twin), key=lambda one: one.header.id)
        return [(_key(account, chain), encode(Equivocation(*pair)))]

    def _twin(self, signed: SignedHeader) -> SignedHeader | None:
        """Return another block of the same slot; remember this one."""
        header = signed.header
        slot = (header.account, header.author, header.chain, header.sequence)
        recent = self._recent.setdefault(slot, signed)
        _trim(self._recent)
        if recent.header.id != header.id:
            return recent
        highest = self._highest.get(header.account)
        if highest is None:
            highest = self._highest_stored(header.account)
        self._highest[header.account] = max(highest, header.sequence)
        self._highest.move_to_end(header.account)
        _trim(self._highest)
        return self._stored_twin(signed) if header.sequence <= highest else None

    def _stored_twin(self, signed: SignedHeader) -> SignedHeader | None:
        header = signed.header
        entries = self._store.scan(author_key(header.account, header.sequence))
        for _, (key, _) in zip(range(LOOKED_AT), entries):
            raw = self._store.get(HEADER + key[-32:])
            if raw is None or key[-32:] == header.id:
                continue
            other = decode_own(SignedHeader, raw, MAX_BLOCK_BYTES)
            if (other.header.author, other.header.chain) == (
                header.author,
                header.chain,
            ):
                return other
        return None

    def _highest_stored(self, account: bytes) -> int:
        for key, _ in self._store.scan(author_key(account, 0)[:-8], reverse=True):
            return int.from_bytes(key[-40:-32], "big")
        return 0


def _trim(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > RECENT:
        remembered.popitem(last=False)


def _key(account: bytes, chain: Chain) -> bytes:
    return EQUIVOCATION + account + bytes([chain])
