"""One height: drives its agreement, carries out what that asks for, in order.

The agreement (rules/chain/agreement.py) waits for nothing and signs nothing; here its
effects become signatures, messages, timers, drafts and judgements. All of it ends, by
cancellation, when the height's checkpoint is executed, whoever decided it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

import trio

from blyan_proto.checkpoint import FinalCheckpoint, Proposal, Vote
from blyan_proto.signing import SigningKey
from blyand.clock import Clock
from blyand.errors import Halted
from blyand.finality.pen import Pen
from blyand.finality.ports import Chain, Mesh, Pending
from blyand.finality.proposing import Proposing
from blyand.finality.scrutiny import Scrutiny
from blyand.finality.timing import Timing
from blyand.metrics import Metrics
from blyand.poison import Poisoned
from blyand.rules.chain.agreement import NOT_STARTED, Agreement
from blyand.rules.chain.effects import (
    Behind,
    Cast,
    Decide,
    Effect,
    Evidence,
    Propose,
    Repropose,
    Schedule,
    Step,
    Validate,
)
from blyand.rules.chain.heard import ROUNDS_BEHIND
from blyand.rules.verdict import Ignore, Reject
from blyand.store.intents import AlreadySigned

logger = logging.getLogger(__name__)

Report = Callable[[Vote | Proposal, Vote | Proposal], None]


class Height:
    """The agreement on one checkpoint. `run` it once."""

    def __init__(
        self,
        agreement: Agreement,
        key: SigningKey | None,
        pen: Pen,
        chain: Chain,
        pending: Pending,
        scrutiny: Scrutiny,
        proposing: Proposing,
        mesh: Mesh,
        clock: Clock,
        timing: Timing,
        bound_ms: int,
        report: Report,
        metrics: Metrics,
    ) -> None:
        """`key` None: this node observes."""
        self.agreement = agreement
        self.decided: FinalCheckpoint | None = None  # by what was heard here
        self.began_s: float | None = None  # when the first round began
        self._key = key
        self._pen = pen
        self._chain = chain
        self._pending = pending
        self._scrutiny = scrutiny
        self._proposing = proposing
        self._mesh = mesh
        self._clock = clock
        self._timing = timing
        self._bound_ms = bound_ms
        self._report = report
        self._metrics = metrics
        self._effects: deque[Effect] = deque()
        self._wake = trio.Event()
        self._is_over = False
        self._nursery: trio.Nursery

    @property
    def votes(self) -> bool:
        """True where this node has a vote, and gives it."""
        return self._key is not None and self._pen.may_sign(self.number)

    @property
    def number(self) -> int:
        return self.agreement.height

    async def run(self, not_before_s: float, idle_at_s: float) -> None:
        """Agree, until cancelled. Times are trio's: when it may, and has to, begin."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._begin, not_before_s, idle_at_s)
            while True:
                self._wake = trio.Event()
                while self._effects:
                    await self._carry_out(self._effects.popleft(), idle_at_s)
                await self._wake.wait()

    def receive(self, message: Proposal | Vote) -> None:
        """Take a message of this height whose signature was checked."""
        if isinstance(message, Vote):
            self._take(self.agreement.receive_vote(message))
        else:
            ahead_ms = message.checkpoint.time_ms - self._clock.now_ms()
            is_timely = abs(ahead_ms) <= self._bound_ms
            self._take(self.agreement.receive_proposal(message, is_timely=is_timely))

    def conclude(self, final: FinalCheckpoint) -> None:
        """The height is over with this checkpoint, or with one that contradicts it.

        What comes late is still counted, and may show who signed twice.
        """
        self._is_over = True
        self._take(
            self.agreement.conclude(
                Decide(
                    final.checkpoint,
                    final.checkpoint.id,
                    final.votes[0].statement.round,
                    final.votes,
                )
            )
        )

    async def _begin(self, not_before_s: float, idle_at_s: float) -> None:
        """Start when there is something to order, or it was quiet for long enough."""
        if self.agreement.round == NOT_STARTED:
            await trio.sleep_until(not_before_s)
            while trio.current_time() < idle_at_s and not self._pending.ready():
                with trio.move_on_at(idle_at_s):
                    if self._pending.count():  # of which nothing is ready
                        await trio.sleep(self._timing.interval)
                    else:
                        await self._pending.changed()
        self._take(self.agreement.start())

    def _take(self, effects: Iterable[Effect]) -> None:
        if self._is_over:
            for effect in effects:
                if isinstance(effect, Evidence):
                    self._accuse(effect)
            return
        self._effects.extend(effects)
        if self.began_s is None and self.agreement.round != NOT_STARTED:
            self.began_s = trio.current_time()
        self._wake.set()

    async def _carry_out(self, effect: Effect, idle_at_s: float) -> None:
        match effect:
            case Cast():
                await self._cast(effect)
            case Schedule():
                self._nursery.start_soon(self._time, effect)
            case Validate(proposal):
                self._nursery.start_soon(self._judge, proposal)
            case Propose(round):
                self._nursery.start_soon(self._propose, round, idle_at_s)
            case Repropose():
                await self._repropose(effect)
            case Decide():
                await self._decide(effect)
            case Evidence():
                self._accuse(effect)
            case Behind(height):
                for peer in self._mesh.open:
                    self._chain.peer_is_at(peer, height - 1)

    async def _cast(self, cast: Cast) -> None:
        if self._key is None or not self._pen.may_sign(self.number):
            return
        if self._chain.halted():
            return
        try:
            vote = await self._pen.vote(self._key, self.number, cast)
        except AlreadySigned as error:
            logger.error("no vote is given: %s", error)
            return
        self._metrics.counter(
            "blyan_votes_cast",
            stage=cast.stage.name.lower(),
            nil=str(cast.checkpoint is None).lower(),
        ).add()
        self._mesh.say(vote)
        self._take(self.agreement.receive_vote(vote))

    async def _time(self, schedule: Schedule) -> None:
        await trio.sleep(self._timing.of_step(schedule.step, schedule.round))
        self._take(self.agreement.timeout(schedule.step, schedule.round))

    async def _judge(self, proposal: Proposal) -> None:
        id, round = proposal.statement.checkpoint, proposal.statement.round
        verdict: bool | None = None
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                while self.agreement.round <= round + ROUNDS_BEHIND:
                    await trio.sleep(self._timing.propose)
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            try:
                verdict = await self._scrutiny.is_valid(proposal)
            except (Poisoned, Halted, Ignore) as error:
                logger.warning("a proposal is not judged: %s", error)
            nursery.cancel_scope.cancel()
        if verdict is not None:
            self._take(self.agreement.judge(id, verdict))

    async def _propose(self, round: int, idle_at_s: float) -> None:
        if self._key is None or not self._pen.may_sign(self.number):
            return

        def is_open() -> bool:
            here = self.agreement.round == round
            return here and self.agreement.step is Step.PROPOSE

        try:
            made = await self._proposing.make(self._key, round, idle_at_s, is_open)
            if made is None or not is_open():
                return
            proposal = await self._pen.propose(self._key, round, made, None)
        except (Halted, Ignore, Reject, AlreadySigned) as error:
            logger.warning("nothing is proposed: %s", error)
            return
        self._metrics.counter("blyan_proposals_made").add()
        self._mesh.say(proposal)
        self._take(self.agreement.judge(proposal.statement.checkpoint, True))
        self._take(self.agreement.receive_proposal(proposal, is_timely=True))

    async def _repropose(self, effect: Repropose) -> None:
        if self._key is None or not self._pen.may_sign(self.number):
            return
        try:
            proposal = await self._pen.propose(
                self._key, effect.round, effect.checkpoint, effect.valid_round
            )
        except AlreadySigned as error:
            logger.error("nothing is proposed: %s", error)
            return
        self._mesh.say(proposal)
        self._take(self.agreement.receive_proposal(proposal, is_timely=True))

    async def _decide(self, effect: Decide) -> None:
        self.decided = FinalCheckpoint(effect.checkpoint, effect.precommits)
        self._metrics.histogram("blyan_consensus_rounds").observe(effect.round + 1)
        await self._chain.take(self.decided, "")

    def _accuse(self, effect: Evidence) -> None:
        if self._key is not None and effect.signer == self._key.public:
            self._pen.forbidden = (
                "another process signs with this node's key; this one signs nothing "
                "more until it is restarted: stop the other one first"
            )
            logger.error("%s", self._pen.forbidden)
            return
        logger.warning("two conflicting messages of %s", effect.signer.hex())
        self._metrics.counter("blyan_equivocations_seen").add()
        self._report(effect.first, effect.second)
