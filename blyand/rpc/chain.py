"""Answers about the chain: tips, blocks, checkpoints."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from blyan_proto.block.header import NO_LAYER, Header
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.genesis import Genesis
from blyan_proto.rpc import chain as spec
from blyan_proto.rpc.errors import BLOCK_UNKNOWN, CHECKPOINT_UNKNOWN, RpcError
from blyan_proto.types import Chain
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.compute import Threads
from blyand.errors import NotHere, Pruned
from blyand.rpc.bind import Answers
from blyand.rpc.tally import Tally, kind_name
from blyand.rules.chain.execute import begin
from blyand.rules.records import TIPS
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import REFUSED, CheckpointStore
from blyand.store.schema import Outcome
from blyand.store.state import root_of

NO_ID = bytes(32)  # the parent of the genesis


@dataclass(frozen=True)
class ChainView:
    """What is on disk of the chains, and what waits."""

    blocks: BlockStore
    checkpoints: CheckpointStore
    pool: Pool


def bind(
    answers: Answers,
    *,
    machine: Machine,
    seen: ChainView,
    tally: Tally,
    lane: Threads,
) -> None:
    """Bind chain.*. `lane` reads the database."""

    @answers(spec.tips)
    async def tips(params: spec.GetTips) -> spec.Tips:
        height, last = machine.clock.height, machine.last_id
        ordered = {chain: _tips(machine, chain) for chain in Chain}
        counts = await tally.upto(height, lane)
        waiting = await lane.run(pending, seen)
        final = seen.checkpoints.at(height)
        root = final.checkpoint.state_root if final else _genesis_root(machine.genesis)
        return spec.Tips(
            chains=[
                tips_of(chain, ordered[chain], waiting, counts.of(chain))
                for chain in Chain
            ],
            finalised=height,
            checkpoint=last,
            state_root=root,
            pending=len(waiting),
        )

    @answers(spec.log)
    async def log(params: spec.GetLog) -> spec.Log:
        wanted = None if params.chain is None else Chain("ABCD".index(params.chain))
        height = machine.clock.height
        return spec.Log(
            blocks=await lane.run(newest, seen, height, wanted, params.limit)
        )

    @answers(spec.block)
    async def block(params: spec.GetBlock) -> spec.Block:
        return await lane.run(block_of, seen.blocks, params.id, params.payload)

    @answers(spec.checkpoint)
    async def checkpoint(params: spec.GetCheckpoint) -> spec.Checkpoint:
        newest = machine.clock.height
        height = newest if params.height is None else params.height
        if height == 0:
            return await lane.run(genesis_as_checkpoint, machine.genesis)
        final = seen.checkpoints.at(height) if height <= newest else None
        if final is None:
            raise RpcError(
                CHECKPOINT_UNKNOWN,
                f"checkpoint {height} is not here; the newest one is {newest}, and "
                "`blyanctl sync status` says how far back history goes",
            )
        return checkpoint_of(final)


def pending(seen: ChainView) -> list[tuple[bytes, Header]]:
    """Return (id, header) of the blocks that no checkpoint has ordered. Blocking."""
    found = ((block.id, block.header) for block in seen.pool)
    # A checkpoint is on disk a moment before its blocks leave the pool.
    return [(id, head) for id, head in found if seen.blocks.outcome(id) is None]


def tips_of(
    chain: Chain,
    ordered: dict[bytes, int],
    waiting: list[tuple[bytes, Header]],
    count: int,
) -> spec.ChainTips:
    """Return a chain's frontier: ordered tips (id -> height) and pending blocks.

    Of ordered tips only those are known from which new blocks take their parents.
    """
    mine = [(id, header) for id, header in waiting if header.chain == chain]
    heights = {**ordered, **{id: header.height for id, header in mine}}
    covered = {parent for _, header in mine for parent in header.parents}
    tips = [id for id in heights if id not in covered]
    return spec.ChainTips(
        chain=chain.letter,
        height=max(heights.values(), default=-1),
        blocks=count + len(mine),
        tips=sorted(tips, key=lambda id: (-heights[id], id)),
    )


def newest(
    seen: ChainView, height: int, chain: Chain | None, limit: int
) -> list[spec.BlockLine]:
    """Return at most `limit` blocks: pending ones first, then by order, newest first."""
    lines: list[spec.BlockLine] = []
    waiting = sorted(
        pending(seen),
        key=lambda pair: (pair[1].time_ms, pair[1].height),
        reverse=True,
    )
    for id, header in waiting:
        if len(lines) < limit and chain in (None, header.chain):
            lines.append(line_of(id, header, None))
    for id in _ordered(seen, height):
        if len(lines) >= limit:
            break
        signed = seen.blocks.signed_header(id)
        if signed is not None and chain in (None, signed.header.chain):
            lines.append(line_of(id, signed.header, seen.blocks.outcome(id)))
    return lines


def _ordered(seen: ChainView, height: int) -> Iterator[bytes]:
    while (final := seen.checkpoints.at(height)) is not None:
        yield from reversed(final.checkpoint.blocks)
        height -= 1


def line_of(id: bytes, header: Header, outcome: Outcome | None) -> spec.BlockLine:
    """Return one block of a list as declared."""
    return spec.BlockLine(
        id=id,
        chain=header.chain.letter,
        kind=kind_name(header),
        height=header.height,
        parents=list(header.parents),
        subject=header.subject,
        account=header.account,
        time_ms=header.time_ms,
        checkpoint=outcome.height if outcome else None,
        error=_error(outcome),
    )


def block_of(blocks: BlockStore, id: bytes, payload: bool) -> spec.Block:
    """Return one block as declared. RpcError BLOCK_UNKNOWN, Pruned. Blocking."""
    signed = blocks.signed_header(id)
    if signed is None:
        raise RpcError(BLOCK_UNKNOWN, f"block {id.hex()} is not here")
    header, outcome = signed.header, blocks.outcome(id)
    dropped_ms = blocks.dropped_ms(id)
    content = None
    if payload:
        if not blocks.is_whole(id):
            raise _why_without(id, dropped_ms)
        whole = blocks.get(id)
        content = plain(whole.content) if whole is not None else None
    return spec.Block(
        id=id,
        chain=header.chain.letter,
        kind=kind_name(header),
        height=header.height,
        parents=list(header.parents),
        anchor_height=header.anchor_height,
        anchor=header.anchor,
        meta_ref=header.meta_ref,
        subject=header.subject,
        layer=None if header.layer == NO_LAYER else header.layer,
        payload_bytes=header.payload_bytes,
        payload_digest=header.payload_digest,
        account=header.account,
        author=header.author,
        sequence=header.sequence,
        time_ms=header.time_ms,
        checkpoint=outcome.height if outcome else None,
        error=_error(outcome),
        payload=content,
        pruned_ms=dropped_ms,
    )


def _why_without(id: bytes, dropped_ms: int | None) -> NotHere:
    if dropped_ms is None:
        return NotHere(f"the payload of block {id.hex()} was lost from this disk")
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(dropped_ms // 1000))
    return Pruned(
        f"the payload of block {id.hex()} was pruned at {at}, as its retention was over; "
        "ask a node with the role archive"
    )


def plain(value: Any) -> Any:
    """Return a message as JSON: bytes in hexadecimal, enumerations by name."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, enum.Enum):
        return value.name.lower()
    return value


