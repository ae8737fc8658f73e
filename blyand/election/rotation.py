"""Changing this node's key, and starting again with the one that the chain names.

Strategy. The new key is durable beside the old one before its rotation is signed; which
of the two counts is decided by state alone. When a final checkpoint names the new one,
it takes the old one's place in one rename and the node starts again inside its process:
everything that holds a key gets the right one, and the peer id follows. Killed at any
moment, the node finds out at its next start.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.economy import KeyRotation, RotationStatement
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.signing import Purpose, SigningKey
from blyand.errors import KeyChanged
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.economy.rotation import current_key
from blyand.rules.view import View

logger = logging.getLogger(__name__)

FAREWELL_S = 1.0  # for the answer to whoever asked for the rotation


@dataclass(frozen=True)
class KeyFiles:
    """The keystore, as far as a rotation needs it. Blocking."""

    open_next: Callable[[], SigningKey]  # made, and durable, when there was none
    promote: Callable[[], None]  # the next key is the current one from now on
    known: frozenset[bytes]  # current and older keys of this home


class Rotation:
    """This node's key and its account."""

    def __init__(
        self,
        key: SigningKey,
        network: bytes,
        files: KeyFiles,
        view: Callable[[], View],
        make_last: Callable[[KeyRotation], Awaitable[Block]],
        lane: Callable[..., Awaitable[object]],
        events: Broadcast,
    ) -> None:
        self._key = key
        self._network = network
        self._files = files
        self._view = view
        self._make_last = make_last
        self._lane = lane
        self._events = events
        self._next: SigningKey | None = None
        self.trouble: str | None = None  # what the operator must know

    async def rotate(self) -> tuple[Block, SigningKey]:
        """Make the rotation's block and wait for a checkpoint to order it."""
        new = await self._open_next()
        statement = RotationStatement(FORMAT_VERSION, self._key.account, new.public)
        proof = new.sign(Purpose.KEY_ROTATION, self._network, statement)
        block = await self._make_last(KeyRotation(FORMAT_VERSION, new.public, proof))
        return block, new

    def is_current(self, key: bytes) -> bool:
        """True when state says that `key` signs for this node's account."""
        named = current_key(self._view(), self._key.account)
        return key == (named or self._key.public)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Raise KeyChanged when the chain has taken this node's next key."""
        with self._events.subscribe(CheckpointFinalised, capacity=1) as facts:
            task_status.started()
            while True:
                await self._look()
                await facts.receive()

    async def _look(self) -> None:
        named = current_key(self._view(), self._key.account)
        if named is None or named in self._files.known:
            # Ours, or the chain is not executed as far as this home has seen it once.
            self.trouble = None
            return
        if (await self._open_next()).public == named:
            await self._lane(self._files.promote)
            logger.warning(
                "the account has its new key; this node starts again with it"
            )
            await trio.sleep(FAREWELL_S)
            raise KeyChanged("the account's key was changed")
        if self.trouble is None:
            self.trouble = (
                f"another key ({named.hex()}) signs for this account, and this home does "
                "not have it: restore the home that made it; what this one signs is void"
            )
            logger.error("alarm: %s", self.trouble)

    async def _open_next(self) -> SigningKey:
        if self._next is None:
            made = await self._lane(self._files.open_next)
            assert isinstance(made, SigningKey)
            self._next = made
        return self._next
