"""When a primary stops asking for another signature."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from blyan_proto.block.model import TileUpdate
from blyan_proto.protocols.cosign import Declined, Reason
from blyand.training.cosign import Answer, Cosigner, Ranks
from tests.unit.daemon.chain_world import Training
from tests.unit.daemon.test_rules_signatures import LIVENESS_MS, beating


def test_one_signature_is_enough_for_what_may_be_ordered_only():
    """Published too early, an update keeps all waiting that its author makes later."""
    world = Training()
    run = world.open()
    first = world.update(run, 3)
    now = world.draft(run, 3, signatures=1)
    later = world.draft(
        run, 3, signatures=1, round=1, parent=first.id, base=first.content.result
    )
    key = world.author_of(now.cosignatures[0].signer)
    for _ in range(3):
        beating(world, key)  # the others are silent for the liveness span

    async def asked(peer: str, update: TileUpdate) -> Answer:
        return Declined(Reason.NO_DELTAS)

    cosigner = Cosigner(
        key,
        world.genesis.id,
        lambda: world.view,
        LIVENESS_MS,
        holder=None,
        lane=None,
        intents=None,
        others=Ranks(asked, lambda account: account.hex()),
    )

    async def completed(update: TileUpdate) -> TileUpdate | None:
        until_s = trio.current_time() + 60
        schedule = world.schedule(run, 0)
        return await cosigner.completed(
            update, schedule, lambda: trio.current_time() < until_s
        )

    async def main() -> None:
        assert await completed(now) == now
        assert await completed(later) is None, "its parent is not final"

    trio.run(main, clock=MockClock(autojump_threshold=0))
