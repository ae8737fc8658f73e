"""Facts that one part of the daemon tells the others, without knowing who listens.

Publishing never blocks and never fails. Every subscription is bounded, and what
happens when it is full is chosen by the subscriber, at the place that reads it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, get_args

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import FinalCheckpoint


@dataclass(frozen=True)
class BlockStored:
    """A verified block is durable here (DEC-D1)."""

    block: Block


@dataclass(frozen=True)
class CheckpointFinalised:
    """A checkpoint was executed; the state is the one it promised."""

    final: FinalCheckpoint
    state_root: bytes
    blocks: tuple[Block, ...] = ()  # in their order


@dataclass(frozen=True)
class HeadMoved:
    """A group's trained head is now the block `update`, which closed `round`."""

    model: bytes  # block id of the model
    group: int  # index in the layout
    round: int
    update: bytes  # block id


@dataclass(frozen=True)
class HeldChanged:
    """This node now holds exactly these groups of a model."""

    model: bytes
    groups: frozenset[int]


@dataclass(frozen=True)
class PeerJoined:
    """Hello succeeded with a peer."""

    peer: str


@dataclass(frozen=True)
class PeerLeft:
    """The last connection to a peer closed."""

    peer: str


@dataclass(frozen=True)
class RoundClosed:
    """The primary of a group published its update, made from `contributions` deltas."""

    model: bytes
    run: bytes  # block id of the run
    group: int
    round: int
    update: bytes  # block id
    contributions: int


Overflow = Literal["drop_oldest", "drop_newest", "fail"]
F = TypeVar("F")


class FellBehind(Exception):
    """A subscriber that may miss nothing did not keep up with its capacity."""


class Subscription(Generic[F]):
    """The facts of some types, in the order of publication. One reader at a time.

    A context manager and an async iterator; leaving the context ends it. `dropped`
    counts what overflow threw away.
    """

    def __init__(
        self, capacity: int, overflow: Overflow, leave: Callable[[], None]
    ) -> None:
        self.dropped = 0
        self._capacity = capacity
        self._overflow = overflow
        self._leave = leave
        self._waiting: deque[F] = deque()
        self._arrived = trio.Event()
        self._behind = False
        self._closed = False

    def put(self, fact: F) -> None:
        """Take a fact in, or apply the overflow rule. Never blocks."""
        if len(self._waiting) == self._capacity:
            self.dropped += 1
            if self._overflow == "fail":
                self._behind = True
            if self._overflow != "drop_oldest":
                return
            self._waiting.popleft()
        self._waiting.append(fact)
        self._arrived.set()

    async def receive(self) -> F:
        """Return the next fact; wait for one.

        Raises FellBehind where the overflow rule is "fail" and facts were lost, and
        trio.ClosedResourceError after close().
        """
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._behind:
                raise FellBehind(f"{self.dropped} facts lost")
            if self._waiting:
                await trio.lowlevel.checkpoint()
                return self._waiting.popleft()
            self._arrived = trio.Event()
            await self._arrived.wait()

    def close(self) -> None:
        """Stop receiving; a reader that waits ends with ClosedResourceError."""
        if not self._closed:
            self._closed = True
            self._leave()
            self._arrived.set()

    def __aiter__(self) -> Subscription[F]:
        return self

    async def __anext__(self) -> F:
        return await self.receive()

    def __enter__(self) -> Subscription[F]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Subscription[F]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Broadcast:
    """The daemon's notice board. Use it from the trio thread only."""

    def __init__(self) -> None:
        self._subscriptions: dict[type, list[Subscription[Any]]] = {}

    def publish(self, fact: object) -> None:
        """Hand `fact` to every subscription of its type. Never blocks, never fails."""
        for subscription in tuple(self._subscriptions.get(type(fact), ())):
            subscription.put(fact)

    def subscribe(
        self,
        *types: type[F],
        capacity: int = 256,
        overflow: Overflow = "drop_oldest",
    ) -> Subscription[F]:
        """Receive facts of `types` from now on, at most `capacity` unread ones.

        Overflow: "drop_oldest" and "drop_newest" lose facts (see `dropped`); "fail"
        raises FellBehind in the reader. Close it, or use it as a context manager.
        """
        if not types or capacity < 1 or overflow not in get_args(Overflow):
            raise ValueError("a subscription names its types, capacity and overflow")

        def leave() -> None:
            for cls in types:
                self._subscriptions[cls].remove(made)

        made: Subscription[F] = Subscription(capacity, overflow, leave)
        for cls in types:
            self._subscriptions.setdefault(cls, []).append(made)
        return made
