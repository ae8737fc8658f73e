"""Learners simulated in one process over the real parts of blyan_tile, round by round.

Batches, inner steps, error feedback, codecs, the exact sum and the outer step are those
of the daemon; only chain and network are left out, and residuals stay in memory. What
is no codec of the table (tests.bench.control_arms) takes the place of feedback and codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from blyan_proto.block.model import Architecture, Model, Run
from blyan_proto.constants import PPM
from blyan_proto.digest import Domain, digest
from blyan_tile.aggregate import weighted_sum
from blyan_tile.batches import assign, gather, held_out_windows
from blyan_tile.corpus import Archive, ArchiveJob, build
from blyan_tile.create import initial_parameters
from blyan_tile.delta import TileState, next_tiles
from blyan_tile.feedback import Feedback
from blyan_tile.inner import Outcome, train
from blyan_tile.layout import Group, Layout, Tile, join, layout_of, split
from blyan_tile.learner import mapped
from blyan_tile.model.training import held_out_loss
from blyan_tile.outer import step
from blyan_tile.residual import Record, ResidualFiles, Settled

TILE_PARAMETERS = 2**21  # of the "2 M" in KB per 2 M parameters
_ACCOUNT_BYTES = 32

Parameters = dict[str, np.ndarray]


class Inner(Protocol):
    """The inner steps; `inner.train` or another optimizer in its place."""

    def __call__(
        self,
        architecture: Architecture,
        run: Run,
        round_: int,
        parameters: Mapping[str, torch.Tensor],
        held: Sequence[Sequence[int]],
        batches: Iterator[torch.Tensor],
        report: Callable[[int, float], None],
    ) -> Outcome: ...


class Control(Protocol):
    """A scheme that is no codec: what one learner sends of one matrix."""

    beta: float  # error feedback; 0: none

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """Return what the others decode, float64, and its length in bytes."""

    def close(self, name: str, gradient: np.ndarray) -> None:
        """Hear what a tile's decoded deltas came to, once a round."""


@dataclass(frozen=True)
class Trial:
    """One training run to simulate."""

    arm: str  # the row of the table
    preset: str
    start: str  # "scratch" or "warm"
    seed: int
    run: Run
    learners: int = 4
    control: str = ""  # a control arm by name; "": the run's codecs
    inner: str = "adamw"

    @property
    def key(self) -> str:
        """What names the trial in a file of results."""
        return (
            f"{self.preset}/{self.start}/{self.arm}/H{self.run.inner_steps}"
            f"/seed{self.seed}/{self.run.rounds}"
        )


@dataclass(frozen=True)
class Closed:
    """A round that is over."""

    round: int
    sent_bytes: float  # by one learner, mean
    loss: float  # nats per token, mean of the learners' inner steps


class Memory(ResidualFiles):
    """Residual records that live as long as the simulation."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}

    def load(
        self, group: Group, settings: tuple[tuple[int, int], ...]
    ) -> Record | None:
        found = self._records.get(group.index)
        return found if found is not None and found.settings == settings else None

    def save(self, group: Group, record: Record) -> None:
        self._records[group.index] = record


@dataclass
class Text:
    """The corpus: an archive of Python's own library."""

    archive: Archive

    @classmethod
    def at(cls, path: Path, max_bytes: int) -> "Text":
        """Open the archive at `path`; build it first where there is none."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            build(ArchiveJob("", str(path), max_bytes, 30_000), lambda _: None)
        return cls(Archive(mapped(str(path))))

    @cached_property
    def train_bytes(self) -> int:
        return sum(len(view) for view in self.archive.train)

    def batches(
        self, run: Run, round_: int, learner: int, seed: int
    ) -> Iterator[torch.Tensor]:
        """Yield the round's H batches, each (B, T + 1) int64."""
        beacon = digest(
            Domain.SEED,
            b"pareto",
            seed.to_bytes(8, "little"),
            round_.to_bytes(4, "little"),
        )
        account = learner.to_bytes(_ACCOUNT_BYTES, "little")
        for starts in assign(beacon, round_, account, run, self.train_bytes):
            yield torch.from_numpy(
                gather(self.archive.train, starts, run.sequence + 1)
            )  # (B, T + 1)

    def windows(self, run: Run) -> torch.Tensor:
        """Return the held-out windows, (N, T + 1) int64."""
        return torch.from_numpy(held_out_windows(self.archive.held_out, run.sequence))


