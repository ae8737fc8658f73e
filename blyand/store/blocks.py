"""Blocks by id, with the indexes that the chains ask for.

A block enters with all its index entries in one batch (DEC-D1), so there is never a
header without its place or the other way round. Reads are blocking and short.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from blyan_proto.block.block import Block
from blyan_proto.block.header import Header, SignedHeader
from blyan_proto.codec import decode, encode
from blyan_proto.constants import MAX_BLOCK_BYTES
from blyan_proto.errors import ProtocolError
from blyan_proto.signing import account_of
from blyan_proto.types import Chain
from blyand.errors import Pruned
from blyand.rules.chain.intake import Checked, Place, Verified
from blyand.store.db import Store
from blyand.store.equivocations import Equivocations
from blyand.store.retained import dropping, naming, unnaming
from blyand.store.schema import (
    AUTHOR,
    CHILD,
    DROPPED,
    HEADER,
    META_NAMED,
    NAMED,
    ORDERED,
    PAYLOAD,
    PENDING,
    PLACE,
    Arrival,
    Batch,
    Outcome,
    author_key,
    decode_own,
    place_key,
    u64,
)
from blyand.store.sieve import Sieve

OWN = Arrival(time_ms=0, peer="")
SMALL_BYTES = 1024  # bound of an arrival or outcome


class BlockStore:
    """What this node keeps of every block it accepted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.equivocations = Equivocations(store)
        self._sieve = Sieve()
        self._learned = False

    def learn(self) -> None:
        """Read the ids of all blocks, so that one that is not here costs no question.

        LevelDB pays for each key that it does not find with 16 KiB of compaction.
        """
        for key, _ in self._store.scan(HEADER):
            self._sieve.add(key[1:])
        self._learned = True

    def batch(
        self,
        verified: Iterable[Verified],
        arrival: Arrival | None = OWN,
        is_registered: Callable[[bytes], bool] = lambda account: False,
    ) -> Batch:
        """Return the writes that store blocks which are not here.

        `arrival` None: a final checkpoint orders them, so they are not pending.
        `is_registered`: of whom a proof of equivocation is kept however many there are.
        """
        writes: Batch = []
        for one in verified:
            key, block = one.id, one.block
            self._sieve.add(key)
            signed = SignedHeader(block.header, block.signature)
            writes.append((HEADER + key, encode(signed)))
            writes.append((PAYLOAD + key, block.payload))
            if arrival is not None:
                writes.append((PENDING + key, encode(arrival)))
            writes += _index(key, block.header)
            writes += self.equivocations.batch(signed, is_registered)
            writes += naming(key, block.header.kind, block.payload)
        return writes

    def put_many(
        self, verified: Sequence[Verified], arrival: Arrival | None = OWN
    ) -> None:
        """Store those that are not here as one batch, durable on return."""
        fresh = [one for one in verified if not self.has(one.id)]
        self._store.write_batch(self.batch(fresh, arrival), sync=True)

    def has(self, block: bytes) -> bool:
        """True when the header of the block is here."""
        return self._header(block) is not None

    def is_whole(self, block: bytes) -> bool:
        """True when the block is here with its payload."""
        return self.has(block) and self._store.get(PAYLOAD + block) is not None

    def serves(self, block: bytes, is_final: bool) -> bool:
        """True when the block need not come; one to be executed needs its payload."""
        return self.is_whole(block) if is_final else self.has(block)

    def signed_header(self, block: bytes) -> SignedHeader | None:
        """Return the header and signature, which are kept for ever."""
        raw = self._header(block)
        return None if raw is None else decode_own(SignedHeader, raw, MAX_BLOCK_BYTES)

    def _header(self, block: bytes) -> bytes | None:
        if self._learned and block not in self._sieve:
            return None
        return self._store.get(HEADER + block)

    def place_of(self, block: bytes) -> Place | None:
        """Return what a child has to know of a block, None when it is unknown."""
        signed = self.signed_header(block)
        return (
            None if signed is None else Place(signed.header.chain, signed.header.height)
        )

    def get(self, block: bytes) -> Block | None:
        """Return the whole block, None when unknown. Pruned when only its header is here."""
        signed = self.signed_header(block)
        if signed is None:
            return None
        payload = self._store.get(PAYLOAD + block)
        if payload is None:
            raise Pruned(f"the payload of block {block.hex()} is no longer kept")
        return Block(signed.header, signed.signature, payload)

    def dropped_ms(self, block: bytes) -> int | None:
        """Return the chain time at which retention dropped the payload, else None.

        Without it, a payload that is not here was lost.
        """
        raw = self._store.get(DROPPED + block)
        if raw is None or self._store.get(PAYLOAD + block) is not None:
            return None  # or it came again since
        return int.from_bytes(raw, "big")

    def highest_sequence(self, account: bytes, keys: Collection[bytes] = ()) -> int:
        """Return the largest sequence among an account's blocks here, 0 for none.

        Only of those that its first key signed, or one of `keys`: anybody can name
        anybody's account.
        """
        prefix = author_key(account, 0)[:-8]
        for key, _ in self._store.scan(prefix, reverse=True):
            signed = self.signed_header(key[-32:])
            author = signed.header.author if signed is not None else b""
            if signed is None or author not in keys and account_of(author) != account:
                continue
            return signed.header.sequence
        return 0

    def ids(self) -> list[bytes]:
        """Return the ids of all blocks whose header is here, ascending."""
        return [key[1:] for key, _ in self._store.scan(HEADER)]

    def children(self, block: bytes) -> tuple[bytes, ...]:
        """Return the ids of the blocks that name `block` as a parent, ascending."""
        return tuple(key[-32:] for key, _ in self._store.scan(CHILD + block))

    def headers(
        self, chain: Chain, from_height: int = 0
    ) -> Iterator[tuple[bytes, Header]]:
        """Iterate (id, header) of a chain, parents before children."""
        prefix = PLACE + bytes([chain])
        for key, _ in self._store.scan(prefix, start=u64(from_height)):
            signed = self.signed_header(key[-32:])
            if signed is not None:  # None: a hole that a repaired database may have
                yield key[-32:], signed.header

    def pending(self) -> Iterator[tuple[bytes, Arrival]]:
        """Iterate the blocks that no checkpoint has ordered, ascending by id."""
        for key, raw in self._store.scan(PENDING):
            if self._store.get(ORDERED + key[1:]) is not None:
                continue  # written twice, and ordered in between
            yield key[1:], decode_own(Arrival, raw, SMALL_BYTES)

    def outcome(self, block: bytes) -> Outcome | None:
        """Return where the block was ordered and what came of it, None while pending."""
        raw = self._store.get(ORDERED + block)
        return None if raw is None else decode_own(Outcome, raw, SMALL_BYTES)

    def expire(self, blocks: Iterable[bytes]) -> None:
        """Forget pending blocks; an ordered block is left as it is (DEC-A1)."""
        writes: Batch = []
        for block in blocks:
            signed = self.signed_header(block)
            if signed is None or self._store.get(ORDERED + block) is not None:
                continue
            payload = self._store.get(PAYLOAD + block)
            if payload is not None:
                writes += unnaming(block, signed.header.kind, payload)
            for prefix in (HEADER, PAYLOAD, PENDING):
                writes.append((prefix + block, None))
            writes += [(key, None) for key, _ in _index(block, signed.header)]
        # Synced: the blobs that only they named may go from now on.
        self._store.write_batch(writes, sync=bool(writes))

    def prune(self, blocks: Iterable[bytes], now_ms: int) -> Batch:
        """Return the writes that drop payloads at a chain time; headers stay (DEC-B9)."""
        writes: Batch = []
        for block in blocks:
            signed, payload = self.signed_header(block), self._store.get(
                PAYLOAD + block
            )
            if signed is not None and payload is not None:
                writes += dropping(block, signed.header.kind, payload, now_ms)
        return writes

    def index_of(self, block: bytes) -> Batch:
        """Return the index entries of a block that is here."""
        signed = self.signed_header(block)
        return [] if signed is None else _index(block, signed.header)

    def put_back(self, checked: Checked) -> None:
        """Store an ordered block that a repaired database lost, durable on return."""
        self._store.write_batch(self.old(checked), sync=True)

    def old(self, checked: Checked) -> Batch:
        """Return the writes that store a block which a checkpoint ordered long ago."""
        block = checked.block
        writes = self.old_header(SignedHeader(block.header, block.signature))
        writes += [(PAYLOAD + block.id, block.payload), (DROPPED + block.id, None)]
        return writes + naming(block.id, block.header.kind, block.payload)

    def old_header(self, signed: SignedHeader, dropped_ms: int | None = None) -> Batch:
        """Return those that store its header alone; `dropped_ms`: as if pruned then."""
        id = signed.header.id
        self._sieve.add(id)
        writes: Batch = [(HEADER + id, encode(signed)), *_index(id, signed.header)]
        if dropped_ms is not None:
            writes.append((DROPPED + id, u64(dropped_ms)))
        return writes

    def reindex(self) -> int:
        """Write every index again from the headers; for a repaired database.

        A block whose id is not the digest of its header, and a pending one without its
        payload, is dropped, so that it is fetched again. Returns how many are here.
        """
        for prefix in (PLACE, AUTHOR, CHILD, PENDING, NAMED):
            for key, _ in self._store.scan(prefix):
                if not self.has(key[-32:]):
                    self._store.write_batch([(key, None)], sync=False)
        count = 0
        self._store.write_batch([(META_NAMED, None)], sync=True)
        for key, raw in self._store.scan(HEADER):
            block = key[1:]
            writes: Batch
            try:
                signed = decode(SignedHeader, raw, MAX_BLOCK_BYTES)
                sound = signed.header.id == block
            except ProtocolError:
                sound = False
            is_ordered = self._store.get(ORDERED + block) is not None
            if sound and (is_ordered or self.is_whole(block)):
                count += 1
                writes = _index(block, signed.header)
                writes += self.equivocations.batch(signed, lambda account: True)
                if not is_ordered:
                    writes.append((PENDING + block, encode(OWN)))
            else:
                writes = self._without(block, signed.header if sound else None)
            self._store.write_batch(writes, sync=False)
        self._store.write_batch([], sync=True)
        return count

    def drop_unwhole(self) -> None:
        """Forget the blocks without payload, to fetch them; for executing all again."""
        for key, raw in self._store.scan(HEADER):
            if not self.is_whole(key[1:]):
                header = decode_own(SignedHeader, raw, MAX_BLOCK_BYTES).header
                self._store.write_batch(self._without(key[1:], header), sync=False)
        self._store.write_batch([], sync=True)

    def _without(self, block: bytes, header: Header | None) -> Batch:
        rows = (HEADER, PAYLOAD, PENDING, DROPPED)
        indexed = [] if header is None else [key for key, _ in _index(block, header)]
        return [(key, None) for key in (*(row + block for row in rows), *indexed)]


def _index(block: bytes, header: Header) -> Batch:
    return [
        (place_key(header.chain, header.height, block), b""),
        (author_key(header.account, header.sequence, block), b""),
        *((CHILD + parent + block, b"") for parent in header.parents),
    ]
