"""Error feedback: what a codec left out comes back in a later round (DEC-B14).

x = beta * e + delta is sent as C(x). Listed with clip c, the residual becomes
x - c * C(x); not listed, x itself. What was clipped or not listed is kept within bounds.
`settled` picks at the next job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blyan_proto.block.model import Run
from blyan_proto.constants import PPM
from blyan_tile.delta import decode_group, encode_group
from blyan_tile.layout import Group
from blyan_tile.residual import Record, ResidualFiles, Settled

MISSED_ROUNDS = 3  # after more than these a residual is stale
MISSED_DECAY = np.float32(0.5)  # per missed round
NORM_LIMIT = 2.0  # of what was unlisted or clipped, in norms of its delta


@dataclass(frozen=True)
class Waiting:
    """What a group brings into a round."""

    residual: list[np.ndarray]  # e, float32, per tile
    record: Record | None  # where it comes from; None: e is zero


class Feedback:
    """The residuals of one learner in one round of a run."""

    def __init__(self, files: ResidualFiles, run: Run, round_: int) -> None:
        self._files = files
        self._run = run
        self._round = round_

    def settled(self, group: Group, outcomes: Sequence[Settled]) -> Waiting:
        """Return e of `group` for this round, given what became of earlier deltas.

        A delta whose outcome is not known counts as lost with its residual: sending a
        part of it twice would be worse. A run that changes codec or rank loses
        nothing: e is of the tile, not of its encoding (decision 0028).
        """
        record = self._files.load(group)
        found = None if record is None else self._residual(group, record, outcomes)
        if found is None:
            zero = [np.zeros(tile.shape, np.float32) for tile in group.tiles]
            return Waiting(zero, None)
        return Waiting(found, record)

    def send(
        self, group: Group, waiting: Waiting, change: Sequence[np.ndarray]
    ) -> Record:
        """Encode beta * e + change, record it, and return the record.

        ValueError if a change is not finite or too large for its codec.
        """
        beta = np.float32(self._run.feedback_ppm / PPM)
        sent = [beta * e + x for e, x in zip(waiting.residual, change, strict=True)]
        record = waiting.record
        warm: list[np.ndarray | None] = [None] * len(group.tiles)
        if record is not None:
            again = record.round == self._round
            warm = record.warm_before if again else record.warm
        encoded, after = encode_group(group, sent, self._run, self._round, warm)
        made = Record(
            round=self._round,
            before=waiting.residual,
            sent=sent,
            encoded=encoded,
            norms=[float(np.linalg.norm(x)) for x in change],
            warm_before=warm,
            warm=after,
        )
        self._files.save(group, made)
        return made

    def keep(self, group: Group, waiting: Waiting) -> None:
        """Let e wait: nothing is sent for `group` in this round."""
        record = waiting.record
        if record is None or record.sent is None or record.round == self._round:
            return  # nothing, already waiting, or the same round again
        missed = self._round - record.round - 1
        undecayed = [e / MISSED_DECAY**missed for e in waiting.residual]
        self._files.save(
            group, replace(record, before=undecayed, sent=None, encoded=[])
        )

    def _residual(
        self, group: Group, record: Record, outcomes: Sequence[Settled]
    ) -> list[np.ndarray] | None:
        missed = self._round - record.round - 1
        if missed == -1:
            return record.before  # the same round again: its job was cut off
        if not 0 <= missed <= MISSED_ROUNDS:
            return None
        kept = record.before
        if record.sent is not None:
            found = [
                outcome
                for outcome in outcomes
                if outcome.group == group.index and outcome.round == record.round
            ]
            if not found:
                return None
            kept = _after(group, record, record.sent, found[-1])
        return [e * MISSED_DECAY**missed for e in kept]


def _after(
    group: Group, record: Record, sent: list[np.ndarray], outcome: Settled
) -> list[np.ndarray]:
    if not outcome.listed:
        return _bounded(sent, record.norms)
    clip = outcome.clip_ppm / PPM
    decoded = decode_group(group, record.encoded)
    kept = [(x - clip * c).astype(np.float32) for x, c in zip(sent, decoded)]
    # whoever is clipped every round would else gather ever more (decision 0030)
    return kept if outcome.clip_ppm == PPM else _bounded(kept, record.norms)


def _bounded(tiles: list[np.ndarray], norms: list[float]) -> list[np.ndarray]:
    """Return each tile at no more than `NORM_LIMIT` times the norm of its change."""
    kept = []
    for x, norm in zip(tiles, norms):
        size, limit = float(np.linalg.norm(x)), NORM_LIMIT * norm
        kept.append(x if size <= limit else x * np.float32(limit / size))
    return kept
