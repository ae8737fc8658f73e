"""What waits to be sent to one gossip peer, and how much of it leaves in one write.

A message is serialised once, as the field of an RPC; the queues of all peers share its
bytes, and an RPC is as many fields as are waiting, one behind the other. Both queues
are bounded; what does not fit is refused, and the caller says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import trio

WAITING_MESSAGES = 8192  # for one peer
WAITING_BYTES = 16 * 1024 * 1024
WAITING_CONTROLS = 512  # bodies of control messages
BATCH_BYTES = 128 * 1024  # an RPC with several messages is not longer
BATCH_MESSAGES = 512
UNWANTED = 1024  # ids that a peer told us not to send, in each of two heartbeats


def varint(number: int) -> bytes:
    """Return an unsigned LEB128 integer."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def publish_field(message: bytes) -> bytes:
    """Return a serialised message as the field `publish` of an RPC."""
    return b"\x12" + varint(len(message)) + message


class Outbox:
    """A queue with the interface that libp2p's pubsub expects of its RpcQueue."""

    max_message_size = 1 << 20

    def __init__(self) -> None:
        self.closed = False
        self.stalled = False  # it was waited for in vain; until it is half empty
        self.controls: deque[bytes] = deque()
        self._messages: deque[tuple[bytes, bytes]] = deque()  # (id, field)
        self._bytes = 0
        self._unwanted: tuple[set[bytes], set[bytes]] = (set(), set())
        self._filled, self._emptied = trio.Event(), trio.Event()

    def __len__(self) -> int:
        return len(self._messages)

    def is_half_full(self) -> bool:
        """True where a publisher should wait."""
        return (
            len(self._messages) * 2 > WAITING_MESSAGES
            or self._bytes * 2 > WAITING_BYTES
        )

    def put(self, identity: bytes, field: bytes) -> bool:
        """Queue a message; False if there is no room. Unwanted: True, not queued."""
        if self.closed or self.is_unwanted(identity):
            return True
        if (
            len(self._messages) >= WAITING_MESSAGES
            or self._bytes + len(field) > WAITING_BYTES
        ):
            return False
        self._messages.append((identity, field))
        self._bytes += len(field)
        self._filled.set()
        return True

    def push(self, rpc: Any, priority: bool = False) -> bool:
        """Queue an RPC without messages, ahead of all messages."""
        if self.closed or len(self.controls) >= WAITING_CONTROLS:
            return False
        self.controls.append(rpc.SerializeToString())
        self._filled.set()
        return True

    def split_rpc(self, rpc: Any) -> list[Any]:
        return [rpc]

    async def pop(self) -> bytes | None:
        """Wait for and return the next RPC; None once the queue is closed."""
        while not self.closed:
            parts: list[bytes] = []
            size = messages = 0
            while self.controls and size < BATCH_BYTES:
                parts.append(self.controls.popleft())
                size += len(parts[-1])
            while self._messages and messages < BATCH_MESSAGES:
                identity, field = self._messages[0]
                if size and size + len(field) > BATCH_BYTES:
                    break
                self._messages.popleft()
                self._bytes -= len(field)
                if not self.is_unwanted(identity):  # said while it waited
                    parts.append(field)
                    size += len(field)
                    messages += 1
            if not self.is_half_full():
                self.stalled = False
                self._emptied.set()
            if parts:
                return b"".join(parts)
            self._filled = trio.Event()
            await self._filled.wait()
        return None

    async def wait_room(self) -> None:
        """Return once the queue is less than half full, or closed."""
        while self.is_half_full() and not self.closed:
            if self._emptied.is_set():
                self._emptied = trio.Event()
            await self._emptied.wait()

    def close(self) -> None:
        self.closed = True
        self._messages.clear()
        self._bytes = 0
        self._filled.set()
        self._emptied.set()

    # What the peer said it has

    def refuse(self, identities: Iterable[bytes]) -> None:
        """Send none of these for two heartbeats (IDONTWANT)."""
        for identity in identities:
            if len(self._unwanted[0]) < UNWANTED:
                self._unwanted[0].add(identity)

    def is_unwanted(self, identity: bytes) -> bool:
        return identity in self._unwanted[0] or identity in self._unwanted[1]

    def beat(self) -> None:
        """Forget what was refused before the last heartbeat."""
        if self._unwanted[0] or self._unwanted[1]:
            self._unwanted = (set(), self._unwanted[0])