@dataclass
class Network:
    """All learners of a run, and the state that they all agree on."""

    model: Model
    trial: Trial
    text: Text
    start: Parameters
    control: Control | None = None
    inner: Inner = train
    layout: Layout = field(init=False)
    state: list[list[TileState]] = field(init=False)

    def __post_init__(self) -> None:
        self.layout = layout_of(self.model)
        self.state = [
            [(tile, None) for tile in split(group, self.start)]
            for group in self.layout.groups
        ]
        self._files = [Memory() for _ in range(self.trial.learners)]
        self._residuals: dict[tuple[int, str], np.ndarray] = {}
        self._windows = self.text.windows(self.trial.run)

    def parameters(self) -> Parameters:
        """Return the current float32 weights by name."""
        found: Parameters = {}
        for group, tiles in zip(self.layout.groups, self.state):
            found |= join(self.layout, group, [weights for weights, _ in tiles])
        return found

    def held_out(self) -> float:
        """Return nats per token on the held-out windows (DEC-B17)."""
        tensors = {name: torch.from_numpy(x) for name, x in self.parameters().items()}
        return held_out_loss(self.model.architecture, tensors, self._windows)

    def rounds(self) -> Iterator[Closed]:
        """Train; yield after every round. ArithmeticError where a learner blows up."""
        for round_ in range(self.trial.run.rounds):
            yield self._round(round_)

    def _round(self, round_: int) -> Closed:
        base = self.parameters()
        parts: list[list[list[bytes]]] = [[] for _ in self.layout.groups]
        decoded: list[list[list[np.ndarray]]] = [[] for _ in self.layout.groups]
        sent_bytes, losses = 0, []
        for learner in range(self.trial.learners):
            local, outcome = self._learn(base, round_, learner)
            losses.append(sum(outcome.losses) / len(outcome.losses))
            for group in self.layout.groups:
                old = [weights for weights, _ in self.state[group.index]]
                change = [np.subtract(a, b) for a, b in zip(old, split(group, local))]
                if self.control is None:
                    encoded = self._send(learner, round_, group, change)
                    parts[group.index].append(encoded)
                    sent_bytes += sum(map(len, encoded))
                else:
                    values, length = self._control(learner, round_, group, change)
                    decoded[group.index].append(values)
                    sent_bytes += length
        for group in self.layout.groups:
            if self.control is None:
                weighted = [(PPM, encoded) for encoded in parts[group.index]]
                after = next_tiles(
                    group, self.state[group.index], weighted, self.trial.run
                )
            else:
                after = self._outer(group, decoded[group.index])
            self.state[group.index] = after
        return Closed(
            round_, sent_bytes / self.trial.learners, sum(losses) / len(losses)
        )

    def _learn(
        self, base: Parameters, round_: int, learner: int
    ) -> tuple[Parameters, Outcome]:
        run, architecture = self.trial.run, self.model.architecture
        tensors = {
            name: torch.tensor(x, requires_grad=True) for name, x in base.items()
        }
        outcome = self.inner(
            architecture,
            run,
            round_,
            tensors,
            [range(architecture.experts)] * architecture.layers,
            self.text.batches(run, round_, learner, self.trial.seed),
            lambda done, loss: None,
        )
        if not outcome.finite:
            raise ArithmeticError(f"learner {learner} blew up in round {round_}")
        return {name: p.detach().numpy() for name, p in tensors.items()}, outcome

    def _send(
        self, learner: int, round_: int, group: Group, change: list[np.ndarray]
    ) -> list[bytes]:
        feedback = Feedback(self._files[learner], self.trial.run, round_)
        before = [Settled(round_ - 1, group.index, True, PPM)] if round_ else []
        return feedback.send(group, feedback.settled(group, before), change).encoded

    def _control(
        self, learner: int, round_: int, group: Group, change: list[np.ndarray]
    ) -> tuple[list[np.ndarray], int]:
        assert self.control is not None
        values, total = [], 0
        for tile, x in zip(group.tiles, change):
            name = _name(group, tile)
            if len(tile.shape) != 2 or group.name.endswith(".router"):
                values.append(x.astype(np.float16).astype(np.float64))
                total += 2 * x.size
                continue
            residual = self._residuals.get((learner, name))
            if residual is not None and self.control.beta:
                x = x + np.float32(self.control.beta) * residual
            found, length = self.control.encode(learner, round_, name, x)
            self._residuals[learner, name] = x - found.astype(np.float32)
            values.append(found)
            total += length
        return values, total

    def _outer(self, group: Group, decoded: list[list[np.ndarray]]) -> list[TileState]:
        assert self.control is not None
        run, after = self.trial.run, []
        for tile, (weights, momentum) in zip(group.tiles, self.state[group.index]):
            gradient = weighted_sum((PPM, values[tile.index]) for values in decoded)
            self.control.close(_name(group, tile), gradient)
            after.append(
                step(
                    weights,
                    momentum,
                    gradient,
                    run.outer_rate_ppm,
                    run.outer_momentum_ppm,
                )
            )
        return after


def _name(group: Group, tile: Tile) -> str:
    return f"{group.name}.{tile.index}"


def fresh(model: Model, seed: int) -> Parameters:
    """Return the parameters that a run from scratch starts from."""
    return initial_parameters(model.architecture, seed)


def trained_alone(model: Model, run: Run, text: Text, start: Parameters) -> Parameters:
    """Return what one learner makes of `start` in the steps of one round."""
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in start.items()}
    shape = model.architecture
    held = [range(shape.experts)] * shape.layers
    train(
        shape,
        run,
        0,
        tensors,
        held,
        text.batches(run, 0, 0, 0),
        lambda done, loss: None,
    )
    return {name: p.detach().numpy() for name, p in tensors.items()}
