"""Executing a checkpoint: blocks in order, each takes effect or stays a no-op (DEC-A3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blyan_proto.block import data, economy, gate, ledger, model
from blyan_proto.block.block import Block
from blyan_proto.checkpoint import next_beacon
from blyan_proto.constants import MAX_PARENTS
from blyan_proto.genesis import Genesis
from blyan_proto.signing import account_of
from blyan_proto.types import Chain
from blyand.rules.chain import appointment, validators
from blyand.rules.data import dataset as datasets
from blyand.rules.economy import bond, book, claims, distribution, draw, duty
from blyand.rules.economy import ending as ledger_end
from blyand.rules.economy import epoch as epochs
from blyand.rules.economy import escrow, latency
from blyand.rules.economy import node as nodes
from blyand.rules.economy import rotation
from blyand.rules.economy import stake as stakes
from blyand.rules.economy import supply
from blyand.rules.economy import transfer as transfers
from blyand.rules.economy import usage, vesting
from blyand.rules.model import adoption, dispute
from blyand.rules.model import gate as gates
from blyand.rules.model import model as models
from blyand.rules.model import run, update
from blyand.rules.posting import Posting
from blyand.rules.records import CLOCK, TIPS, USED, Clock, Tip, Tips, Used
from blyand.rules.trust import censure, evidence, horizon, silence, slashing
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


@dataclass(frozen=True)
class Moment:
    """What execution knows besides state: of the checkpoint, and the genesis."""

    height: int
    time_ms: int
    genesis: Genesis
    proposer: bytes  # key of who first proposed the checkpoint
    preimage: bytes  # the link of its hash chain that it opens
    signers: frozenset[bytes] = frozenset()  # keys whose votes made the parent final


@dataclass(frozen=True)
class Outcome:
    """What became of one block: how money moved, or why it is a no-op."""

    block: bytes
    error: str | None
    postings: tuple[Posting, ...] = ()


@dataclass(frozen=True)
class Executed:
    """What a checkpoint did."""

    changes: Mapping[bytes, bytes | None]  # of state; None deletes
    outcomes: tuple[Outcome, ...]  # of its blocks, in their order
    postings: tuple[Posting, ...]  # of its end: what no block did


Effect = Callable[[Overlay, Block, Any, Moment], None]


def _update(view: Overlay, block: Block, payload: model.TileUpdate, at: Moment) -> None:
    update.apply(view, block, payload, at.genesis.parameters.liveness_span_ms)
    claims.claim_learning(view, payload, at.genesis.setting("learning_micro"))


def _capture(view: Overlay, block: Block, payload: Any, at: Moment) -> None:
    paid = escrow.capture(view, block, payload, at.genesis, at.time_ms)
    said = payload.statement
    served = usage.Served(
        server=paid.payee,
        payer=paid.payer,
        model=said.model,
        calls=tuple((one.group, one.calls) for one in said.usage),
        response_ms=said.response_ms,
        quality_ppm=said.quality_ppm,
        fee_micro=paid.fee_micro,
    )
    usage.count(view, served, at.time_ms)


def _release(view: Overlay, block: Block, payload: Any, at: Moment) -> None:
    escrow.release(view, block, payload, at.genesis, at.time_ms)


def _reverse(view: Overlay, block: Block, payload: Any, at: Moment) -> None:
    escrow.reverse(view, block, payload, at.genesis, at.time_ms)


def _turn_year(view: Overlay, at: Moment) -> None:
    supply.turn_year(view, at.time_ms)


EFFECTS: dict[type, Effect] = {
    model.Model: lambda view, block, payload, at: models.create(
        view, block, payload, at.height, at.genesis.parameters.replication
    ),
    model.Weights: lambda view, block, payload, at: models.add_weights(
        view, block, payload, at.height
    ),
    model.Placement: lambda view, block, payload, at: models.change_placement(
        view, block, payload, at.genesis.parameters.replication
    ),
    model.Run: lambda view, block, payload, at: run.start(
        view,
        block,
        payload,
        at.genesis.parameters.liveness_span_ms,
        at.genesis.setting("run_idle_span_ms"),
        at.genesis.parameters.newcomer_share_ppm,
    ),
    model.TileUpdate: _update,
    model.Snapshot: lambda view, block, payload, at: update.keep_snapshot(
        view, payload
    ),
    model.Adoption: lambda view, block, payload, at: adoption.adopt(
        view, block, payload, at.height, set(appointment.voters(view))
    ),
    gate.SealedScore: lambda view, block, payload, at: gates.seal(view, block, payload),
    gate.Score: lambda view, block, payload, at: gates.score(
        view, block, payload, at.height
    ),
    data.Dataset: lambda view, block, payload, at: datasets.register(
        view, block, payload
    ),
    economy.Registration: lambda view, block, payload, at: nodes.register(
        view,
        block,
        payload,
        at.height,
        at.time_ms,
        at.genesis.parameters.liveness_span_ms,
    ),
    economy.Heartbeat: lambda view, block, payload, at: nodes.beat(
        view, block, payload, at.time_ms
    ),
    economy.Dispute: lambda view, block, payload, at: dispute.begin(
        view, block, payload
    ),
    economy.DisputeVerdict: lambda view, block, payload, at: dispute.judge(
        view,
        block,
        payload,
        validators.signers(view),
        at.genesis.parameters.liveness_span_ms,
    ),
    economy.Transfer: lambda view, block, payload, at: transfers.transfer(
        view, block, payload, at.genesis, at.time_ms
    ),
    ledger.Reserve: lambda view, block, payload, at: escrow.reserve(
        view, block, payload, at.genesis, at.time_ms
    ),
    ledger.Capture: _capture,
    ledger.Release: _release,
    ledger.Reverse: _reverse,
    ledger.Stake: lambda view, block, payload, at: stakes.stake(
        view, block, payload, at.genesis, at.time_ms
    ),
    economy.Bond: lambda view, block, payload, at: bond.change(
        view, block, payload, at.genesis, at.time_ms
    ),
    economy.KeyRotation: lambda view, block, payload, at: rotation.rotate(
        view,
        block,
        payload,
        at.height,
        at.time_ms,
        at.genesis.setting("epoch_span_ms"),
    ),
    economy.Evidence: lambda view, block, payload, at: evidence.punish(
        view, block, payload, at.height, at.time_ms
    ),
    economy.Censure: lambda view, block, payload, at: censure.vote(
        view,
        block,
        payload,
        at.height,
        at.time_ms,
        at.genesis.setting("censure_span_ms"),
    ),
    economy.LatencyReport: lambda view, block, payload, at: latency.report(
        view,
        block,
        payload,
        at.time_ms,
        at.genesis.setting("epoch_span_ms"),
        at.genesis.setting("latency_span_ms"),
    ),
}


Ending = Callable[[Overlay, Moment], None]
EpochEnding = Callable[[Overlay, Moment, epochs.Epoch], None]

# What happens at an epoch's end, in this order: rewards, then who signs next.
EPOCH_ENDINGS: tuple[EpochEnding, ...] = (
    lambda view, at, epoch: distribution.distribute(
        view, at.genesis, epoch, at.height, at.time_ms
    ),
    lambda view, at, epoch: silence.charge(
        view, at.genesis.setting("downtime_span_ms"), at.height, at.time_ms
    ),
    lambda view, at, epoch: bond.free_due(view, at.time_ms),
    lambda view, at, epoch: appointment.renew(view, at.genesis, epoch, at.height),
    lambda view, at, epoch: horizon.advance(
        view, at.genesis, epoch.number, at.height, at.time_ms
    ),
)


def _vest(view: Overlay, at: Moment) -> None:
    vesting.pay_due(view, epochs.running(view).number, at.time_ms)


def _end_epoch(view: Overlay, at: Moment) -> None:
    epoch = epochs.count(view)
    if epochs.is_over(epoch, at.time_ms, at.genesis.setting("epoch_span_ms")):
        for ending in EPOCH_ENDINGS:
            ending(view, at, epoch)
        duty.forget(view)
        epochs.follow(view, epoch, at.height, at.time_ms)


def _close_rounds(view: Overlay, at: Moment) -> None:
    gated = gates.open_before(view)  # before: a run may end with its last round
    run.close_rounds(view, at.genesis.parameters.liveness_span_ms)
    gates.advance(view, gated, at.height)


# What happens after the blocks of every checkpoint, in this order.
ENDINGS: tuple[Ending, ...] = (
    _turn_year,
    lambda view, at: ledger_end.end(view, at.genesis, at.time_ms),
    _close_rounds,
    lambda view, at: dispute.drop_old(view, at.genesis.setting("dispute_span_ms")),
    lambda view, at: slashing.apply_offences(view, at.height, at.time_ms),
    _vest,
    _end_epoch,
)


def begin(genesis: Genesis) -> Executed:
    """Return the state at height 0, as changes on an empty view.

    Reject when the genesis gives or bonds more than there can be.
    """
    view = Overlay(_Nothing())
    CLOCK.put(view, Clock(0, genesis.time_ms, (genesis.id,)))
    validators.begin(view, genesis)
    epochs.begin(view, genesis)
    for balance in genesis.balances:
        book.mint(view, (balance.account, book.Purse.FREE), balance.micro, "genesis")
    supply.begin(view, genesis.time_ms)
    horizon.begin(view, genesis.time_ms)
    draw.begin(view, genesis)
    for participant in appointment.participants_of(genesis):
        account = account_of(participant.key)
        bond.lock(view, account, participant.bond_micro)
        nodes.enroll(view, account, participant, 0, genesis.time_ms)
    return Executed(view.changes, (), tuple(view.journal))


def execute(
    view: View, blocks: Sequence[Block], moment: Moment, begun: list[Block]
) -> Executed:
    """Execute one checkpoint's blocks in order.

    Reject from a rule makes the block a no-op. Any other exception is a bug and leaves
    this function; then the last of `begun` is the block that met it (DEC-C2), and none
    where the checkpoint's end did.
    """
    state = Overlay(view)
    clock = CLOCK.get(view)
    assert clock is not None
    beacons = (*clock.beacons, next_beacon(clock.beacons[-1], moment.preimage))[-3:]
    CLOCK.put(state, Clock(moment.height, moment.time_ms, beacons))
    if moment.height > 1:  # the genesis was not voted on
        duty.count(state, moment.proposer, moment.signers)
        longest_ms = 2 * moment.genesis.parameters.idle_interval_ms
        silence.count(
            state, moment.signers, min(moment.time_ms - clock.time_ms, longest_ms)
        )
    validators.advance(state, moment.proposer, moment.preimage)
    outcomes = []
    for block in blocks:
        begun.append(block)
        outcomes.append(_execute_one(state, block, moment))
    _advance_tips(state, blocks)
    by_blocks = len(state.journal)
    begun.clear()  # no block is to blame for what comes now
    for ending in ENDINGS:
        ending(state, moment)
    return Executed(state.changes, tuple(outcomes), tuple(state.journal[by_blocks:]))


def _execute_one(state: Overlay, block: Block, moment: Moment) -> Outcome:
    scratch = Overlay(state)
    try:
        _spend_sequence(scratch, block)
        content = block.content
        effect = EFFECTS.get(type(content))
        if effect is None:
            raise Reject("this kind has no effect in this version")
        effect(scratch, block, content, moment)
    except Reject as error:
        return Outcome(block.id, str(error)[:200])
    state.merge(scratch)
    return Outcome(block.id, None, tuple(scratch.journal))


def _advance_tips(state: Overlay, blocks: Sequence[Block]) -> None:
    for chain in Chain:
        known = TIPS.get(state, bytes([chain]))
        tips = {tip.block: tip for tip in known.tips} if known else {}
        for block in blocks:
            if block.header.chain == chain:
                for parent in block.header.parents:
                    tips.pop(parent, None)
                tips[block.id] = Tip(block.id, block.header.height)
        ordered = sorted(tips.values(), key=lambda t: (t.height, t.block), reverse=True)
        if ordered:
            TIPS.put(state, Tips(tuple(ordered[:MAX_PARENTS])), bytes([chain]))


def _spend_sequence(view: Overlay, block: Block) -> None:
    """A key signs for its account, and a sequence is spent once per chain (DEC-A9, A10)."""
    header = block.header
    if not rotation.may_sign(view, header.account, header.author):
        raise Reject("signed by a key that is not the account's current one")
    chain = bytes([header.chain])
    used = USED.get(view, header.account, chain)
    if used is not None and header.sequence <= used.sequence:
        raise Reject(f"sequence {header.sequence} is spent")
    USED.put(view, Used(header.sequence), header.account, chain)


class _Nothing:
    def get(self, key: bytes) -> bytes | None:
        return None

    def scan(self, prefix: bytes) -> Any:
        return iter(())
