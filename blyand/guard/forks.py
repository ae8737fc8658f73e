"""Two final checkpoints of one height: an alarm, and evidence of who signed both.

A claim counts for nothing: the other checkpoint must be shown, with a quorum of votes of
the set that signed ours. Where two histories have parted for so long that their sets
differ, it is looked for where they parted.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from blyan_proto.checkpoint import FinalCheckpoint, Vote
from blyan_proto.errors import BadSignature, ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.validators import ValidatorSet
from blyand.compute import Threads
from blyand.errors import NotHere, Unavailable
from blyand.rules.chain.intake import check_final
from blyand.rules.verdict import Reject

logger = logging.getLogger(__name__)

MAX_ALARMS = 16  # of heights; those of this node itself, below 0, all stay
CLAIMS = 64  # that wait to be looked at; further ones are said again with a later hello
AT_ONCE = 4  # peers that are asked
LOOK_S = 60.0  # for what one of them has to show
AGAIN_S = 60.0  # before a claim of the same peer is looked at again
REMEMBERED = 1024  # peers, and second checkpoints

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Places:
    """Where checkpoints and sets come from."""

    ours: Callable[[int], FinalCheckpoint | None]  # by height; blocking
    lowest: Callable[[], int]  # from where on all of them are here
    voters: Callable[[bytes], ValidatorSet | None]  # by root; blocking
    theirs: Callable[[str, int], Awaitable[FinalCheckpoint | None]]  # of a peer


class Forks:
    """Looks whether some other checkpoint is as final as ours."""

    def __init__(
        self,
        genesis: Genesis,
        places: Places,
        report: Callable[[Vote, Vote], None],
        alarms: dict[int, str],
        blame: Callable[[str, Exception], None],
        lane: Threads,
    ) -> None:
        self._genesis, self._places, self._lane = genesis, places, lane
        self._report, self._alarms, self._blame = report, alarms, blame
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._asked: OrderedDict[str, float] = OrderedDict()  # peer -> when
        self._send, self._claims = trio.open_memory_channel[tuple[str, int]](CLAIMS)

    async def see(self, ours: FinalCheckpoint | None, theirs: FinalCheckpoint) -> None:
        """Look at a checkpoint of a height of which `ours` is final; None: on the disk.

        Reject when no quorum made it final.
        """
        if ours is None:
            height = theirs.checkpoint.height
            ours = await self._lane.run(self._places.ours, height)
        if ours is None or theirs.checkpoint.id in (ours.checkpoint.id, *self._seen):
            return
        root = ours.checkpoint.validators_root
        if theirs.checkpoint.validators_root != root:
            return  # they parted before: the votes of that height tell who did it
        voters = await self._lane.run(self._places.voters, root)
        if voters is None:
            return
        await self._lane.run(check_final, theirs, self._genesis, voters)
        _remember(self._seen, theirs.checkpoint.id, None)
        self._alarm(theirs.checkpoint.height)
        votes = {vote.voter: vote for vote in theirs.votes}
        for vote in ours.votes:
            if vote.voter in votes:
                self._report(vote, votes[vote.voter])

    def claimed(self, peer: str, height: int, checkpoint: bytes) -> None:
        """A peer says which checkpoint it has at a height: it may have to show it."""
        ours = self._places.ours(height)
        if ours is None or ours.checkpoint.id == checkpoint:
            return
        now = trio.current_time()
        if now < self._asked.get(peer, -math.inf) + AGAIN_S:
            return
        try:
            self._send.send_nowait((peer, height))
        except trio.WouldBlock:
            return
        _remember(self._asked, peer, now)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Ask for what was claimed."""
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._work)
            task_status.started()

    async def _work(self) -> None:
        async for peer, height in self._claims.clone():
            try:
                with trio.move_on_after(LOOK_S):
                    await self._look(peer, height)
            except Unavailable as error:
                logger.info("%s shows no other checkpoint: %s", peer, error)
            except (ProtocolError, Reject) as error:
                logger.info("%s shows a false checkpoint: %s", peer, error)
                if isinstance(error, (Reject, BadSignature)):
                    self._blame(peer, error)  # others are blamed where they came in

    async def _look(self, peer: str, height: int) -> None:
        """Let a peer show its checkpoint of a height, or of where we parted."""
        pair = await self._pair(peer, height)
        if pair is None:
            return
        ours, theirs = (one.checkpoint.validators_root for one in pair)
        if ours != theirs:
            low = self._places.lowest() - 1  # taken for common
            while height - low > 1:
                middle = (low + height) // 2
                found = await self._pair(peer, middle)
                if found is None:
                    low = middle
                else:
                    height, pair = middle, found
        await self.see(*pair)

    async def _pair(
        self, peer: str, height: int
    ) -> tuple[FinalCheckpoint, FinalCheckpoint] | None:
        """Return our checkpoint of a height and theirs; None when they are the same."""
        ours = await self._lane.run(self._places.ours, height)
        theirs = await self._places.theirs(peer, height)
        if ours is None or theirs is None:
            raise NotHere(f"no checkpoint {height}")
        return None if ours.checkpoint.id == theirs.checkpoint.id else (ours, theirs)

    def _alarm(self, height: int) -> None:
        self._alarms[height] = (
            f"two checkpoints {height} are final: more than a third of the validators "
            "signed twice; trust neither history before you know which goes on"
        )
        logger.error("alarm: %s", self._alarms[height])
        heights = [key for key in self._alarms if key >= 0]
        for key in heights[: max(0, len(heights) - MAX_ALARMS)]:
            del self._alarms[key]


def _remember(seen: OrderedDict[K, V], key: K, value: V) -> None:
    seen[key] = value
    seen.move_to_end(key)
    while len(seen) > REMEMBERED:
        seen.popitem(last=False)
