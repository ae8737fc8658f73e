"""A payment with a key happens once: account and key name it for a while (LEDGER-02).

A repeat with the same content changes nothing, and its result is the first one's; the
same key over other content is a conflict. Only what took effect is remembered, so that
a payment that failed may be tried again. Keys live for a span of chain time; replays of
the very block are stopped by its sequence, for ever (DEC-A9).
"""

from __future__ import annotations

from typing import Protocol

from blyan_proto.block.block import Block
from blyan_proto.codec import U64, encode, message
from blyan_proto.digest import Domain, digest
from blyan_proto.types import BlockId, Hash
from blyand.rules.economy.due import Due, Task, schedule
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


@message
class Once:
    """A payment that took effect under a key."""

    block: BlockId
    content: Hash
    ends_ms: U64


ONCE = Table(b"once", Once)  # account, digest of the key


class Keyed(Protocol):
    """A payload that may carry a key."""

    @property
    def key(self) -> bytes: ...


def first_of(view: View, account: bytes, key: bytes, now_ms: int) -> Once | None:
    """Return the payment that an account made under a key that is still remembered."""
    known = ONCE.get(view, account, digest(Domain.ONCE, key))
    return known if known is not None and known.ends_ms > now_ms else None


def content_of(kind: int, payload: Keyed) -> bytes:
    """Return what two payments under one key must agree in."""
    return digest(Domain.ONCE, bytes([kind]), encode(payload))


def spend_key(
    view: Overlay, block: Block, payload: Keyed, now_ms: int, span_ms: int
) -> None:
    """Take the payload's key for this block. Reject when it was taken before."""
    if not payload.key:
        return
    account = block.header.account
    content = content_of(block.header.kind, payload)
    first = first_of(view, account, payload.key, now_ms)
    if first is not None and first.content == content:
        raise Reject(f"repeat: block {first.block.hex()} did this")
    if first is not None:
        raise Reject(f"conflict: block {first.block.hex()} has this key")
    name = account + digest(Domain.ONCE, payload.key)
    ends_ms = now_ms + span_ms
    ONCE.put(view, Once(block.id, content, ends_ms), name)
    schedule(view, now_ms, ends_ms, Due(Task.KEY, name, 0))


def forget(view: Overlay, name: bytes, now_ms: int) -> None:
    """Drop a key whose span is over; a newer use of it stays."""
    known = ONCE.get(view, name)
    if known is not None and known.ends_ms <= now_ms:
        ONCE.remove(view, name)
