"""What an auditor looks at in a learner's log, and what it is worth (PODL-03 … 06).

Pure: the draw, the comparisons, the verdict. `training/audit.py` fetches and repeats.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from math import comb

from blyan_proto.block.model import Run
from blyan_proto.constants import PPM
from blyan_proto.digest import Domain, digest
from blyan_proto.protocols.audit import MAX_ASKED, LoggedStep, LogStatement
from blyand.rules.records import Schedule, Seat

AUDITORS = 2  # of a round, drawn from its seats
FALSE_SHARE = 10  # one in so many steps false: what a confidence is told for
LOSS_TOLERANCE_MICRO = 20_000  # of a repeated step on another class of device
REFUSED_MS = 24 * 3_600_000  # who does not show its log, or a false one (PODL-08)


class Finding(enum.Enum):
    """What an audit found. The value is the word that people read."""

    SOUND = "sound"
    ABSENT = "absent"  # its delta counted, and it has no log
    SHORT = "short"  # the log has fewer steps than its tokens, or too many
    OTHER_DELTA = "other delta"  # the chain lists a delta that the log does not
    FALSE_BATCH = "false batch"  # a step learned from other text than was assigned
    FALSE_STATE = "false state"  # repeated on the same class of device: other bits
    FAR = "far"  # repeated on another one: losses beyond the tolerance

    @property
    def refuses(self) -> bool:
        """True where it is certain, so that no delta is taken for a while.

        FAR is none of them: another device may be to blame; it lowers trust only.
        """
        return self not in (Finding.SOUND, Finding.FAR)


def share_of(steps: int) -> int:
    """Return how many of a round's steps are drawn: one in a hundred, at least one."""
    return min(MAX_ASKED, max(1, steps // 100))


def drawn_steps(seed: bytes, steps: int, count: int) -> tuple[int, ...]:
    """Draw `count` different steps of `steps`, ascending; all if there are fewer.

    `seed`: what the learner could not know when it trained.
    """
    found: set[int] = set()
    turn = 0
    while len(found) < min(count, steps):
        row = digest(Domain.SEED, b"audit", seed, turn.to_bytes(4, "little"))
        found.add(int.from_bytes(row[:8], "little") % steps)
        turn += 1
    return tuple(sorted(found))


def seed_of(beacon: bytes, run: bytes, round: int, learner: bytes) -> bytes:
    """Return the seed of an audit under a beacon that is newer than the round."""
    return digest(Domain.SEED, beacon, run, round.to_bytes(4, "little"), learner)


def confidence_ppm(steps: int, checked: int) -> int:
    """Return how likely `checked` drawn steps of `steps` show a lie in a tenth of them."""
    false = max(1, steps // FALSE_SHARE)
    missed = comb(steps - false, min(checked, steps))
    return PPM - missed * PPM // comb(steps, min(checked, steps))


def pairs_of(
    beacon: bytes, schedule: Schedule, learners: Sequence[Seat]
) -> dict[bytes, bytes]:
    """Return auditor -> learner, accounts: who is drawn to look at whom in a round."""

    def draw(kind: bytes, *parts: bytes) -> bytes:
        place = schedule.run, schedule.round.to_bytes(4, "little")
        return digest(Domain.SEED, kind, beacon, *place, *parts)

    seats = sorted(schedule.seats, key=lambda seat: draw(b"auditor", seat.account))
    pairs = {}
    for seat in seats[:AUDITORS]:
        others = [one.account for one in learners if one.account != seat.account]
        if others:
            pairs[seat.account] = min(
                others, key=lambda account: draw(b"audited", seat.account, account)
            )
    return pairs


def lacks(statement: LogStatement, run: Run, counted: Iterable[int]) -> bool:
    """True when a log has no steps, too many, or too few for the tokens that counted.

    A slow learner takes fewer than the run prescribes, and counts fewer tokens.
    """
    tokens = statement.steps * run.batch * run.sequence
    is_possible = 0 < statement.steps <= run.inner_steps
    return not is_possible or any(count > tokens for count in counted)


def hides(statement: LogStatement, listed: Iterable[tuple[int, bytes]]) -> int | None:
    """Return a group whose listed delta (group, digest) is not the log's; None: none."""
    told = {entry.group: entry.delta for entry in statement.entries}
    return next((group for group, delta in listed if told.get(group) != delta), None)


def compare(
    shown: Sequence[LoggedStep], repeated: Sequence[LoggedStep], same_class: bool
) -> tuple[Finding, int]:
    """Compare a log's first steps with the same ones repeated.

    Returns the finding and the largest difference of a loss, in micro-nats.
    """
    pairs = list(zip(shown, repeated))
    worst = max((abs(a.loss_micro - b.loss_micro) for a, b in pairs), default=0)
    if any(theirs.batch != ours.batch for theirs, ours in pairs):
        return Finding.FALSE_BATCH, worst
    if same_class:
        is_equal = all(theirs == ours for theirs, ours in pairs)
        return (Finding.SOUND if is_equal else Finding.FALSE_STATE), worst
    return (Finding.FAR if worst > LOSS_TOLERANCE_MICRO else Finding.SOUND), worst
