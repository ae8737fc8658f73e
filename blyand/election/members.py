"""Taking part: register, then say what this node holds while it matters (DEC-A8).

A validator registers again by itself for its hash chain only: when state has none of it
(it is new, or the account has another key), and when three quarters of it are used.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from blyan_proto.block.economy import Hardware, Heartbeat, Registration
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Genesis
from blyan_proto.types import Role, bitmap
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised, HeldChanged
from blyand.rules.chain.validators import LINKS
from blyand.rules.records import CLOCK, MODELS, NODES, ModelRecord, Node
from blyand.rules.verdict import Ignore
from blyand.rules.view import View

logger = logging.getLogger(__name__)

CHECK_S = 0.5
CHAIN_S = 60.0  # between two looks at the hash chain
BEATS_PER_EPOCH = 3  # of a validator that hosts nothing: it has to be heard of


@dataclass(frozen=True)
class Claims:
    """What this node says of itself when it registers."""

    key: bytes  # the account's current one
    roles: int
    region: str
    hardware: Hardware


@dataclass(frozen=True)
class Chains:
    """This node's hash chains, by number. Both take a quarter of a second at first."""

    tail: Callable[[int], Awaitable[bytes]]
    is_nearly_used: Callable[[int, bytes], Awaitable[bool]]  # number, last link opened


class Member:
    """This node among the others."""

    def __init__(
        self,
        account: bytes,
        claims: Claims,
        genesis: Genesis,
        view: Callable[[], View],
        held: Callable[[bytes], frozenset[int]],
        make: Callable[..., Awaitable[object]],
        is_following: Callable[[], bool],
        events: Broadcast,
        chains: Chains | None = None,
    ) -> None:
        """`chains` where this node is to validate."""
        self._account = account
        self._claims = claims
        self._chains = chains
        self._epoch_ms = genesis.setting("epoch_span_ms")
        self._looked = -1e9
        self._beat_s = genesis.parameters.liveness_span_ms / 3000
        self._view = view
        self._held = held
        self._make = make
        self._is_following = is_following
        self._events = events
        self._said: tuple[bytes | None, bytes] = (None, b"")
        self._spoke = -1e9
        self._registered = -1e9

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Register when the network does not know us; beat while something is hosted."""
        with self._events.subscribe(HeldChanged, CheckpointFinalised) as facts:
            task_status.started()
            while True:
                try:
                    if self._is_following():
                        await self._speak()
                except (Ignore, Unavailable) as error:  # said again with the next beat
                    logger.info("not said now: %s", error)
                with trio.move_on_after(CHECK_S):
                    await facts.receive()

    async def _speak(self) -> None:
        now = trio.current_time()
        node = NODES.get(self._view(), self._account)
        claimed = Role(self._claims.roles)
        moved = node is not None and node.region != self._claims.region
        if node is None or moved or (node.roles ^ claimed) & Role.LEARN:
            # Who is said to learn, and does not, is waited for in every round.
            if now - self._registered > self._beat_s:
                self._registered = now
                if node is not None:  # whether it validates is said by command
                    others = claimed & ~Role.VALIDATE
                    claimed = others | Role(node.roles) & Role.VALIDATE
                await self._make(await self.registration(claimed))
        if node is None:
            return
        if node.roles & Role.VALIDATE and now - self._looked > CHAIN_S:
            self._looked = now
            if await self._needs_chain(node):
                await self._make(await self.registration(Role(node.roles)))
        model = self._model()
        if model is None:
            await self._beat_idle(node, now)
            return
        held = bitmap(self._held(model.id), model.groups)
        changed = (model.id, held) != self._said
        if now - self._spoke > (CHECK_S if changed else self._beat_s):
            self._said, self._spoke = (model.id, held), now
            await self._make(Heartbeat(FORMAT_VERSION, model.id, held, 0))

    async def registration(self, roles: Role, bond_micro: int = 0) -> Registration:
        """Return what this node registers with: its claims, and a bond to have.

        A hash chain is named when it is to validate: the one in use while that is ours
        and has links left, else the next one.
        """
        claims = self._claims
        node = NODES.get(self._view(), self._account)
        tail = None
        if roles & Role.VALIDATE and self._chains is not None:
            if node is None or not await self._needs_chain(node):
                number = node.tails if node else 0
            else:
                number = node.tails + 1
            tail = await self._chains.tail(number)
        return Registration(
            version=FORMAT_VERSION,
            key=claims.key,
            roles=int(roles),
            region=claims.region,
            hardware=claims.hardware,
            bond_micro=bond_micro,
            beacon_tail=tail,
        )

    async def _needs_chain(self, node: Node) -> bool:
        """True when state's hash chain is not ours, or nearly at its end."""
        if self._chains is None:
            return False
        if node.beacon_tail != await self._chains.tail(node.tails):
            return True
        link = LINKS.get(self._view(), node.key)
        if link is None or link.tail != node.beacon_tail:
            return False  # not opened yet
        return await self._chains.is_nearly_used(node.tails, link.revealed)

    async def _beat_idle(self, node: Node, now: float) -> None:
        """Beat without a model: a validator has to be heard of in every epoch."""
        clock = CLOCK.get(self._view())
        assert clock is not None
        silent_ms = clock.time_ms - node.heartbeat_ms
        if not node.roles & Role.VALIDATE or now - self._spoke <= self._beat_s:
            return
        if silent_ms * BEATS_PER_EPOCH > self._epoch_ms:
            self._spoke = now
            await self._make(Heartbeat(FORMAT_VERSION, None, b"", 0))

    def _model(self) -> ModelRecord | None:
        """The model that this node follows: the newest whose weights are complete."""
        whole = [m for m in MODELS.scan(self._view()) if m.weights == m.groups]
        return max(
            whole, key=lambda m: (m.run is not None, m.adopted_height), default=None
        )
