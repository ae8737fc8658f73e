"""A rank recomputes what another one shows it, and signs it once; holders vouch for blobs."""

from __future__ import annotations

from dataclasses import replace

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import Cosignature, TileUpdate
from blyan_proto.protocols.cosign import Cosigned, Declined, Reason
from blyan_proto.signing import Purpose
from blyand.training import cosign
from tests.sim.network import until
from tests.sim.test_rollback import ranked
from tests.sim.test_rounds import TRUNK
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode


def signed(author: TrainNode, update: TileUpdate, **changed) -> TileUpdate:
    """Return an update that is changed, signed by its author alone."""
    mute = Cosignature(author.key.public, bytes(64))
    draft = replace(update, cosignatures=(mute,), **changed)
    signature = author.key.sign(Purpose.TILE_UPDATE, author.genesis.id, draft.claim)
    return replace(draft, cosignatures=(Cosignature(author.key.public, signature),))


async def held_back(net: Training, author: TrainNode, round: int) -> TileUpdate:
    """Return the author's draft for the trunk, which it does not publish."""
    drafts: list[TileUpdate] = []

    async def never(update, schedule, goes_on):
        if (update.group, update.round) == (TRUNK, round):
            drafts.append(update)
            await trio.sleep_forever()
        return await type(author.cosigner).completed(
            author.cosigner, update, schedule, goes_on
        )

    author.cosigner.completed = never
    await until(lambda: drafts)
    return drafts[0]


def test_a_rank_signs_what_it_computes_itself_and_one_claim_only(tmp_path, monkeypatch):
    monkeypatch.setattr(cosign, "BEHIND_S", 0.5)

    async def main() -> None:
        net = Training(tmp_path, 3)
        async with net.running():
            run = await net.begin(2, deadline_ms=60_000)
            author, second, third = ranked(net, run, 0)
            draft = await held_back(net, author, 0)
            ask = second.cosigner.sign
            for changed, reason in (
                ({"rank": 1}, Reason.NO_RANK),  # the one who is asked
                ({"round": 9}, Reason.NO_RANK),
                ({"run": bytes(32)}, Reason.NO_RANK),
            ):
                assert await ask(signed(author, draft, **changed)) == Declined(reason)
            other = signed(author, draft, parent=bytes(32))
            assert await third.cosigner.sign(other) == Declined(Reason.OTHER_HEAD)
            false = signed(author, draft, result=draft.base)
            assert await third.cosigner.sign(false) == Declined(Reason.PROMISED)
            answer = await ask(draft)
            assert isinstance(answer, Cosigned)
            assert isinstance(await author.ask(second.name, draft), Cosigned)
            assert await ask(false) == Declined(Reason.PROMISED)
            second.cosigner._looked_at.clear()  # a restart: the log remembers
            weighed = signed(author, draft, rank=0, parent=draft.parent)
            assert isinstance(await ask(weighed), Cosigned), "the same claim"
            second.cosigner._looked_at.clear()
            second.intents.close()
            assert await ask(false) == Declined(Reason.OTHER_RESULT)

    simulate(main)


def test_a_rank_that_is_slow_or_gone_is_passed_over(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 4)
        async with net.running():
            run = await net.begin(1, deadline_ms=60_000)
            author, second, third = ranked(net, run, 0)

            async def sleeping(update):
                await trio.sleep_forever()

            second.cosigner.sign = sleeping
            await net.closes(run, 1)
            (block,) = net.updates(net.nodes[0], TRUNK)
            keys = [one.signer for one in block.content.cosignatures]
            assert keys == [author.key.public, third.key.public]

    simulate(main)


def test_holders_vouch_for_an_update_that_lacks_signatures(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 5, count=4)
        async with net.running():
            run = await net.begin(1, deadline_ms=60_000)
            author, *_ = ranked(net, run, 0)
            draft = await held_back(net, author, 0)
            made: Block = await author.author.make(draft, meta_ref=net.model)
            await until(lambda: all(node.receipts.of(made.id) for node in net.nodes))
            known = net.nodes[0].receipts.of(made.id)  # two, where the first came late
            signers = {receipt.signer for receipt in known}
            for node in net.nodes:
                if node.key.public in signers:
                    assert node is not author and node.blobs.has(draft.blob)
            given = net.nodes[0].orderable.receipts_for([made])
            assert given and set(given) <= set(known)
            assert not net.nodes[0].orderable.may_order(made), "its signatures lack"

    simulate(main)
