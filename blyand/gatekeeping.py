"""Building what a validator does for the adoption of trained heads."""

from __future__ import annotations

import functools

from blyand.foundation import Base
from blyand.parts import Models
from blyand.replica import Replica
from blyand.rules.chain.validators import signers, turn_of
from blyand.rules.view import View
from blyand.supervise import Service
from blyand.training.adopter import Adopter
from blyand.training.scorer import Scorer


def gatekeeping(base: Base, replica: Replica, models: Models) -> list[Service]:
    """Return the services: adopting by schedule, and scoring before a run's gate."""
    adopter = Adopter(
        lambda: replica.view,
        replica.author.make,
        base.events,
        functools.partial(_turn_of, base),
    )
    scorer = Scorer(
        base.key.account,
        lambda: replica.view,
        models.journal.held_out,
        models.serving.losses,
        base.disk_lane,
        replica.author.make,
        base.events,
        base.home.scores,
    )
    return [Service("adopter", adopter.run), Service("scorer", scorer.run)]


def _turn_of(base: Base, view: View, height: int) -> int | None:
    """Return how many validators come before this node for a duty of all of them."""
    own = base.key_in(signers(view))
    return turn_of(own.public, view, height) if own else None
