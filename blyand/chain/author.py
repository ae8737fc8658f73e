"""Making our own blocks: sequence, parents, anchor, work, signature, intake, gossip."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import trio

from blyan_proto.block.block import Block, Unsigned, encode_block
from blyan_proto.block.header import INLINE, NO_LAYER, Header
from blyan_proto.block.payload import encode_payload, kind_of, payload_digest
from blyan_proto.block.work import FIRST_NONCE, find_nonce
from blyan_proto.constants import FORMAT_VERSION, MAX_PARENTS
from blyan_proto.signing import Purpose, SigningKey
from blyand.chain.intake import Intake
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.clock import Clock
from blyand.errors import TooSlow, Unavailable
from blyand.rules.chain.intake import difficulty
from blyand.rules.economy.rotation import may_sign
from blyand.rules.records import TIPS, USED
from blyand.store.intents import IntentLog

logger = logging.getLogger(__name__)

REPEAT_S = 2.0  # how long an own block may stay unordered before it is announced again
REPEAT_BLOCKS = 64
TRIES = 1024  # nonces of one job: a millisecond or two without the loop
DRAIN_S = 30.0  # for pending blocks to be ordered before the last one of a key
ORDERED_S = 120.0  # for that one
LOOK_S = 0.05
WORK_S = 120.0  # how long a nonce may be sought

Publish = Callable[[bytes], Awaitable[None]]


class Author:
    """Signs this node's facts, one at a time, and announces them."""

    def __init__(
        self,
        key: SigningKey,
        machine: Machine,
        pool: Pool,
        intake: Intake,
        intents: IntentLog,
        clock: Clock,
        publish: Publish,
        settled: trio.Event,
    ) -> None:
        """Nothing is signed before `settled`: what we signed may be forgotten (DEC-A9)."""
        self._key = key
        self._machine = machine
        self._pool = pool
        self._intake = intake
        self._intents = intents
        self._clock = clock
        self._publish = publish
        self._settled = settled
        self._turn = trio.Lock()
        self._abandoned: set[bytes] = set()

    @property
    def pending(self) -> list[Block]:
        """Our own blocks that no checkpoint took yet, by ascending sequence."""
        return self._pool.of(self._key.public)

    async def make(
        self,
        payload: Any,
        *,
        subject: str = "",
        layer: int = NO_LAYER,
        meta_ref: bytes | None = None,
    ) -> Block:
        """Make, store durably and announce a block with this payload (DEC-D1).

        TooSlow when this machine does not find its anti-spam work in time; Unavailable
        while state names another key than ours for the account.
        """
        await self._settled.wait()
        async with self._turn:  # sequences enter the pool in their order
            self._check_key()
            block = await self._sign(payload, subject, layer, meta_ref)
        await self._publish(encode_block(block))
        return block

    async def make_many(self, contents: Sequence[Unsigned]) -> list[Block]:
        """Make blocks of one chain, each on the one before: one sync for all of them.

        Errors as of `make`, and Ignore or Reject of the first that is not taken in; those
        before it are.
        """
        await self._settled.wait()
        async with self._turn:
            self._check_key()
            spent = self._spent()
            first = await self._machine.lane.run(self._reserve, spent, len(contents))
            made: list[Block] = []
            for sequence, content in enumerate(contents, first):
                made.append(await self._signed(content, sequence, made[-1:]))
            for admission in await self._intake.submit_many(made, ""):
                if admission.error is not None:
                    raise admission.error
        for block in made:
            await self._publish(encode_block(block))
        return made

    async def _sign(
        self, payload: Any, subject: str, layer: int, meta_ref: bytes | None
    ) -> Block:
        spent = self._spent()
        sequence = await self._machine.lane.run(self._reserve, spent, 1)
        content = Unsigned(payload, subject, layer, meta_ref)
        block = await self._signed(content, sequence, ())
        await self._intake.submit(block)
        return block

    async def _signed(
        self, content: Unsigned, sequence: int, before: Sequence[Block]
    ) -> Block:
        """Return a block; `before`: the one it stands on, if that is not in the pool yet."""
        raw = encode_payload(content.payload)
        header = self._header(content, raw, sequence)
        for parent in before:
            height = parent.header.height + 1
            header = replace(header, parents=(parent.id,), height=height)
        header = await self._with_work(header)
        return Block(header, self._key.sign(Purpose.BLOCK, header.network, header), raw)

    async def make_last(self, payload: Any) -> Block:
        """Make the last block that this key signs, and wait until it is ordered.

        It waits for our pending blocks first: they would come to nothing after it. TooSlow
        when no checkpoint takes it in time; then this key goes on.
        """
        await self._settled.wait()
        async with self._turn:
            self._check_key()
            with trio.move_on_after(DRAIN_S):
                while any(self._pool.of(self._key.public)):
                    await trio.sleep(LOOK_S)
            block = await self._sign(payload, "", NO_LAYER, None)
            await self._publish(encode_block(block))
            with trio.move_on_after(ORDERED_S):
                while block.id in self._pool:
                    await trio.sleep(LOOK_S)
            if block.id in self._pool:
                raise TooSlow(
                    "no checkpoint has ordered the block yet; it counts as soon as one does"
                )
        return block

    def _check_key(self) -> None:
        account, key = self._key.account, self._key.public
        if not may_sign(self._machine.view, account, key):
            raise Unavailable(
                "state names another key for this account: the node is about to start again "
                "with it, or has not executed the chain up to this key"
            )

    def _spent(self) -> int:
        """Return the highest sequence that state knows of us: the log may be lost."""
        used = USED.scan(self._machine.view, self._key.account)
        return max((one.sequence for one in used), default=0)

    def _reserve(self, spent: int, count: int) -> int:
        """Return the first of sequences never used, durably reserved (DEC-A9). Blocking."""
        self._intents.raise_sequence_to(self._key.account, spent)
        return self._intents.reserve_sequence(self._key.account, count)

    async def _with_work(self, header: Header) -> Header:
        """Return the header with a nonce of the difficulty of its anchor's state.

        In slices: between two of them the loop goes on, and the caller may give up.
        """
        bits = difficulty(self._machine.genesis, header.anchor_height)
        if not bits:
            return header
        first = FIRST_NONCE
        with trio.move_on_after(WORK_S):
            while True:
                nonce = await self._machine.lane.run(
                    find_nonce, header, bits, first, TRIES
                )
                if nonce is not None:
                    return replace(header, nonce=nonce)
                first += TRIES
        raise TooSlow(
            f"this network asks for {bits} bits of work for a block, and this machine "
            f"did not find them in {WORK_S:g} s: try again, or use a faster machine"
        )

    def _header(self, content: Unsigned, raw: bytes, sequence: int) -> Header:
        kind = kind_of(content.payload)
        heights = self._parents(kind.chain)
        return Header(
            version=FORMAT_VERSION,
            network=self._machine.genesis.id,
            chain=kind.chain,
            kind=kind.code,
            height=1 + max(heights.values()) if heights else 0,
            parents=tuple(sorted(heights)),
            anchor_height=self._machine.clock.height,
            anchor=self._machine.last_id,
            meta_ref=content.meta_ref,
            subject=content.subject,
            layer=content.layer,
            payload_type=INLINE,
            payload_bytes=len(raw),
            payload_digest=payload_digest(raw),
            account=self._key.account,
            author=self._key.public,
            sequence=sequence,
            time_ms=self._clock.now_ms(),
            nonce=0,
        )

    def _parents(self, chain: int) -> dict[bytes, int]:
        """Return the parents (id -> height): ordered tips, and our own pending block.

        Naming only those keeps a block from waiting for a stranger's pending one.
        """
        tips = TIPS.get(self._machine.view, bytes([chain]))
        heights = {tip.block: tip.height for tip in tips.tips} if tips else {}
        self._abandoned = {id for id in self._abandoned if id in self._pool}
        own = self._pool.newest_of(self._key.public, chain, self._abandoned)
        if own is not None:
            while len(heights) >= MAX_PARENTS:
                heights.pop(min(heights, key=lambda id: (heights[id], id)))
            for parent in own.header.parents:
                heights.pop(parent, None)
            heights[own.id] = own.header.height
        return heights

    def abandon(self, block: bytes) -> None:
        """Let no later block of ours stand on this pending one: no checkpoint takes it."""
        self._abandoned.add(block)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Announce again what no checkpoint took: gossip may lose messages."""
        task_status.started()
        while True:
            await trio.sleep(REPEAT_S)
            old = self._clock.now_ms() - int(REPEAT_S * 1000)
            own = self._pool.of(self._key.public)
            late = [block for block in own if block.header.time_ms < old]
            for block in late[:REPEAT_BLOCKS]:
                await self._publish(encode_block(block))
