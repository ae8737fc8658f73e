"""The logs of the rounds that this node trained, signed and kept to be shown (PoDL).

A file per round; a learner that cannot show the log of a round that its delta counted
in is refused for a while by whoever asked, so logs survive restarts.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from blyan_proto import merkle
from blyan_proto.codec import Size, decode, encode, message
from blyan_proto.constants import FORMAT_VERSION, MIB
from blyan_proto.errors import DecodeError
from blyan_proto.protocols.audit import (
    KEPT_ROUNDS,
    MAX_ANSWER_BYTES,
    MAX_STEPS,
    Absent,
    Ask,
    LogEntry,
    LoggedStep,
    LogStatement,
    Shown,
    ShownStep,
    SignedLog,
    root_of,
)
from blyan_proto.signing import Purpose, SigningKey
from blyan_tile.learner import LearnResult
from blyand.compute import Threads
from blyand.home import replace_file
from blyand.training.delivery import Round, deltas_of

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = MAX_ANSWER_BYTES + 8 * MIB


@message
class Kept:
    """A log on disk."""

    log: SignedLog
    steps: Annotated[tuple[LoggedStep, ...], Size(1, MAX_STEPS)]


class Logbook:
    """Keeps and shows this node's logs."""

    def __init__(
        self, directory: Path, key: SigningKey, network: bytes, lane: Threads
    ) -> None:
        self._directory = directory
        self._key = key
        self._network = network
        self._lane = lane

    async def keep(
        self, turn: Round, result: LearnResult, threads: int, worked_ms: int
    ) -> None:
        """Sign and keep the log of a round before anything of it is handed in.

        Without deltas there is nothing to answer for. A full disk is logged.
        """
        if result.deltas and result.log:
            path, raw = await self._lane.run(
                self._signed, turn, result, threads, worked_ms
            )
            await replace_file(path, raw)

    def _signed(
        self, turn: Round, result: LearnResult, threads: int, worked_ms: int
    ) -> tuple[Path, bytes]:
        deltas = deltas_of(turn, self._key.account, result)
        sent = {delta.group: delta for delta in result.deltas}
        entries = []
        for group in sorted(turn.groups):
            made = sent.get(group)
            entries.append(
                LogEntry(group, None, None, None)
                if made is None
                else LogEntry(group, deltas[group].digest, made.change, made.residual)
            )
        statement = LogStatement(
            version=FORMAT_VERSION,
            run=turn.record.id,
            round=turn.schedule.round,
            learner=self._key.account,
            lease_epoch=turn.schedule.epoch,
            steps=len(result.log),
            log=root_of(result.log),
            entries=tuple(entries),
            device=result.device,
            threads=threads,
            worked_ms=worked_ms,
        )
        signature = self._key.sign(Purpose.TRAINING_LOG, self._network, statement)
        kept = Kept(SignedLog(statement, self._key.public, signature), result.log)
        path = self._path(statement.run, statement.round)
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.log"):
            if int(old.stem) + KEPT_ROUNDS <= statement.round:
                old.unlink(missing_ok=True)
        return path, encode(kept)

    async def show(self, ask: Ask) -> Shown | Absent:
        """Return the steps that are asked for, each with its proof."""
        return await self._lane.run(self._show, ask)

    def _show(self, ask: Ask) -> Shown | Absent:
        try:
            raw = self._path(ask.run, ask.round).read_bytes()
            kept = decode(Kept, raw, MAX_FILE_BYTES)
        except FileNotFoundError:
            return Absent(ask.round)
        except (OSError, DecodeError) as error:
            logger.warning("the log of round %d is lost: %s", ask.round, error)
            return Absent(ask.round)
        leaves = [step.leaf for step in kept.steps]
        asked = [index for index in ask.steps if index < len(leaves)]
        shown = (
            ShownStep(index, kept.steps[index], proof)
            for index, proof in zip(asked, merkle.prove_all(leaves, asked))
        )
        return Shown(kept.log, tuple(shown))

    def _path(self, run: bytes, round: int) -> Path:
        return self._directory / run.hex()[:16] / f"{round}.log"
