"""From a set that is trusted to the set that signs now, by hand-overs (DEC-A11, HZ-31).

A checkpoint that names another set for the next one is a hand-over. Each is signed by
the set known before, and names the next by its root; the members are content, so whoever
gives them cannot lie about them.
"""

from __future__ import annotations

from typing import Protocol

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.sync import Checkpoints
from blyan_proto.validators import ValidatorSet
from blyand.compute import Threads
from blyand.rules.chain.intake import check_final

MAX_STEPS = 4096  # hand-overs in one proof: of one an hour, half a year of them


class Asking(Protocol):
    """What proving needs of a peer."""

    async def handovers(self, peer: str, from_height: int) -> Checkpoints: ...

    async def validators(self, peer: str, root: bytes) -> ValidatorSet: ...


class Prover:
    """Knows who signs the checkpoint after `height`, and finds out who signs later ones."""

    def __init__(
        self,
        genesis: Genesis,
        asking: Asking,
        lane: Threads,
        height: int,
        signers: ValidatorSet,
    ) -> None:
        self._genesis, self._asking, self._lane = genesis, asking, lane
        self._first = height
        self.height, self.signers = height, signers
        self.sets = [signers]  # all that are known by now
        self.steps: list[tuple[FinalCheckpoint, ValidatorSet]] = []  # with who follows

    @property
    def since(self) -> int:
        """The height from which on every hand-over is among `steps`."""
        return self._first + 1

    async def prove(self, peer: str, final: FinalCheckpoint) -> None:
        """Follow what a peer shows, and check that the right set signed `final`.

        Reject when it did not, or the peer shows something false; Unavailable,
        ProtocolError. What was proved stays proved: it does not depend on who showed it.
        """
        await self.follow(peer)
        signers = self.signers_of(final.checkpoint.height)
        await self._lane.run(check_final, final, self._genesis, signers)

    async def follow(self, peer: str) -> None:
        """Take over the hand-overs that a peer shows beyond those known. As `prove`."""
        while len(self.steps) < MAX_STEPS:
            shown = await self._asking.handovers(peer, self.height + 1)
            if not shown.checkpoints:
                return
            for one in shown.checkpoints:
                await self._lane.run(check_final, one, self._genesis, self.signers)
                root = one.checkpoint.next_validators_root
                following = await self._asking.validators(peer, root)
                self.steps.append((one, following))
                self.sets.append(following)
                self.height, self.signers = one.checkpoint.height, following

    def signers_of(self, height: int) -> ValidatorSet:
        """Return the set that signs the checkpoint of that height, as far as is known."""
        found = self.sets[0]
        for step, following in self.steps:
            if step.checkpoint.height < height:
                found = following
        return found