def checkpoint_of(final: FinalCheckpoint) -> spec.Checkpoint:
    """Return a final checkpoint as declared."""
    checkpoint = final.checkpoint
    return spec.Checkpoint(
        id=checkpoint.id,
        height=checkpoint.height,
        parent=checkpoint.parent,
        round=checkpoint.round,
        proposer=checkpoint.proposer,
        time_ms=checkpoint.time_ms,
        beacon=checkpoint.beacon,
        blocks=list(checkpoint.blocks),
        state_root=checkpoint.state_root,
        validators_root=checkpoint.validators_root,
        next_validators_root=checkpoint.next_validators_root,
        signers=[vote.voter for vote in final.votes],
    )


def genesis_as_checkpoint(genesis: Genesis) -> spec.Checkpoint:
    """Return height 0: the genesis, which nobody signed."""
    validators = genesis.founders.root
    return spec.Checkpoint(
        id=genesis.id,
        height=0,
        parent=NO_ID,
        round=0,
        proposer=genesis.validators[0].key,
        time_ms=genesis.time_ms,
        beacon=genesis.id,
        blocks=[],
        state_root=_genesis_root(genesis),
        validators_root=validators,
        next_validators_root=validators,
        signers=[],
    )


def _genesis_root(genesis: Genesis) -> bytes:
    return root_of((k, v) for k, v in begin(genesis).changes.items() if v is not None)


def _tips(machine: Machine, chain: Chain) -> dict[bytes, int]:
    known = TIPS.get(machine.view, bytes([chain]))
    return {tip.block: tip.height for tip in known.tips} if known else {}


def _error(outcome: Outcome | None) -> str | None:
    return (
        (outcome.text or "no reason is recorded")
        if outcome and outcome.code == REFUSED
        else None
    )
