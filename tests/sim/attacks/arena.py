"""Rounds of honest learners and liars in one process: all real parts but the network.

Honest ones train, compress and feed back as a daemon's worker does; the primary's own
rules look at every delta, weigh and clip it; holders' arithmetic makes the next version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from blyan_proto.block.model import (
    Codec,
    CodecChoice,
    Model,
    RateStep,
    Run,
    TensorClass,
)
from blyan_proto.constants import FORMAT_VERSION, PPM
from blyan_proto.digest import Domain, digest
from blyan_proto.protocols.delta import Delta
from blyan_proto.types import Role, bitmap
from blyan_tile.batches import held_out_windows
from blyan_tile.corpus import Archive
from blyan_tile.create import initial_parameters, write_tile
from blyan_tile.delta import TileState, decode_group, encode_group
from blyan_tile.layout import Group, join, layout_of, split
from blyan_tile.learner import GroupFiles, LearnJob, LearnResult, learn
from blyan_tile.model.training import held_out_loss
from blyan_tile.outer import step
from blyan_tile.residual import Settled
from blyan_tile.tblock import open_array
from blyand.rules.records import RunRecord, Schedule, Seat
from blyand.training import membership, tiles
from blyand.training.opposition import Opposition
from blyand.training.tiles import Listed
from tests.sim.attacks.aggregators import Aggregator, Values
from tests.sim.attacks.liars import Attack, Scene

NETWORK = bytes(32)
State = dict[int, list[TileState]]  # by group


def account(learner: int) -> bytes:
    return bytes([learner]) * 20


class Arena:
    """A model, its text, and the learners of every round."""

    def __init__(
        self,
        model: Model,
        run: Run,
        archive: Path,
        folder: Path,
        seed: int = 1,
        aggregator: Aggregator | None = None,
        is_watched: bool = True,
        is_sent_again: bool = False,
    ) -> None:
        """`archive`: the packed text as a TBLOCK file; beside it `flipped`, if there.

        `aggregator`: instead of the network's sum, to compare. `is_watched`: who pulls
        against the others is left out. `is_sent_again`: what the aggregator made is
        coded like a delta, with feedback, as where a primary sends one sum.
        """
        self._is_sent_again = is_sent_again
        self._waiting: dict[int, Values] = {}  # what was not sent of the sums
        self._opposition = Opposition() if is_watched else None
        self._aggregator = aggregator
        self._aggregates: dict[int, Values] = {}
        self.model, self.run, self.folder = model, run, folder
        self.layout = layout_of(model)
        self.archive = archive
        with archive.open("rb") as file:
            self._text = Archive(open_array(file.fileno()))
        self.medians = dict.fromkeys(range(len(self.layout.groups)), 0)
        self.refused: Counter[str] = Counter()
        self.clipped: Counter[int] = Counter()  # by learner: entries with a clip
        self.left_out: Counter[int] = Counter()  # by learner: as it opposes the others
        self.settled: dict[int, list[Settled]] = {}
        self._source = np.random.default_rng(seed)
        self._seed = seed
        self._before: dict[tuple[int, int], Sequence[bytes]] = {}
        self.state: State = {
            group.index: [
                (tile, None)
                for tile in split(group, initial_parameters(model.architecture, seed))
            ]
            for group in self.layout.groups
        }

    def warm_up(self, steps: int, rate: float) -> None:
        """Let one learner train from scratch, without a codec that loses anything much."""
        alone = replace(
            self.run,
            inner_steps=steps,
            batch=8,
            inner_rate=(RateStep(0, round(rate * 1e9)),),
            codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.DENSE, 0),),
            outer_rate_ppm=PPM,
            outer_momentum_ppm=0,
        )
        made = self.learn(255, 0, alone)
        for delta in made.deltas:
            group = self.layout.groups[delta.group]
            part = [tiles.Listed(PPM, PPM, delta.tiles)]
            after = tiles.stepped(group, self.state[group.index], part, alone)
            self.state[group.index] = [(weights, None) for weights, _ in after]

    def learn(
        self, learner: int, round: int, run: Run | None = None, is_flipped: bool = False
    ) -> LearnResult:
        """Train one learner's round."""
        text = self.archive.with_name("flipped") if is_flipped else self.archive
        return learn(
            LearnJob(
                model=self.model,
                run=run or self.run,
                run_id=bytes(32),
                round=round,
                learner=account(learner),
                beacon=digest(
                    Domain.BEACON, round.to_bytes(4, "little"), bytes([self._seed])
                ),
                archives=(str(text),),
                base=tuple(self._files(group) for group in self.layout.groups),
                held=bitmap(
                    {group.index for group in self.layout.expert_groups},
                    len(self.layout.groups),
                ),
                settled=tuple(self.settled.get(learner, ())),
                residuals=str(self.folder / f"residuals{learner}"),
                device="cpu",
                threads=1,
            ),
            lambda _: None,
        )

    def save(self, path: Path) -> None:
        """Write the weights, to `load` them elsewhere."""
        named = {
            f"{index}.{place}": weights
            for index, state in self.state.items()
            for place, (weights, _) in enumerate(state)
        }
        np.savez(path, **named)  # type: ignore[arg-type]

    def load(self, path: Path) -> None:
        """Take weights that `save` wrote; momentum begins at zero."""
        with np.load(path, allow_pickle=False) as file:
            for index, state in self.state.items():
                self.state[index] = [
                    (file[f"{index}.{place}"], None) for place in range(len(state))
                ]

    def _files(self, group: Group) -> GroupFiles:
        return GroupFiles(
            group.index,
            tuple(
                str(self.folder / write_tile(self.folder, weights).hex())
                for weights, _ in self.state[group.index]
            ),
        )

    def play(
        self,
        round: int,
        honest: Sequence[int],
        liars: Sequence[int],
        attack: Attack,
        is_flipped: bool = False,
    ) -> None:
        """Train and apply one round."""
        made = {one: self.learn(one, round) for one in honest}
        lies = {one: self.learn(one, round, is_flipped=is_flipped) for one in liars}
        record, schedule = self._record(), self._schedule([*honest, *liars], round)
        every = {**made, **lies}
        for one in every:
            self.settled[one] = []
        for group in self.layout.groups:
            sent = {one: _tiles_of(result, group) for one, result in made.items()}
            own = {one: _tiles_of(result, group) for one, result in lies.items()}
            scene = Scene(
                self.run,
                round,
                group,
                {one: raw for one, raw in sent.items() if raw is not None},
                {one: raw for one, raw in own.items() if raw is not None},
                self._source,
                self._before,
            )
            for liar in liars:
                sent[liar] = attack(scene, liar)
            self._apply(group, round, sent, every, record, schedule)
        for path in self.folder.iterdir():
            if path.is_file() and len(path.name) == 64:
                path.unlink()

    def _apply(self, group, round, sent, results, record, schedule) -> None:  # type: ignore[no-untyped-def]
        median = self.medians[group.index]
        heard = {}
        for learner, raw in sent.items():
            if raw is None:
                continue
            delta = Delta(
                FORMAT_VERSION,
                bytes(32),
                group.index,
                round,
                account(learner),
                (bytes(32),) * len(group.tiles),
                _tokens_of(results[learner], group),
                tuple(raw),
            )
            try:
                taken = membership.look_at(
                    group, self.run, median, delta, b"secret of the primary"
                )
                if membership.original_of(taken, heard):
                    self.refused["COPY"] += 1
                    continue
                heard[account(learner)] = taken
            except membership.Refused as error:
                self.refused[error.verdict.name] += 1
        if self._opposition is not None:
            sketches = {a: t.sketch for a, t in heard.items() if t.sketch is not None}
            self._opposition.note(record.id, sketches)
            voices = set(heard)
            for one in voices:
                if not self._opposition.is_against(record.id, one, voices):
                    continue
                self.refused["AGAINST"] += 1
                self.left_out[one[0]] += 1
                del heard[one]
        listing = membership.listing(heard, record, schedule, median)
        self.medians[group.index] = listing.median
        parts = membership.parts_of(heard, listing.contributions)
        if parts and self._aggregator is not None:
            self.state[group.index] = self._otherwise(group, round, parts)
        elif parts:
            self.state[group.index] = tiles.stepped(
                group, self.state[group.index], parts, self.run
            )
        clips = {part.learner: part.clip_ppm for part in listing.contributions}
        for learner in sent:
            clip = clips.get(account(learner))
            self.clipped[learner] += clip is not None and clip < PPM
            self.settled[learner].append(
                Settled(round, group.index, clip is not None, clip or PPM)
            )

    def _otherwise(
        self, group: Group, round: int, parts: Sequence[Listed]
    ) -> list[TileState]:
        """Make the next version with a robust sum of the clipped deltas."""
        assert self._aggregator is not None
        deltas = [
            [tile * (part.clip_ppm / PPM) for tile in decode_group(group, part.tiles)]
            for part in parts
        ]
        made = self._aggregator(deltas, self._aggregates.get(group.index))
        self._aggregates[group.index] = made
        if self._is_sent_again:
            made = self._sent(group, round, made)
        rates = self.run.outer_rate_ppm, self.run.outer_momentum_ppm
        return [
            step(weights, momentum, gradient.astype(np.float32), *rates)
            for (weights, momentum), gradient in zip(self.state[group.index], made)
        ]

    def _sent(self, group: Group, round: int, made: Values) -> Values:
        """Return what arrives of a sum, and keep the rest for the next one."""
        if group.index in self._waiting:
            made = [x + e for x, e in zip(made, self._waiting[group.index])]
        tiles32 = [tile.astype(np.float32) for tile in made]
        nothing = [None] * len(made)
        raw, _ = encode_group(group, tiles32, self.run, round, nothing)
        arrived = decode_group(group, raw)
        self._waiting[group.index] = [x - y for x, y in zip(made, arrived)]
        return arrived

    def _record(self) -> RunRecord:
        return RunRecord(bytes(32), self.run, account(0), 0, (), False)

    def _schedule(self, learners: Sequence[int], round: int) -> Schedule:
        count = len(self.layout.groups)
        held = bitmap(set(range(count)), count)
        seats = tuple(
            Seat(account(one), bytes(33), int(Role.LEARN), 1, held) for one in learners
        )
        return Schedule(bytes(32), round, 1, bytes(32), seats)

    def judge(self) -> float:
        """Return the held-out loss of the current weights, nats per byte."""
        parameters = {
            name: torch.from_numpy(array)
            for group in self.layout.groups
            for name, array in join(
                self.layout, group, [w for w, _ in self.state[group.index]]
            ).items()
        }
        windows = torch.from_numpy(
            held_out_windows(self._text.held_out, self.run.sequence)
        )  # (N, T + 1)
        return held_out_loss(self.model.architecture, parameters, windows)


def _tiles_of(result: LearnResult, group: Group) -> Sequence[bytes] | None:
    return next((d.tiles for d in result.deltas if d.group == group.index), None)


def _tokens_of(result: LearnResult, group: Group) -> int:
    found = (d.tokens for d in result.deltas if d.group == group.index)
    return next(found, result.tokens)
