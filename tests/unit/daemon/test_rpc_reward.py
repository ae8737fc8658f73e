"""reward.*: what callers are told agrees with the ledger, and can be traced to blocks."""

from __future__ import annotations

import pytest
import trio

from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.constants import PPM
from blyan_proto.rpc.errors import (
    EPOCH_UNKNOWN,
    RECIPIENT_INVALID,
    RECIPIENT_UNKNOWN,
    RpcError,
)
from blyan_proto.rpc.methods import methods_of
from blyan_proto.signing import Purpose, check_signature
from blyand.compute import Threads
from blyand.net.identity import peer_id_of
from blyand.rpc import reward
from blyand.rpc.bind import Answers
from blyand.rpc.origins import Origins
from blyand.rules.chain.order import order
from blyand.rules.economy.book import amount
from blyand.rules.economy.statement import EARNED, Source
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.memory import MemoryStore
from tests.unit.daemon.chain_world import Training, key, verified
from tests.unit.daemon.reward_world import (
    BLY,
    DAY,
    HOUR,
    buy,
    end_epoch,
    owe,
    rich,
    serve,
    sign,
    unclaimed,
)

METHODS = methods_of("reward")


class Kept(Training):
    """A world whose checkpoints and blocks are stored, with everybody's votes."""

    def __init__(self, **more):
        self.store = MemoryStore()
        self.blocks, self.checkpoints = BlockStore(self.store), CheckpointStore(
            self.store
        )
        self._known = []
        super().__init__(**more)

    def checkpoint(self, *blocks, **more):
        outcomes = super().checkpoint(*blocks, **more)
        self.blocks.put_many(verified(self.genesis, *blocks, known=self._known))
        self._known += blocks
        found = {outcome.block: outcome.error for outcome in outcomes}
        ordered = tuple(block.id for block in order(blocks))
        made = Checkpoint(
            version=1,
            network=self.genesis.id,
            height=self.height,
            parent=bytes(32),
            round=0,
            proposer=self.keys[0].public,
            time_ms=self.time_ms,
            beacon=bytes(32),
            preimage=bytes(32),
            blocks=ordered,
            receipts=(),
            state_root=bytes(32),
            validators_root=bytes(32),
            next_validators_root=bytes(32),
        )
        said = VoteStatement(1, VoteStage.PRECOMMIT, self.height, 0, made.id)
        votes = tuple(
            Vote(said, k.public, k.sign(Purpose.CHECKPOINT_VOTE, self.genesis.id, said))
            for k in self.keys
        )
        self.checkpoints.commit_checkpoint(
            FinalCheckpoint(made, votes),
            {},
            [(int(found[id] is not None), found[id] or "") for id in ordered],
        )
        return outcomes


def ask(world, name, /, **params):
    """Call a method as the server does, and check the answer's shape."""
    method, answers = METHODS[f"reward.{name}"], Answers(METHODS)
    store = getattr(world, "store", MemoryStore())
    reward.bind(
        answers,
        genesis=world.genesis,
        view=world.view.freeze,
        account=world.keys[0].account,
        origins=Origins(BlockStore(store), CheckpointStore(store)),
        lane=Threads("test", 1),
    )
    answers.check()

    async def main():
        return await answers[method.name](method.params(**params))

    result = trio.run(main)
    assert method.read_result(method.write_result(result)) == result
    return result


def refused(world, name, /, **params):
    with pytest.raises(RpcError) as caught:
        ask(world, name, **params)
    return caught.value.code, caught.value.message


def test_an_epoch_says_what_it_paid_and_how_it_was_scaled():
    world = rich()
    sign(world, 5)
    owe(world, Source.DATASET, world.keys[2].account, 90_000 * BLY)
    closed = end_epoch(world)
    told = ask(world, "epoch")
    assert (told.number, told.is_over, told.checkpoints) == (0, True, 6)
    assert (
        told.paid_micro == closed.micro == sum(unclaimed(world, k) for k in world.keys)
    )
    assert told.scale_ppm == told.paid_micro * PPM // told.worth_micro < PPM // 2
    assert [line.source for line in told.sources] == ["validator", "dataset"]
    assert [line.account for line in told.recipients][0] == world.keys[2].account
    assert sum(line.paid_micro for line in told.recipients) == told.paid_micro
    few = ask(world, "epoch", number=0, limit=1)
    assert len(few.recipients) == 1 and few.more_recipients == 2


