"""Payments that this node takes part in, and the keys of calls that must happen once."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Annotated

from blyan_proto.block.ledger import Capture, Quote
from blyan_proto.codec import U8, U64, Size, encode, message
from blyan_proto.constants import MAX_PAYLOAD_BYTES
from blyan_proto.types import BlockId, Hash
from blyand.rules.economy.session import Failure, SessionState
from blyand.store.db import Store
from blyand.store.schema import SESSION, SESSION_KEY, decode_own

MAX_SESSION_BYTES = 2 * MAX_PAYLOAD_BYTES


class Side(enum.IntEnum):
    """Which of the two this node is."""

    PAYER = 0
    PAYEE = 1


@message
class Intent:
    """A block that is to be made: durable before it is, so that it is made after a kill."""

    kind: U8
    payload: Annotated[bytes, Size(0, MAX_PAYLOAD_BYTES)]
    block: BlockId | None  # once it is made


@message
class Session:
    """A payment for a service, as one side knows it."""

    id: Hash  # of its quote
    side: Side
    state: SessionState
    quote: Quote
    reserve: BlockId | None
    receipt: Capture | None  # what the payer signed
    reversed_micro: U64
    failure: Failure | None
    reason: Annotated[str, Size(0, 200)]
    intent: Intent | None
    times_ms: Annotated[tuple[U64, ...], Size(7, 7)]  # when each state came; 0: never

    @property
    def moved_ms(self) -> int:
        """When the newest state came, Unix milliseconds."""
        return max(self.times_ms)


@message
class Keyed:
    """A call that a key names, and what it led to."""

    method: Annotated[str, Size(1, 64)]
    body: Hash  # digest of its params
    intent: Intent | None  # of a payment
    session: Hash | None  # of a quote
    made_ms: U64


class SessionStore:
    """Sessions and keys on disk. Blocking; a put is durable on return."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, session: Session) -> None:
        """Store a session in its newest form."""
        row = (SESSION + session.id, encode(session))
        self._store.write_batch([row], sync=True)

    def all(self) -> Iterator[Session]:
        """Yield all sessions."""
        for _, raw in self._store.scan(SESSION):
            yield decode_own(Session, raw, MAX_SESSION_BYTES)

    def remove(self, ids: Iterable[bytes]) -> None:
        """Forget sessions."""
        self._store.write_batch([(SESSION + id, None) for id in ids], sync=False)

    def keyed(self, name: bytes) -> Keyed | None:
        """Return the call under the digest of a key, None for none."""
        raw = self._store.get(SESSION_KEY + name)
        return None if raw is None else decode_own(Keyed, raw, MAX_SESSION_BYTES)

    def put_keyed(self, name: bytes, keyed: Keyed) -> None:
        """Store a call under the digest of its key."""
        self._store.write_batch([(SESSION_KEY + name, encode(keyed))], sync=True)

    def forget_keys(self, before_ms: int) -> int:
        """Drop the keys of calls made before a time; return how many."""
        old = [
            (key, None)
            for key, raw in self._store.scan(SESSION_KEY)
            if decode_own(Keyed, raw, MAX_SESSION_BYTES).made_ms < before_ms
        ]
        self._store.write_batch(list(old), sync=False)
        return len(old)
