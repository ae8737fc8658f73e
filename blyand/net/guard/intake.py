"""Bytes of a gossip stream as bounded RPCs, and what one forwarder may send of them."""

from __future__ import annotations

from collections.abc import Callable

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF

from blyan_proto.errors import DecodeError, LimitExceeded
from blyand.rules.net.bucket import Bucket

RPC_BYTES = 1024 * 1024
RPC_DEADLINE_S = 60.0  # from an RPC's first byte to its last
READ_BYTES = 64 * 1024

# Of one forwarder and topic. An honest relay sends a message once, and all of a topic
# may come by it; above this we could not judge it anyway.
MESSAGES_A_SECOND, MESSAGES_AT_ONCE = 500, 4000
BYTES_A_SECOND, BYTES_AT_ONCE = 8 << 20, 64 << 20
CONTROLS_A_SECOND, CONTROLS_AT_ONCE = 200, 2000  # subscriptions included

JUDGED_AT_ONCE = 64  # messages of one forwarder; beyond: it is read no further
JUDGED_IN_ALL = 1024
PATIENCE_S = 10.0  # for a seat among the judged; then: dropped
MAX_INTAKES = 1024  # remembered, so that a new connection is no new allowance


class RpcReader:
    """Reads length-prefixed RPCs; never holds more than one of them and one read."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def next(self) -> bytes | None:
        """Return the next RPC, or None at the end of the stream.

        Raises LimitExceeded, DecodeError (a bad length) and trio.TooSlowError.
        """
        if not self._buffer and not await self._read():
            return None
        with trio.fail_after(RPC_DEADLINE_S):
            while (prefix := self._length()) is None:
                if not await self._read():
                    return None
            size, start = prefix
            if size > RPC_BYTES:
                raise LimitExceeded(f"a gossip RPC of {size} bytes")
            while len(self._buffer) < start + size:
                if not await self._read():
                    return None
        body = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        return body

    def _length(self) -> tuple[int, int] | None:
        """Return the length that the buffer begins with, and where the RPC begins."""
        size = 0
        for place, byte in enumerate(self._buffer[:5]):
            size |= (byte & 127) << 7 * place
            if byte < 128:
                return size, place + 1
        if len(self._buffer) >= 5:
            raise DecodeError("the length of a gossip RPC does not end")
        return None

    async def _read(self) -> bool:
        try:
            received = await self._stream.read(READ_BYTES)
        except StreamEOF:
            return False
        self._buffer += received
        return bool(received)


class Intake:
    """What one forwarder may still send, and how much of it is being judged."""

    def __init__(self, now: float) -> None:
        self.controls = Bucket(CONTROLS_A_SECOND, CONTROLS_AT_ONCE, now)
        self.judged = trio.Semaphore(JUDGED_AT_ONCE)
        self._buckets: dict[str, tuple[Bucket, Bucket]] = {}

    def allows(self, topic: str, size: int, now: float) -> bool:
        """Charge for one message of one of our topics."""
        if topic not in self._buckets:
            self._buckets[topic] = (
                Bucket(MESSAGES_A_SECOND, MESSAGES_AT_ONCE, now),
                Bucket(BYTES_A_SECOND, BYTES_AT_ONCE, now),
            )
        messages, octets = self._buckets[topic]
        return messages.take(1, now) and octets.take(size, now)

    @property
    def is_idle(self) -> bool:
        return bool(self.judged.value == JUDGED_AT_ONCE)


class Intakes:
    """The intakes of all forwarders, and the seats that they share."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._intakes: dict[bytes, Intake] = {}
        self._seats = trio.Semaphore(JUDGED_IN_ALL)

    def __len__(self) -> int:
        return len(self._intakes)

    def of(self, peer: bytes) -> Intake:
        intake = self._intakes.pop(peer, None) or Intake(self._clock())
        while len(self._intakes) >= MAX_INTAKES:
            idle = (p for p, other in self._intakes.items() if other.is_idle)
            del self._intakes[next(idle, next(iter(self._intakes)))]
        self._intakes[peer] = intake  # last in order: the newest
        return intake

    async def sit(self, intake: Intake) -> bool:
        """Wait for a seat among the judged; False if there is none in time."""
        if intake.judged.value and self._seats.value:
            intake.judged.acquire_nowait()
            self._seats.acquire_nowait()
            return True
        with trio.move_on_after(PATIENCE_S):
            await intake.judged.acquire()
            try:
                await self._seats.acquire()
                return True
            except trio.Cancelled:
                intake.judged.release()
                raise
        return False

    def rise(self, intake: Intake) -> None:
        self._seats.release()
        intake.judged.release()
