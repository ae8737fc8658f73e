"""Taking part: register once, then say what this node holds while it matters (DEC-A8)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from blyan_proto.block.economy import Hardware, Heartbeat, Registration
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Genesis
from blyan_proto.types import Role, bitmap
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised, HeldChanged
from blyand.rules.records import MODELS, NODES, ModelRecord
from blyand.rules.verdict import Ignore
from blyand.rules.view import View

logger = logging.getLogger(__name__)

CHECK_S = 0.5


class Member:
    """This node among the others."""

    def __init__(
        self,
        account: bytes,
        registration: Registration,
        genesis: Genesis,
        view: Callable[[], View],
        held: Callable[[bytes], frozenset[int]],
        make: Callable[..., Awaitable[object]],
        is_following: Callable[[], bool],
        events: Broadcast,
    ) -> None:
        self._account = account
        self._registration = registration
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
        known = NODES.get(self._view(), self._account)
        if known is None or (known.roles ^ self._registration.roles) & Role.LEARN:
            # Who is said to learn, and does not, is waited for in every round.
            if now - self._registered > self._beat_s:
                self._registered = now
                await self._make(self._registration)
        if known is None:
            return
        model = self._model()
        if model is None:
            return
        held = bitmap(self._held(model.id), model.groups)
        changed = (model.id, held) != self._said
        if now - self._spoke > (CHECK_S if changed else self._beat_s):
            self._said, self._spoke = (model.id, held), now
            await self._make(Heartbeat(FORMAT_VERSION, model.id, held, 0))

    def _model(self) -> ModelRecord | None:
        """The model that this node follows: the newest whose weights are complete."""
        whole = [m for m in MODELS.scan(self._view()) if m.weights == m.groups]
        return max(
            whole, key=lambda m: (m.run is not None, m.adopted_height), default=None
        )


def registration_of(
    key: bytes, roles: int, region: str, hardware: Hardware, tail: bytes | None
) -> Registration:
    """Return the registration of a node that bonds nothing."""
    return Registration(
        version=FORMAT_VERSION,
        key=key,
        roles=roles,
        region=region,
        hardware=hardware,
        bond_micro=0,
        beacon_tail=tail,
    )
