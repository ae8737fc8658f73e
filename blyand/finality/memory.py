"""When a node that may have forgotten what it signed signs again (DEC-A9).

Strategy. It compares itself with its peers and then leaves out the height that follows
and the one after: whatever it voted on before was one of these or earlier. Where nothing
can become final without its vote that would be for ever; there it asks the others for
its own messages and keeps to them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from blyan_proto.holdings import Holdings
from blyan_proto.validators import ValidatorSet
from blyand.compute import Threads
from blyand.errors import DiskFull
from blyand.finality.pen import FULL_S, Pen
from blyand.finality.ports import Chain, Mesh
from blyand.rules.chain.validators import signers
from blyand.store.intents import IntentLog

logger = logging.getLogger(__name__)

FRESH_S = 2.0  # how long a node listens for a network that knows it already
LISTEN_S = 5.0  # how long it listens for its own messages
ASK_S = 1.0


class Memory:
    """Waits until this node may sign."""

    def __init__(
        self,
        chain: Chain,
        mesh: Mesh,
        pen: Pen,
        intents: IntentLog,
        lane: Threads,
        is_lost: bool,
    ) -> None:
        """`is_lost`: the home was restored, or its intent log damaged, before this start."""
        self._chain = chain
        self._mesh = mesh
        self._pen = pen
        self._intents = intents
        self._lane = lane
        self._is_lost = is_lost
        self.is_learning = False  # our own messages, of whoever has them

    @property
    def why_silent(self) -> str | None:
        """Why no vote is given at the next height, None when votes are."""
        if self._pen.forbidden:
            return self._pen.forbidden
        height = self._chain.clock().height + 1
        if self.is_learning:
            return "what this node signed before is not known here; it asks its peers"
        if not self._pen.may_sign(height):
            return (
                "what this node signed before is not known here; it votes again from "
                f"height {self._intents.vote_floor} on"
            )
        return None

    async def settle(self) -> None:
        """Return when votes of heights that `Pen.may_sign` allows are safe."""
        height = self._chain.clock().height
        is_fresh = self._intents.fresh
        if not self._is_lost and not is_fresh:
            return
        self.is_learning = True
        if is_fresh and not self._is_lost:
            await trio.sleep(FRESH_S)  # a lost home looks like a new one
        voters = signers(self._chain.view())
        if self._can_do_without(voters):
            await self._chain.level()
            height = self._chain.clock().height
            if height or self._is_lost:
                logger.warning(
                    "what this node signed before is not known here; it votes from "
                    "height %d on",
                    height + 3,
                )
                floor = height + 3
                await self._lane.run(self._intents.raise_vote_floor, floor)
        elif height or self._is_lost or len(voters) > 1:
            await self._listen(lambda: self._chain.clock().height)
        if not self._is_lost:  # else sequences are lost, too, and come after this
            await self._remember()
        self.is_learning = self._is_lost = False

    async def _remember(self) -> None:
        """Note on disk that this is settled: until then a restart does it again."""
        while True:
            try:
                await self._lane.run(self._intents.settle)
                return
            except DiskFull as error:
                logger.warning("no vote is given: %s", error)
                await trio.sleep(FULL_S)

    def _can_do_without(self, voters: ValidatorSet) -> bool:
        """True when the others are a quorum without this node."""
        own = self._pen.key_in(voters)
        mine = voters.weight_of(own.public) if own is not None else 0
        return voters.is_quorum(voters.total - mine)

    async def _listen(self, height: Callable[[], int]) -> None:
        """Ask for our own messages until nothing new has come for a while."""
        while True:
            before = height()
            until = trio.current_time() + LISTEN_S
            while trio.current_time() < until:
                self._mesh.say(Holdings(height() + 1, None, ()))
                await trio.sleep(ASK_S)
            if height() == before:
                return
