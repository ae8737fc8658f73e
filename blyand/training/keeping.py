"""Keeping receipts: what learners handed in here, and what primaries answered to us.

Each comes with the signature of the other side, so that a dispute about who sent what,
and what became of it, can be shown to anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from blyan_proto.codec import encode
from blyan_proto.protocols.delta import Bundle, Receipt
from blyan_proto.signing import account_of
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.errors import DiskFull
from blyand.rules.records import NODES, RUNS
from blyand.rules.view import View
from blyand.store.rounds import MAX_WHY_BYTES, Answered, Heard, Outcome, Rounds

logger = logging.getLogger(__name__)

NEAR = 16  # rounds from the run's front in which bundles are noted

Push = Callable[[str, Bundle], Awaitable[Receipt]]


class Keeping:
    """Writes receipts where they outlive the daemon."""

    def __init__(
        self, view: Callable[[], View], rounds: Rounds, lane: Threads, clock: Clock
    ) -> None:
        self._view = view
        self._rounds = rounds
        self._lane = lane
        self._clock = clock

    async def heard(
        self, bundle: Bundle, receipt: Receipt, why: Mapping[int, str]
    ) -> None:
        """Keep what was handed in here; `why`, by group, it was refused.

        Of registered accounts and rounds near the front: nothing else fills this disk.
        """
        manifest = bundle.manifest
        record = RUNS.get(self._view(), manifest.run)
        if record is None or abs(manifest.round - record.closed) > NEAR:
            return
        if NODES.get(self._view(), manifest.learner) is None:
            return
        at_ms = self._clock.now_ms()
        await self._keep(
            lambda: self._rounds.hear(heard_of(bundle, receipt, why, at_ms))
        )

    def pushing(self, push: Push) -> Push:
        """Return `push` that keeps the receipts it gets."""

        async def pushed(peer: str, bundle: Bundle) -> Receipt:
            receipt = await push(peer, bundle)
            await self.answered(bundle, receipt)
            return receipt

        return pushed

    async def answered(self, bundle: Bundle, receipt: Receipt) -> None:
        """Keep what a primary said of a bundle of ours, whichever way it came."""
        primary = account_of(receipt.signer)
        answered = Answered(self._clock.now_ms(), primary, bundle.manifest, receipt)
        await self._keep(lambda: self._rounds.answered(answered))

    async def _keep(self, write: Callable[[], None]) -> None:
        """Write in the lane. What was said to a peer stands, though the disk be full."""
        try:
            await self._lane.run(write)
        except DiskFull as error:
            logger.warning("a receipt is not kept: %s", error)


def heard_of(
    bundle: Bundle, receipt: Receipt, why: Mapping[int, str], at_ms: int
) -> Heard:
    """Return what is kept of a bundle. Encodes its deltas anew, for their length."""
    sent = {delta.group: delta for delta in bundle.deltas}
    outcomes = []
    for one in receipt.verdicts:
        delta = sent.get(one.group)
        outcomes.append(
            Outcome(
                group=one.group,
                verdict=one.verdict,
                tokens=delta.tokens if delta else 0,
                bytes=len(encode(delta)) if delta else 0,
                why=_shortened(why.get(one.group, "")),
            )
        )
    return Heard(
        at_ms,
        bundle.manifest,
        bundle.signer,
        bundle.signature,
        tuple(outcomes),
        receipt.signature,
    )


def _shortened(text: str) -> str:
    return text.encode()[:MAX_WHY_BYTES].decode(errors="ignore")
