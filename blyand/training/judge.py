"""A validator's part in a dispute: recompute the update, say what came out (DEC-A5)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.economy import DisputeVerdict
from blyan_proto.block.model import TileUpdate
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_proto.signing import SigningKey
from blyan_proto.validators import ValidatorSet
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.chain.validators import signers
from blyand.rules.model.dispute import Disputed, open_disputes
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View

logger = logging.getLogger(__name__)

AT_ONCE = 4
AGAIN_S = 2.0  # until base or deltas that nobody gave are asked for again


class Judge:
    """Judges open disputes. Of use on validators only."""

    def __init__(
        self,
        key_in: Callable[[ValidatorSet], SigningKey | None],
        view: Callable[[], View],
        block: Callable[[bytes], Block | None],
        is_right: Callable[[Block], Awaitable[bool]],
        make: Callable[..., Awaitable[object]],
        events: Broadcast,
    ) -> None:
        """`key_in`: this node's key in a set. `is_right(block)` recomputes an update."""
        self._key_in = key_in
        self._view = view
        self._block = block
        self._is_right = is_right
        self._make = make
        self._events = events
        self._limit = trio.CapacityLimiter(AT_ONCE)
        self._judging: set[bytes] = set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look for disputes after every checkpoint; each is judged in a task of its own."""
        with self._events.subscribe(CheckpointFinalised) as facts:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    if self._key_in(signers(self._view())):
                        for one in open_disputes(self._view()):
                            if one.update not in self._judging:
                                self._judging.add(one.update)
                                nursery.start_soon(self._judge, one)
                    await facts.receive()

    async def _judge(self, disputed: Disputed) -> None:
        try:
            while self._is_asked(disputed):
                async with self._limit:
                    is_said = await self._say(disputed)
                # Said, it takes a checkpoint or two to count.
                await trio.sleep(AGAIN_S * (5 if is_said else 1))
        finally:
            self._judging.discard(disputed.update)

    def _is_asked(self, disputed: Disputed) -> bool:
        """True while the dispute is open and our verdict did not come to be."""
        own = self._key_in(signers(self._view()))
        found = (one for one in open_disputes(self._view()))
        now = next((one for one in found if one.dispute == disputed.dispute), None)
        if own is None or now is None:
            return False
        return own.public not in (*now.says_right, *now.says_false)

    async def _say(self, disputed: Disputed) -> bool:
        """Recompute and publish; False when something was lacking."""
        name = disputed.update.hex()[:16]
        block = self._block(disputed.update)
        if block is None or not isinstance(block.content, TileUpdate):
            return False  # pruned here: others judge
        try:
            is_right = await self._is_right(block)
            logger.warning("update %s is %s", name, "right" if is_right else "false")
            await self._make(DisputeVerdict(FORMAT_VERSION, disputed.update, is_right))
        except (Ignore, Reject, Unavailable, ProtocolError) as error:
            logger.info("no verdict on update %s yet: %s", name, error)
            return False
        return True
