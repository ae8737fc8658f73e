"""What work of the running epoch is worth, from every source but votes and answers.

A rule that sees work done claims its worth for who did it; the distributor pays at the
epoch's end. Claims of one account and source add up.
"""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block.model import TileUpdate
from blyan_proto.codec import U64, message
from blyan_proto.types import Account
from blyand.rules.economy import reward
from blyand.rules.economy.book import MAX_SUPPLY_MICRO
from blyand.rules.economy.statement import Source
from blyand.rules.records import MODELS
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View


@message
class Claim:
    """What one account did for one source."""

    source: Source
    account: Account
    micro: U64
    count: U64  # tokens learned from, submissions judged


CLAIMS = Table(b"claim", Claim)  # source, account; of the running epoch


def claim(
    view: Overlay, source: Source, account: bytes, micro: int, count: int
) -> None:
    """Add work of an account to what the running epoch owes it: at most all there is."""
    known = CLAIMS.get(view, bytes([source]), account)
    known = known or Claim(source, account, 0, 0)
    CLAIMS.put(
        view,
        replace(
            known,
            micro=min(MAX_SUPPLY_MICRO, known.micro + micro),
            count=known.count + count,
        ),
        bytes([source]),
        account,
    )


def claim_learning(view: Overlay, update: TileUpdate, micro_per_mtoken: int) -> None:
    """Claim for the learners whose deltas an update lists (REWARD-04)."""
    model = MODELS.get(view, update.model)
    assert model is not None
    for part in update.contributions:
        micro = reward.learning(micro_per_mtoken, part.tokens, model.groups)
        claim(view, Source.LEARNING, part.learner, micro, part.tokens)


def of(view: View, source: Source) -> list[Claim]:
    """Return a source's claims, by account."""
    return list(CLAIMS.scan(view, bytes([source])))


def forget(view: Overlay) -> None:
    """Begin anew, with the next epoch."""
    for one in list(CLAIMS.scan(view)):
        CLAIMS.remove(view, bytes([one.source]), one.account)
