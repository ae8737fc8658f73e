"""Pending blocks: stored, not yet ordered by a checkpoint (DEC-A1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from blyan_proto.block import data, model
from blyan_proto.block.block import Block
from blyan_proto.types import CHAIN_ORDER
from blyand.rules.chain.intake import MAX_PENDING_PER_ACCOUNT
from blyand.rules.verdict import Ignore


class Pool:
    """The blocks that a checkpoint may take, by id. Bounded per account."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, Block] = {}
        self._per_account: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(list(self._blocks.values()))

    def __contains__(self, id: bytes) -> bool:
        return id in self._blocks

    def check_room(self, account: bytes) -> None:
        """Raise Ignore when this account already has its share pending."""
        if self._per_account.get(account, 0) >= MAX_PENDING_PER_ACCOUNT:
            raise Ignore("the author has too many blocks that no checkpoint took")

    def add(self, block: Block) -> None:
        if block.id not in self._blocks:
            self._blocks[block.id] = block
            account = block.header.account
            self._per_account[account] = self._per_account.get(account, 0) + 1

    def remove(self, id: bytes) -> None:
        block = self._blocks.pop(id, None)
        if block is not None:
            account = block.header.account
            self._per_account[account] -= 1
            if not self._per_account[account]:
                del self._per_account[account]

    def newest_of(self, account: bytes, chain: int) -> Block | None:
        """Return the account's pending block with the highest sequence on a chain."""
        own = [
            block
            for block in self._blocks.values()
            if block.header.account == account and block.header.chain == chain
        ]
        return max(own, key=lambda block: block.header.sequence, default=None)

    def ready(
        self,
        is_ordered: Callable[[bytes], bool],
        is_available: Callable[[Block], bool],
        limit_blocks: int,
        limit_bytes: int,
    ) -> list[Block]:
        """Return the blocks that the next checkpoint may order, at most the limits.

        A block is ready when its blobs are available, its parents are ordered or ready,
        and its references are ordered, or ready on a chain that is executed before its
        own (DEC-A3, A4).
        """
        taken: dict[bytes, Block] = {}
        size = 0
        for block in sorted(self._blocks.values(), key=_execution_key):
            header = block.header
            if not is_available(block):
                continue
            size += header.payload_bytes + 512
            if len(taken) >= limit_blocks or size > limit_bytes:
                break
            parents = all(p in taken or is_ordered(p) for p in header.parents)
            if parents and all(
                is_ordered(reference) or _comes_before(taken.get(reference), block)
                for reference in references(block)
            ):
                taken[block.id] = block
        return list(taken.values())


def references(block: Block) -> list[bytes]:
    """Return the ids of blocks that a payload names, checked but no edges of the DAG."""
    content = block.content
    named = [block.header.meta_ref] if block.header.meta_ref else []
    for field in fields(content):
        if field.name in ("model", "run", "parent", "update", "dataset"):
            value = getattr(content, field.name)
            if isinstance(value, bytes):
                named.append(value)
    if isinstance(content, model.Run):
        named += content.datasets
    return named


def blobs_of(block: Block) -> list[bytes]:
    """Return the blobs without which a block is not orderable (DEC-A4)."""
    content = block.content
    if isinstance(content, model.Weights):
        return [tile.weights for tile in content.tiles]
    if isinstance(content, model.TileUpdate):
        return [content.blob] if content.blob else []
    if isinstance(content, data.Dataset):
        return [content.blob]
    return []


def _execution_key(block: Block) -> tuple[int, int, int]:
    header = block.header
    return (CHAIN_ORDER.index(header.chain), header.height, header.sequence)


def _comes_before(reference: Block | None, block: Block) -> bool:
    if reference is None:
        return False
    place = CHAIN_ORDER.index
    return place(reference.header.chain) < place(block.header.chain)
