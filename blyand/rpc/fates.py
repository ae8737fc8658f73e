"""Answers to train.explain: what became of a learner's deltas, and who signed what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from blyan_proto.block.block import Block
from blyan_proto.block.model import Contribution, TileUpdate
from blyan_proto.constants import PPM
from blyan_proto.protocols.delta import REFUSALS, Verdict
from blyan_proto.rpc import explaining as spec
from blyan_proto.types import Role
from blyand.errors import NotHere, Pruned
from blyand.net.identity import peer_id_of
from blyand.rpc.reports import Names
from blyand.rules.model.election import contributors
from blyand.rules.records import (
    MODELS,
    SCHEDULES,
    VERSIONS,
    RunRecord,
    Schedule,
)
from blyand.rules.view import View
from blyand.store.blocks import BlockStore
from blyand.store.rounds import Answered, Heard, Rounds

NORM_UNIT = 2.0**-24  # of a contribution's norm

# What a rank's verdict means for a delta that no update lists.
WORDS = {
    Verdict.TAKEN: "it was taken, and the update came out without it",
    Verdict.ALREADY_HAD: "it was taken before, and the update came out without it",
    Verdict.STALE: "it was made for another version than the rank's",
    Verdict.NOT_PRIMARY: "it went to a node that is no rank of the group",
    Verdict.CLOSED: "it came after the update was formed",
    Verdict.REFUSED: "the sender has no seat there",
    Verdict.SHAPE: "its codec, setting or size is not the run's",
    Verdict.NOT_FINITE: "it holds numbers that are not finite",
    Verdict.TOO_LARGE: "its norm is absurd",
    Verdict.TOO_MANY_TOKENS: "it counts more tokens than a round assigns",
    Verdict.COPY: "it is another learner's delta",
    Verdict.NOTED: "it was announced, and never came",
    Verdict.AGAINST: "its learner pulled against most others in the rounds before",
}
BEST = (Verdict.TAKEN, Verdict.ALREADY_HAD, *sorted(REFUSALS), Verdict.CLOSED)


@dataclass(frozen=True)
class Known:
    """What this node knows of one learner's round."""

    learner: bytes
    updates: dict[int, Block | None]  # by group; None: pruned here
    heard: Sequence[Heard]  # what it handed in to this node
    answered: Sequence[Answered]  # what ranks answered, where it is this node itself
    expected: frozenset[int]  # groups that the schedule gave it; empty: not known


@dataclass(frozen=True)
class Kept:
    """Where it is looked up."""

    blocks: BlockStore
    rounds: Rounds


def known_of(
    view: View,
    kept: Kept,
    record: RunRecord,
    round: int,
    learner: bytes,
    own: bytes,
) -> Known:
    """Gather what is known of a learner's round, counted from 0. Blocking.

    NotHere when the round is not open yet.
    """
    model = MODELS.get(view, record.run.model)
    groups = range(model.groups if model else 0)
    schedule = SCHEDULES.get(view, record.id, round)
    if round >= record.closed and schedule is None:
        raise NotHere(f"round {round + 1} is not open yet; {record.closed} are closed")
    moves = kept.rounds.moves(record.id, round)
    ids = {one.group: one.update for one in moves.moved} if moves else {}
    for group in groups if not moves else ():
        version = VERSIONS.get(view, record.id, round, group)
        if version is not None:
            ids[group] = version.update
    updates: dict[int, Block | None] = {}
    for group, id in ids.items():
        try:
            updates[group] = kept.blocks.get(id)
        except Pruned:
            updates[group] = None
    return Known(
        learner,
        updates,
        kept.rounds.heard_of(record.id, round, learner),
        kept.rounds.receipts_of(record.id, round) if learner == own else (),
        frozenset(group for group in groups if _is_expected(schedule, group, learner)),
    )


def _is_expected(schedule: Schedule | None, group: int, learner: bytes) -> bool:
    seats = contributors(schedule, group, Role.LEARN) if schedule else ()
    return any(seat.account == learner for seat in seats)


def explained(
    known: Known, names: Names, record: RunRecord, round: int, own_key: bytes
) -> spec.RoundExplained:
    """Return all that is known as declared; `round` from 0."""
    outcomes = _outcomes(known)
    listed = {g for g, block in known.updates.items() if _part(block, known.learner)}
    groups = sorted(known.expected | listed | outcomes.keys())
    fates = [_fate(known, names, group, outcomes.get(group, [])) for group in groups]
    return spec.RoundExplained(
        run=record.id,
        round=round + 1,
        peer_id=names.peer(known.learner),
        account=known.learner,
        summary=_summary(known, fates),
        fates=fates,
        bundles=[
            *(_received(one, own_key) for one in known.heard),
            *(_sent(one, names) for one in known.answered),
        ],
    )


