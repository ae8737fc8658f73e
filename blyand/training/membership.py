"""Who is in an update: each delta is looked at by itself, then weighed among the others.

Blocking functions for a thread lane. What is cheap to check comes first; nothing of a
stranger is decoded before its form is known to be the run's (DEC-B5, B10, B15).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blyan_proto.block.model import Contribution, Run
from blyan_proto.codec import encode
from blyan_proto.errors import (
    DecodeError,
    LimitExceeded,
    NotFinite,
    ProtocolError,
)
from blyan_proto.protocols.delta import Delta, Verdict
from blyan_tile import delta as deltas
from blyan_tile import overlap
from blyan_tile.layout import Group
from blyand.rules.model import clip
from blyand.rules.model import update as rules
from blyand.rules.model.election import seat_of
from blyand.rules.records import RunRecord, Schedule
from blyand.training.tiles import Listed


class Refused(ProtocolError):
    """A delta that no update will list; the receipt says why.

    Peer scoring: as for a broken format.
    """

    def __init__(self, verdict: Verdict, why: object) -> None:
        super().__init__(f"{verdict.name}: {why}")
        self.verdict = verdict


@dataclass(frozen=True)
class Taken:
    """A delta that may be listed."""

    delta: Delta
    norm: int  # exact, in 2^-24
    sketch: np.ndarray | None = None  # (WIDTH,) to find copies by; None: no change


@dataclass(frozen=True)
class Listing:
    """What an update says of its deltas, and their bytes, one after the other."""

    contributions: tuple[Contribution, ...]
    raw: bytes
    median: int  # the group's running median norm after it


def look_at(group: Group, run: Run, median: int, delta: Delta, secret: bytes) -> Taken:
    """Return a delta with its norm; Refused unless it decodes to finite, sane tiles.

    `median`: the group's running median norm before the round. `secret` is this node's
    own. The caller has checked signature, seat, round and base.
    """
    if delta.tokens > rules.assigned_tokens(run):
        raise Refused(Verdict.TOO_MANY_TOKENS, f"{delta.tokens} tokens")
    try:
        deltas.check(group, delta.tiles, run, delta.round)
        values = deltas.decode_group(group, delta.tiles)
        norm = deltas.norm(group, delta.tiles)
    except NotFinite as error:
        raise Refused(Verdict.NOT_FINITE, error) from None
    except DecodeError as error:
        raise Refused(Verdict.SHAPE, error) from None
    except LimitExceeded as error:
        raise Refused(Verdict.TOO_LARGE, error) from None
    if clip.is_absurd(norm, median):
        raise Refused(Verdict.TOO_LARGE, f"norm {norm}, usual {median}")
    return Taken(delta, norm, overlap.sketch(values, secret))


def original_of(one: Taken, heard: Mapping[bytes, Taken | None]) -> bytes | None:
    """Return the learner of whose delta `one` is a copy, or the other way round."""
    others = {
        learner: other.sketch
        for learner, other in heard.items()
        if other is not None and other.sketch is not None
    }
    if one.sketch is None:
        return None
    found = overlap.nearest(one.sketch, list(others.values()))
    return None if found is None else list(others)[found]


def listing(
    taken: Mapping[bytes, Taken], record: RunRecord, schedule: Schedule, median: int
) -> Listing:
    """Return the list of an update of these deltas, by learner: weights and clips by rule."""
    most_ppm = record.run.delta_clip_ppm
    every = [taken[learner] for learner in sorted(taken)]
    seats = [seat_of(schedule, one.delta.learner) for one in every]
    norms = [one.norm if most_ppm else 0 for one in every]
    weights = rules.contribution_weights(
        [one.delta.tokens for one in every],
        [seat is not None and seat.is_new for seat in seats],
        record.newcomer_share_ppm,
    )
    contributions, raws, offset = [], [], 0
    factors = clip.factors(norms, median, most_ppm)
    for one, weight, factor, norm in zip(every, weights, factors, norms):
        raw = encode(one.delta)
        contributions.append(
            Contribution(
                learner=one.delta.learner,
                delta=one.delta.digest,
                offset=offset,
                bytes=len(raw),
                tokens=one.delta.tokens,
                weight_ppm=weight,
                clip_ppm=factor,
                norm=norm,
            )
        )
        raws.append(raw)
        offset += len(raw)
    after = clip.running_after(norms, median, most_ppm)
    return Listing(tuple(contributions), b"".join(raws), after)


def parts_of(
    taken: Mapping[bytes, Taken], contributions: tuple[Contribution, ...]
) -> list[Listed]:
    """Return the summands that a list names."""
    return [
        Listed(part.weight_ppm, part.clip_ppm, taken[part.learner].delta.tiles)
        for part in contributions
    ]
