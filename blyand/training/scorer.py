"""A drawn validator's part in the gate: measure before and after, seal the sums, show them.

The windows follow from a beacon that is younger than the round; both versions are
measured on the same ones, through the path that serves (DEC-B17). What was sealed is
kept in a file: a validator that is started again still shows it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import trio

from blyan_proto.block.gate import MOST_MICRO, Score, SealedScore
from blyan_proto.codec import decode, encode, message
from blyan_proto.constants import FORMAT_VERSION, PPM
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import DecodeError, ProtocolError
from blyan_proto.types import Hash
from blyan_tile.batches import drawn_windows
from blyand.compute import Threads
from blyand.errors import NotHere, Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.home import replace_file
from blyand.rules.model.adoption import versions_of
from blyand.rules.model.gate import OPEN_GATES, Gated
from blyand.rules.model.heads import Pinned, Which, pin
from blyand.rules.model.model import require_model
from blyand.rules.records import CLOCK, RUNS, RunRecord
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View

logger = logging.getLogger(__name__)

AGAIN_S = 2.0  # until a version that peers could not help with is measured again

MAX_FILE_BYTES = 1024

Losses = Callable[[Pinned, np.ndarray], Awaitable[np.ndarray]]


@message
class Kept:
    """A score on disk, and the beacon that drew its windows."""

    beacon: Hash
    score: Score


class Scorer:
    """Scores the versions for which this validator is drawn, one after the other."""

    def __init__(
        self,
        account: bytes,
        view: Callable[[], View],
        held_out: Callable[[RunRecord], Awaitable[np.ndarray]],
        losses: Losses,
        lane: Threads,
        make: Callable[..., Awaitable[object]],
        events: Broadcast,
        directory: Path,
    ) -> None:
        """`held_out(record)`: the held-out bytes (n,) of a run's datasets.

        `directory`: where scores are kept until they were shown.
        """
        self._account = account
        self._view = view
        self._held_out = held_out
        self._losses = losses
        self._lane = lane
        self._make = make
        self._events = events
        self._directory = directory
        self._said: dict[bytes, tuple[bytes, bool]] = {}  # run -> beacon, was shown

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look for versions to score after every checkpoint."""
        with self._events.subscribe(CheckpointFinalised) as facts:
            task_status.started()
            while True:
                lacking = False
                for gated in self._waiting():
                    lacking = not await self._score(gated) or lacking
                with trio.move_on_after(AGAIN_S if lacking else float("inf")):
                    await facts.receive()

    def _waiting(self) -> list[Gated]:
        """Return the versions that wait for this node to seal, or to show, its score."""
        opened = list(OPEN_GATES.scan(self._view()))
        runs = {gated.run for gated in opened}
        self._said = {run: said for run, said in self._said.items() if run in runs}
        return [
            gated
            for gated in opened
            if self._account in gated.drawn
            and self._is_awaited(gated)
            and self._said.get(gated.run) != _step(gated)
        ]

    def _is_awaited(self, gated: Gated) -> bool:
        has_sealed = gated.seal_of(self._account) is not None
        if gated.sealed_ms is None:
            return not has_sealed
        return has_sealed and all(one.account != self._account for one in gated.scores)

    async def _score(self, gated: Gated) -> bool:
        """Seal a score, or show it; False when something was lacking."""
        try:
            score = await self._kept(gated)
            if score is None and gated.sealed_ms is not None:
                logger.warning("the score of round %d is lost", gated.round)
            elif score is None:
                score = await self._measured(gated)
                await self._keep(gated, score)
            if score is not None:
                await self._publish(gated, score)
        except (Unavailable, Ignore, Reject, ProtocolError) as error:
            logger.info("round %d is not scored now: %s", gated.round, error)
            return False
        self._said[gated.run] = _step(gated)
        return True

    async def _publish(self, gated: Gated, score: Score) -> None:
        if gated.sealed_ms is not None:
            await self._make(score, meta_ref=gated.model)
            return
        sealed = SealedScore(
            version=FORMAT_VERSION,
            model=gated.model,
            run=gated.run,
            round=gated.round,
            beacon=gated.beacon,
            seal=score.seal(self._account),
        )
        await self._make(sealed, meta_ref=gated.model)
        rise = score.rise_micro / score.windows / PPM
        logger.info("round %d scored: %+.5f nats per token", gated.round, rise)

    async def _keep(self, gated: Gated, score: Score) -> None:
        """Write a score down before its seal is published."""
        kept = Kept(gated.beacon, score)
        await replace_file(self._path(gated.run), encode(kept))

    async def _kept(self, gated: Gated) -> Score | None:
        """Return the score of this draw that was written down."""
        try:
            raw = await self._lane.run(self._path(gated.run).read_bytes)
            kept = decode(Kept, raw, MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, DecodeError) as error:
            logger.warning("a score cannot be read: %s", error)
            return None
        is_same = (kept.beacon, kept.score.round) == (gated.beacon, gated.round)
        return kept.score if is_same else None

    def _path(self, run: bytes) -> Path:
        return self._directory / f"{run.hex()}.score"

    async def _measured(self, gated: Gated) -> Score:
        view = self._view()
        record = RUNS.get(view, gated.run)
        assert record is not None and record.run.gate is not None  # it has a gate
        before, after = self._pair(view, gated)
        text = await self._held_out(record)
        windows = await self._lane.run(
            drawn_windows,
            [text],
            min(record.run.sequence, before.model.architecture.context),
            record.run.gate.windows,
            seed_for(gated.beacon, gated.run, gated.round),
        )  # (N, T + 1)
        first = micro_of(await self._losses(before, windows))  # (N,)
        second = micro_of(await self._losses(after, windows))  # (N,)
        return score_of(gated, first, second)

    def _pair(self, view: View, gated: Gated) -> tuple[Pinned, Pinned]:
        """Return the adopted heads and the round's; NotHere when they moved on."""
        model, clock = require_model(view, gated.model), CLOCK.get(view)
        before = pin(view, gated.model, Which.ADOPTED)
        versions = versions_of(view, gated.run, gated.round, model.groups)
        assert clock is not None
        if before is None or versions is None or model.heads_root != gated.before:
            raise NotHere("the heads have moved on")
        tiles = tuple(version.tiles for version in versions)
        return before, Pinned(model.id, model.model, clock.height, tiles)


def seed_for(beacon: bytes, run: bytes, round: int) -> bytes:
    """Return what draws the windows of a version."""
    return digest(Domain.SEED, b"gate", beacon, run, round.to_bytes(4, "little"))


def micro_of(losses: np.ndarray) -> np.ndarray:
    """Return losses (N,), nats per token, as bounded integers of a millionth."""
    whole = np.nan_to_num(losses * PPM, nan=MOST_MICRO, posinf=MOST_MICRO)
    bounded: np.ndarray = np.rint(np.clip(whole, 0, MOST_MICRO)).astype(np.int64)
    return bounded


def score_of(gated: Gated, before: np.ndarray, after: np.ndarray) -> Score:
    """Return the sums of two measurements (N,) int64 of the same windows."""
    rise = [int(one) for one in after - before]
    return Score(
        version=FORMAT_VERSION,
        model=gated.model,
        run=gated.run,
        round=gated.round,
        before=gated.before,
        after=gated.after,
        windows=len(rise),
        before_micro=int(before.sum()),
        after_micro=int(after.sum()),
        squares=min(2**64 - 1, sum(one * one for one in rise)),
        salt=secrets.token_bytes(32),
    )


def _step(gated: Gated) -> tuple[bytes, bool]:
    return gated.beacon, gated.sealed_ms is not None
