"""Learners simulated in one process over the real parts of blyan_tile, round by round.

Batches, inner steps, error feedback, codecs, the exact sum and the outer step are those
of the daemon; only chain and network are left out, and residuals stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3

from blyan_proto.block.model import Model, Run
from blyan_proto.digest import Domain, digest
from blyan_tile.batches import assign, gather, held_out_windows
from blyan_tile.corpus import Archive, ArchiveJob, build
from blyan_tile.create import initial_parameters
from blyan_tile.delta import TileState
from blyan_tile.inner import train
from blyan_tile.layout import Layout, join, layout_of, split
from blyan_tile.learner import mapped
from blyan_tile.model.training import held_out_loss
from tests.bench.channels import Channel

TILE_PARAMETERS = 2**21  # of the "2 M" in KB per 2 M parameters

Parameters = dict[str, np.ndarray]


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


def account_of(learner: int) -> bytes:
    return learner.to_bytes(32, "little")


def beacon_of(seed: int, round_: int) -> bytes:
    """Return what stands for the chain's beacon: it alone tells seeds apart."""
    numbers = seed.to_bytes(8, "little"), round_.to_bytes(4, "little")
    return digest(Domain.SEED, b"pareto", *numbers)


@dataclass
class Text:
    """The corpus: an archive of Python's own library."""

    archive: Archive
    digest: str = ""  # of the archive's file

    @classmethod
    def at(cls, path: Path, max_bytes: int) -> "Text":
        """Open the archive at `path`; build it first where there is none."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            build(ArchiveJob("", str(path), max_bytes, 30_000), lambda _: None)
        return cls(Archive(mapped(str(path))), blake3(path.read_bytes()).hexdigest())

    @cached_property
    def train_bytes(self) -> int:
        return sum(len(view) for view in self.archive.train)

    def batches(
        self, run: Run, round_: int, learner: int, seed: int
    ) -> Iterator[torch.Tensor]:
        """Yield the round's H batches, each (B, T + 1) int64."""
        account, beacon = account_of(learner), beacon_of(seed, round_)
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
    channel: Channel

    def __post_init__(self) -> None:
        self.layout: Layout = layout_of(self.model)
        self.state: list[list[TileState]] = [
            [(tile, None) for tile in split(group, self.start)]
            for group in self.layout.groups
        ]
        self._windows = self.text.windows(self.trial.run)

    def parameters(self) -> Parameters:
        """Return the current float32 weights by name."""
        found: Parameters = {}
        for group, tiles in zip(self.layout.groups, self.state):
            found |= join(self.layout, group, [weights for weights, _ in tiles])
        return found

    def held_out(self, parameters: Parameters | None = None) -> float:
        """Return nats per token on the held-out windows (DEC-B17)."""
        judged = self.parameters() if parameters is None else parameters
        tensors = {name: torch.from_numpy(x) for name, x in judged.items()}
        return held_out_loss(self.model.architecture, tensors, self._windows)

    def flushed(self) -> Parameters:
        """Return the weights as if all residuals were sent whole now, at rate 1."""
        learners = self.trial.learners
        each = [self._ahead(self.trial.run.rounds, i) for i in range(learners)]
        return {name: np.mean([x[name] for x in each], axis=0) for name in each[0]}

    def rounds(self) -> Iterator[Closed]:
        """Train; yield after every round. ArithmeticError where a learner blows up."""
        for round_ in range(self.trial.run.rounds):
            sent = self.learn(round_)
            for group in self.layout.groups:
                base = self.state[group.index]
                self.state[group.index] = self.channel.close(group, base)
            yield Closed(round_, sent / self.trial.learners)

    def learn(self, round_: int) -> int:
        """Let all learners train and send; return the bytes that it took."""
        base, sent = self.parameters(), 0
        for learner in range(self.trial.learners):
            first = (
                self._ahead(round_, learner) if self.trial.run.from_residual else base
            )
            local = self._local(first, round_, learner)
            for group in self.layout.groups:
                old = split(group, first)
                change = [np.subtract(a, b) for a, b in zip(old, split(group, local))]
                sent += self.channel.send(learner, round_, group, change)
        return sent

    def _ahead(self, round_: int, learner: int) -> Parameters:
        """Return the weights with what this learner has not been able to send yet."""
        found: Parameters = {}
        for group, tiles in zip(self.layout.groups, self.state):
            waiting = self.channel.residual(learner, round_, group)
            first = [np.subtract(w, e) for (w, _), e in zip(tiles, waiting)]
            found |= join(self.layout, group, first)
        return found

    def _local(self, base: Parameters, round_: int, learner: int) -> Parameters:
        run, architecture = self.trial.run, self.model.architecture
        tensors = {
            name: torch.tensor(x, requires_grad=True) for name, x in base.items()
        }
        outcome = train(
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
        return {name: p.detach().numpy() for name, p in tensors.items()}


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
