"""How a node that knows nothing, or too little, comes to the state of now (DEC-A11).

A newest checkpoint is proved from what is trusted: the genesis, the operator's pin, or
what this node executed itself. Its state comes from several peers at once and replaces
the executed one; the follower goes on from there. Until then a node that may not follow
holds still. Everything is continued after a kill.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.errors import BadProof, ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.sync import Checkpoints
from blyan_proto.state import CHUNKS, StateManifest
from blyan_proto.validators import ValidatorSet
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.errors import ConfigFault, DiskFull, Unavailable
from blyand.joining import offers
from blyand.joining.gathering import Arriving, Gathering, Giving
from blyand.joining.offers import Offered
from blyand.joining.prover import Asking, Prover
from blyand.rules.chain.intake import check_final
from blyand.rules.chain.trust import Known, Pin, Refused, check_pin
from blyand.rules.verdict import Reject

logger = logging.getLogger(__name__)

LOOK_S = 1.0
SETS_S = 3.0  # for the hand-overs that one peer shows
FIRST_WORD_S = 3.0  # a fresh node hears its peers for as long before it follows


class Peers(Asking, Giving, offers.Asking, Protocol):
    """What joining asks of peers: protocols.sync.Client."""

    async def before(self, peer: str, height: int, count: int) -> Checkpoints: ...

    async def manifest(self, peer: str, checkpoint: bytes) -> StateManifest: ...


class Restored(Arriving, Protocol):
    """A state on its way to the disk: store.restore.Restore."""

    def finish(self, final: FinalCheckpoint) -> None: ...


class Chain(Protocol):
    """What joining needs of this node's chain."""

    @property
    def known(self) -> Known:
        """The newest checkpoint that is executed."""
        ...

    @property
    def signers(self) -> ValidatorSet:
        """Who signs the next one."""
        ...

    @property
    def decides(self) -> bool:
        """Nothing more becomes final without this node, so it is not behind."""
        ...

    @property
    def claimed(self) -> int:
        """The height that the peers say they are at."""
        ...

    def begin(self, final: FinalCheckpoint, manifest: StateManifest) -> Restored:
        """Begin, or go on with, the restore of a state. Blocking. BadProof."""
        ...

    def hold(self, held: bool) -> None:
        """Follow no checkpoint while held."""
        ...

    async def jump(
        self, final: FinalCheckpoint, prover: Prover, restored: Restored
    ) -> None:
        """Let the restored state be the executed one."""
        ...


@dataclass(frozen=True)
class Aim:
    """When to join by a state, and from what it is proved."""

    pin: Pin | None  # what the operator vouches for, if it is ahead of this node
    must: bool  # not to follow from what is here
    far: int  # checkpoints behind that are worth a state
    span_ms: int  # trust
    retention_ms: int  # what peers keep for sure; nothing older can be followed


@dataclass
class Told:
    """What people see of it."""

    phase: str = "waiting for a peer"
    trouble: str = ""
    height: int = 0  # of the checkpoint that is being joined
    chunks: int = 0
    state_bytes: int = 0
    began_s: float = 0.0
    joined_s: float | None = None  # how long it took
    gave: dict[str, int] = field(default_factory=dict)  # chunks by peer
    out: dict[str, str] = field(default_factory=dict)  # who gave something false