def test_an_epoch_that_is_not_over_or_forgotten_is_said_to_be():
    world = rich()
    assert refused(world, "epoch") == (
        EPOCH_UNKNOWN.code,
        "epoch 0 is not over yet; `blyanctl reward preview` shows the running one",
    )
    end_epoch(world)
    code, text = refused(world, "epoch", number=7)
    assert code == EPOCH_UNKNOWN.code and "the newest that is over is 0" in text
    assert (
        refused(world, "explain", who="00" * 20, epoch=2**70)[0] == EPOCH_UNKNOWN.code
    )


def test_a_preview_changes_nothing_and_is_what_the_end_pays():
    world = rich()
    sign(world, 5)
    owe(world, Source.LEARNING, world.keys[1].account, 50 * BLY)
    before = world.view.root
    told = ask(world, "preview")
    assert world.view.root == before and not told.is_over
    assert told.checkpoints == 5 and told.sources[-1].source == "learning"
    end_epoch(world)
    assert ask(world, "epoch").sources[-1] == told.sources[-1]


def test_explaining_an_inference_reward():
    world = rich(kind=Training)
    serve(world, calls=200, response_ms=100)
    serve(world, calls=100, server=2, payer=0)
    end_epoch(world, signers=[])
    told = ask(world, "explain", who=peer_id_of(world.keys[1].public), epoch=0)
    assert told.account == world.keys[1].account and told.paid_micro > 0
    (part,) = told.parts
    assert part.source == "inference" and part.why == "paid in full"
    assert "200 calls of 1 experts, fees 100 BLY, alpha 56.25 %" in part.inputs
    (line,) = told.answered
    assert (line.calls, line.expert_calls, line.response_ms) == (200, 300, 100)
    assert told.paid_micro == line.formula_micro * 562_500 // PPM
    assert told.state == "waited, until the account had 10 BLY together"


def test_explaining_a_scaled_reward():
    world = rich(epoch_span_ms=DAY, validator_pool_micro=0)
    who = world.keys[0].account
    owe(world, Source.DATASET, who, 80_000 * BLY)
    end_epoch(world, signers=[])
    told = ask(world, "explain", who=f"0x{who.hex()}", epoch=0)
    assert told.parts[0].why == (
        "scaled to 25 % by the envelope of 20000 BLY for judging data"
    )
    assert told.state.startswith("can be slashed until 2023-11-2")


def test_a_reason_names_the_year_where_it_binds():
    world = rich(bly=876_000, epoch_span_ms=DAY)
    sign(world, 3)
    end_epoch(world)
    told = ask(world, "explain", who=world.keys[1].account.hex(), epoch=0)
    assert "by the pool of 1000 BLY for all validators and" in told.parts[0].why
    assert told.parts[0].why.endswith("what the year may mint, 240.65934 BLY")


def test_learning_and_signing_are_traced_to_blocks_and_votes():
    world = rich(kind=Kept, learning_micro=10_000 * BLY)
    run = world.open()
    world.move(run)
    sign(world, 3)
    end_epoch(world)
    learner = sorted(world.keys, key=lambda k: k.account)[0]
    told = ask(world, "explain", who=learner.account.hex(), epoch=0, limit=100)
    assert [part.source for part in told.parts] == ["validator", "learning"]
    assert told.proofs_complete and not told.more_proofs
    updates = [proof for proof in told.proofs if proof.source == "learning"]
    assert len(updates) == world.groups
    for proof in updates:
        block = world.blocks.get(proof.id)
        assert learner.account in {c.learner for c in block.content.contributions}
        assert (proof.author, proof.signature) == (block.header.author, block.signature)
    votes = [proof for proof in told.proofs if proof.source == "validator"]
    assert len(votes) == told.last_height - 1
    for proof in votes:
        said = VoteStatement(1, VoteStage.PRECOMMIT, proof.height - 1, 0, proof.id)
        check_signature(
            Purpose.CHECKPOINT_VOTE,
            world.genesis.id,
            said,
            proof.author,
            proof.signature,
        )
    few = ask(world, "explain", who=learner.account.hex(), epoch=0, limit=2)
    assert len(few.proofs) == 4
    assert few.more_proofs == len(told.proofs) - 4
    assert [p.height for p in few.proofs] == sorted(
        (p.height for p in few.proofs), reverse=True
    )