def _outcomes(known: Known) -> dict[int, list[tuple[Verdict, str]]]:
    """Return what ranks said, by group, oldest first: (verdict, why)."""
    found: dict[int, list[tuple[Verdict, str]]] = {}
    for heard in known.heard:
        nothing = {e.group for e in heard.manifest.entries if e.delta is None}
        for one in heard.outcomes:
            if one.group not in nothing or one.verdict in REFUSALS:
                found.setdefault(one.group, []).append((one.verdict, one.why))
            else:
                found.setdefault(one.group, [])
    for answered in known.answered:
        nothing = {e.group for e in answered.manifest.entries if e.delta is None}
        for verdict in answered.receipt.verdicts:
            said = found.setdefault(verdict.group, [])
            if verdict.group not in nothing:
                said.append((verdict.verdict, ""))
    return found


def _part(block: Block | None, learner: bytes) -> Contribution | None:
    if block is None or not isinstance(block.content, TileUpdate):
        return None
    parts = block.content.contributions
    return next((part for part in parts if part.learner == learner), None)


def _fate(
    known: Known, names: Names, group: int, said: Sequence[tuple[Verdict, str]]
) -> spec.Fate:
    block = known.updates.get(group)
    part = _part(block, known.learner)
    if part is not None:
        fate, why = _listed(part)
    elif group not in known.updates:
        fate, why = "open", "no update of the group has ended the round here"
    elif block is None:
        fate, why = "pruned", "the update's payload is no longer kept here"
    else:
        fate, why = _left_out(known, group, said)
    update: TileUpdate | None = block.content if block else None
    return spec.Fate(
        group=names.group(group),
        fate=fate,
        why=why,
        weight_ppm=part.weight_ppm if part else None,
        clip_ppm=part.clip_ppm if part else None,
        norm=part.norm * NORM_UNIT if part and part.norm else None,
        tokens=part.tokens if part else None,
        bytes=part.bytes if part else None,
        rank=update.rank if update else None,
        by=names.peer(block.header.account) if block else None,
        signers=len(update.cosignatures) if update else None,
        update=block.id if block else None,
        delta=part.delta if part else None,
    )


def _listed(part: Contribution) -> tuple[str, str]:
    share = f"it weighs {part.weight_ppm / 10_000:.2f} % of the sum"
    if part.clip_ppm >= PPM:
        return "listed", share
    cut = f"{part.clip_ppm / 10_000:.1f} %"
    return "clipped", f"{share}, at {cut} of its length: it was longer than the median"


def _left_out(
    known: Known, group: int, said: Sequence[tuple[Verdict, str]]
) -> tuple[str, str]:
    """Say why an update came out without a delta, as far as anybody here heard of it."""
    if said:
        told = {verdict: why for verdict, why in said}
        verdict = next((one for one in BEST if one in told), said[-1][0])
        fate = "refused" if verdict in REFUSALS else "left out"
        why = WORDS[verdict]
        return fate, f"{why} ({told[verdict]})" if told[verdict] else why
    manifests = [one.manifest for one in known.heard]
    manifests += [one.manifest for one in known.answered]
    if any(entry.group == group for one in manifests for entry in one.entries):
        return "nothing", "it said that it has none: too few tokens reached the expert"
    return "unknown", "not listed, and nothing about it came to this node; ask the rank"


def _summary(known: Known, fates: Sequence[spec.Fate]) -> str:
    if not fates:
        return "it had no seat in this round, as far as this node knows"
    counts = Counter(one.fate for one in fates)
    told = ", ".join(f"{count} {fate}" for fate, count in counts.most_common())
    text = f"{len(fates)} groups: {told}"
    kept = len(known.heard) + len(known.answered)
    return f"{text}; {kept} signed bundles or receipts are kept here"


def _received(heard: Heard, own_key: bytes) -> spec.HandIn:
    verdicts = Counter(one.verdict for one in heard.outcomes)
    return spec.HandIn(
        at_ms=heard.at_ms,
        primary=peer_id_of(own_key),
        verdicts=_counted(verdicts),
        manifest=heard.manifest.digest,
        learner_key=heard.signer,
        learner_signature=heard.signature,
        primary_key=own_key,
        receipt_signature=heard.answer,
    )


def _sent(answered: Answered, names: Names) -> spec.HandIn:
    receipt = answered.receipt
    return spec.HandIn(
        at_ms=answered.at_ms,
        primary=names.peer(answered.primary),
        verdicts=_counted(Counter(one.verdict for one in receipt.verdicts)),
        manifest=receipt.manifest,
        learner_key=None,
        learner_signature=None,
        primary_key=receipt.signer,
        receipt_signature=receipt.signature,
    )


def _counted(verdicts: Counter[Verdict]) -> str:
    named = sorted(verdicts.items())
    return ", ".join(f"{count} {one.name.lower()}" for one, count in named).replace(
        "_", " "
    )