class Joiner:
    """Joins when it is due."""

    def __init__(
        self,
        genesis: Genesis,
        aim: Aim,
        chain: Chain,
        asking: Peers,
        peers: Callable[[], Sequence[str]],
        blame: Callable[[str, Exception], None],
        clock: Clock,
        lane: Threads,
    ) -> None:
        self._genesis, self._aim, self._chain = genesis, aim, chain
        self._asking, self._peers, self._blame = asking, peers, blame
        self._clock, self._lane = clock, lane
        self._prover: Prover | None = None
        self._offered = Offered(asking, peers)
        self._others: dict[str, str] = {}  # who has another checkpoint than the pin
        self._must = aim.must  # until it has joined
        self._proved = 0  # the highest checkpoint that a quorum signed
        self.told = Told()
        self.joined = trio.Event()  # or found that there is no need

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Join now if it must be, and later whenever this node is far behind.

        ConfigFault when the operator's pin is too old.
        """
        self.told.began_s = trio.current_time()
        self._chain.hold(True)
        task_status.started()
        if not self._must:
            await self._hear()
        while True:
            while self._must or self._is_far(self._chain.claimed):
                if await self._join():
                    self._must = False
                elif self._must or self._is_far(self._proved):
                    await trio.sleep(LOOK_S)
                else:
                    break  # it may be a lie: what peers only claim holds nothing up
            self._follow()
            await trio.sleep(LOOK_S)

    def _follow(self) -> None:
        self._prover = None  # it grows old; what is executed from now on is the anchor
        self._chain.hold(False)
        self.joined.set()
        self.told.phase, self.told.trouble = "following", ""

    async def _hear(self) -> None:
        """Give a fresh node's peers a moment to say how far they are."""
        if not self._chain.known.height and not self._chain.decides:
            with trio.move_on_after(FIRST_WORD_S):
                while not self._peers():
                    await trio.sleep(LOOK_S / 20)

    def _is_far(self, height: int) -> bool:
        """True when a state is the better way to a checkpoint of that height."""
        known = self._chain.known
        behind = height - known.height
        if behind <= 0 or self._chain.decides:
            return False
        old = self._clock.now_ms() - known.time_ms > self._aim.retention_ms
        return behind >= self._aim.far or (old and behind > 1)

    async def _join(self) -> bool:
        """Try once; True when the state was replaced, or nothing better is offered."""
        if not self._peers():
            self.told.phase = "waiting for a peer"
            return False
        self.told.phase = "looking for a checkpoint"
        prover = self._prover or await self._ground()
        if prover is None:
            return False
        found = await self._find(prover)
        if found is None:
            return False
        final, peer = found
        if not self._must and not self._is_far(final.checkpoint.height):
            return False
        self._chain.hold(True)
        try:
            manifest = await self._asking.manifest(peer, final.checkpoint.id)
            restored = await self._lane.run(self._chain.begin, final, manifest)
            await self._gather(final, restored)
            self.told.phase = "taking the state over"
            await self._chain.jump(final, prover, restored)
        except ProtocolError as error:
            self._drop(peer, error)
            return False
        except DiskFull as error:
            self.told.trouble = str(error)
            return False
        except Unavailable as error:
            logger.info("the state of checkpoint %d: %s", self.told.height, error)
            self._offered.forget(peer)
            return False
        self._prover = None
        self._offered.clear()
        self.told.joined_s = trio.current_time() - self.told.began_s
        logger.info("joined at checkpoint %d", final.checkpoint.height)
        return True

    async def _gather(self, final: FinalCheckpoint, restored: Restored) -> None:
        id = final.checkpoint.id
        gathering = Gathering(id, restored, self._asking, self._lane, self._blame)
        told = self.told
        told.phase, told.height = "fetching the state", final.checkpoint.height
        told.gave, told.out = gathering.gave, gathering.out

        async def look() -> None:
            while True:
                told.chunks, told.state_bytes = gathering.done, gathering.bytes
                await self._offered.ask(self._least)
                await trio.sleep(LOOK_S / 4)

        def providers() -> set[str]:
            return self._offered.by(id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            ending = await gathering.run(providers)
            nursery.cancel_scope.cancel()
        if ending is not None:
            raise ending
        told.chunks, told.state_bytes = CHUNKS, gathering.bytes

    # What is trusted

    async def _ground(self) -> Prover | None:
        """Return what proofs begin with; None while no peer shows the pin."""
        pin = self._aim.pin
        known = self._chain.known
        if pin is None or pin.height <= known.height:
            self._prover = self._prover_from(known.height, self._chain.signers)
            return self._prover
        for peer in self._peers():
            try:
                shown = await self._asking.before(peer, pin.height + 1, 1)
                if not shown.checkpoints:
                    continue
                final = shown.checkpoints[0]
                if final.checkpoint.id != pin.id:
                    self._others[peer] = str(Pin(pin.height, final.checkpoint.id))
                    continue
                self._check_pin(pin, final)
                root = final.checkpoint.next_validators_root
                signers = await self._asking.validators(peer, root)
            except (Unavailable, ProtocolError) as error:
                logger.debug("%s does not show the pin: %s", peer, error)
                continue
            self._prover = self._prover_from(pin.height, signers)
            self.told.trouble = ""
            return self._prover
        why = self._why_no_pin(pin)
        if why != self.told.trouble:  # asked every second; said once
            logger.warning("%s", why)
        self.told.trouble = why
        return None

    def _check_pin(self, pin: Pin, final: FinalCheckpoint) -> None:
        now_ms, time_ms = self._clock.now_ms(), final.checkpoint.time_ms
        try:
            check_pin(pin, time_ms, now_ms, self._aim.span_ms)
        except Refused as error:
            raise ConfigFault(str(error)) from error

    def _prover_from(self, height: int, signers: ValidatorSet) -> Prover:
        return Prover(self._genesis, self._asking, self._lane, height, signers)

    def _why_no_pin(self, pin: Pin) -> str:
        others = {peer: o for peer, o in self._others.items() if peer in self._peers()}
        if others:
            return (
                f"no peer has checkpoint {pin}; {len(others)} have "
                f"{next(iter(others.values()))} there: take the pin again from somebody "
                "you trust, by `blyanctl sync checkpoint`"
            )
        return (
            f"no connected peer shows checkpoint {pin}; it may be of another network, or "
            "wrong: look again where you have it from"
        )

    # What is offered

    async def _find(self, prover: Prover) -> tuple[FinalCheckpoint, str] | None:
        """Return the best proved checkpoint whose state is offered, and by whom."""
        await self._offered.ask(self._least)
        for peer in self._peers():  # whoever knows a later set, its offers or not
            await self._follow_sets(prover, peer)
        for peer, final in list(self._offered.best(self._least)):
            if await self._is_proved(prover, peer, final):
                return final, peer
        if not self.told.trouble:
            self.told.trouble = "no connected peer offers a newer state yet"
        return None

    async def _follow_sets(self, prover: Prover, peer: str) -> None:
        try:
            with trio.move_on_after(SETS_S):
                await prover.follow(peer)
        except Reject as error:
            logger.info("%s shows a false hand-over: %s", peer, error)
            self._drop(peer, error)
        except (Unavailable, ProtocolError) as error:
            logger.debug("%s shows no hand-overs: %s", peer, error)

    @property
    def _least(self) -> int:
        """The lowest height that is worth joining at."""
        pin = self._aim.pin
        return max(pin.height if pin else 0, self._chain.known.height + 1)

    async def _is_proved(
        self, prover: Prover, peer: str, final: FinalCheckpoint
    ) -> bool:
        pin, checkpoint = self._aim.pin, final.checkpoint
        if pin is not None and pin.height == checkpoint.height:
            if pin.id != checkpoint.id:  # of another history: people have to decide
                logger.warning("%s has another checkpoint than the pin", peer)
                self._offered.distrust(peer)
                return False
        try:
            if pin is not None and pin.id == checkpoint.id:
                root = checkpoint.validators_root
                signers = await self._asking.validators(peer, root)
                await self._lane.run(check_final, final, self._genesis, signers)
            else:
                await prover.prove(peer, final)
        except Reject as error:
            self.told.trouble = f"{peer} offers a checkpoint that is not final: {error}"
            logger.warning("%s", self.told.trouble)
            self._drop(peer, error)
            return False
        except (Unavailable, ProtocolError) as error:
            logger.info("%s proves nothing: %s", peer, error)
            self._offered.forget(peer)
            return False
        self._proved = max(self._proved, checkpoint.height)
        self.told.trouble = ""
        return True

    def _drop(self, peer: str, error: Exception) -> None:
        """Ask a peer for nothing for a while; other errors are blamed where they came in."""
        if isinstance(error, (Reject, BadProof)):
            self._blame(peer, error)
        self.told.out[peer] = str(error)
        self._offered.distrust(peer)