def test_answering_is_traced_to_payments_that_both_sides_signed():
    world = rich(kind=Kept)
    bought = buy(world)
    buy(world, server=0, payer=1, group=4)
    end_epoch(world, signers=[])
    told = ask(world, "explain", who=world.keys[1].account.hex(), epoch=0)
    assert [proof.id for proof in told.proofs] == [bought.id] * 2
    block, payment = told.proofs
    assert (block.author, block.signature) == (world.keys[1].public, bought.signature)
    assert payment.author == world.keys[2].public
    check_signature(
        Purpose.DELIVERY,
        world.genesis.id,
        bought.content.statement,
        payment.author,
        payment.signature,
    )


def test_a_node_without_the_blocks_says_so():
    world = rich()
    sign(world, 2)
    end_epoch(world)
    told = ask(world, "explain", who=world.keys[0].account.hex(), epoch=0)
    assert not told.proofs_complete and told.proofs == [] and told.paid_micro > 0


@pytest.mark.parametrize("who", ("", "somebody", "00" * 19, "zz" * 20, "0x" + "1" * 39))
def test_who_is_nobody(who):
    world = rich()
    end_epoch(world)
    assert refused(world, "explain", who=who, epoch=0)[0] == RECIPIENT_INVALID.code
    code, text = refused(world, "explain", who="0x" + "11" * 20, epoch=0)
    assert code == RECIPIENT_UNKNOWN.code and text.endswith("got nothing in epoch 0")


def test_windows_are_of_chain_time():
    world = rich()
    who = world.keys[0]
    for _ in range(30):
        owe(world, Source.DATASET, who.account, 5 * BLY)
        end_epoch(world, signers=[])
    told = ask(world, "stats")
    by = {line.window: line for line in told.windows}
    assert [by[w].epochs for w in ("24h", "7d", "30d")] == [24, 30, 30]
    assert by["24h"].paid_micro == by["24h"].mine_micro == 120 * BLY
    assert told.total_micro == by["7d"].paid_micro == unclaimed(world, who) == 150 * BLY
    assert [p.number for p in told.chart] == list(range(6, 30))
    world.checkpoint(step_ms=HOUR - 1)  # the first of the 24 is a day old all but 1 ms
    assert ask(world, "stats").windows[0].epochs == 24
    world.checkpoint(step_ms=1)
    assert ask(world, "stats").windows[0].epochs == 24, "one ended, one left"
    world.checkpoint(step_ms=8 * DAY)
    by = {line.window: line for line in ask(world, "stats").windows}
    assert [by[w].epochs for w in ("24h", "7d", "30d")] == [1, 1, 32]
    other = ask(world, "stats", who=world.keys[1].account.hex())
    assert other.total_micro == other.epochs == other.windows[2].mine_micro == 0


def test_what_is_no_longer_in_state_is_null():
    world = rich(epoch_span_ms=1_000)
    for _ in range(170):
        end_epoch(world, signers=[])
    assert [w.mine_micro for w in ask(world, "stats").windows] == [None] * 3


def test_the_leaderboard_is_the_ledgers_sums_in_a_stable_order():
    world = rich(nodes=4)
    a, b, c, d = sorted(world.keys, key=lambda k: k.account)
    paid = {}
    for who, micro in ((c, 30), (a, 20), (b, 20), (c, 5)):
        owe(world, Source.DATASET, who.account, micro * BLY)
        end_epoch(world, signers=[])
        for posting in world.ended:
            if posting.why.startswith("reward") and posting.micro > 0:
                paid[posting.account] = paid.get(posting.account, 0) + posting.micro
    told = ask(world, "leaderboard")
    assert [line.account for line in told.leaders] == [c.account, a.account, b.account]
    assert [line.rank for line in told.leaders] == [1, 2, 3]
    assert {line.account: line.total_micro for line in told.leaders} == paid
    assert told.total_micro == 75 * BLY and told.contributors == 3
    assert [line.badges for line in told.leaders] == [["first in dataset"], [], []]
    assert len(ask(world, "leaderboard", limit=1).leaders) == 1
    world.checkpoint(step_ms=9 * DAY)
    freed = sum(amount(world.view, k.account) for k in world.keys)
    assert freed == 900_000_000 * BLY + 75 * BLY - sum(
        unclaimed(world, k) for k in world.keys
    )
    assert EARNED.get(world.view, key("nobody").account) is None
