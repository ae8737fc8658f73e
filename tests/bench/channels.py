"""From a learner's change of a group to the next version of it, for tests.bench.convergence.

`Coded` is what the network does: error feedback, a codec of the table, the exact sum and
the outer step. `Controlled` does the same around a scheme that is no codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from blyan_proto.block.model import Run
from blyan_proto.constants import PPM
from blyan_tile.aggregate import weighted_sum
from blyan_tile.delta import TileState, next_tiles
from blyan_tile.feedback import Feedback, Waiting
from blyan_tile.layout import Group, Tile
from blyan_tile.outer import step
from blyan_tile.residual import Record, ResidualFiles, Settled

Tiles = list[np.ndarray]


class Channel(Protocol):
    """All learners' way to all holders."""

    def residual(self, learner: int, round_: int, group: Group) -> Tiles:
        """Return what of a learner's changes has not been sent yet, float32."""

    def send(self, learner: int, round_: int, group: Group, change: Tiles) -> int:
        """Take one learner's change, base - local float32; return the bytes it takes."""

    def close(self, group: Group, base: Sequence[TileState]) -> list[TileState]:
        """Return the group's next version, made of what was sent since the last call."""


class Memory(ResidualFiles):
    """Residual records that live as long as the simulation."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}

    def load(self, group: Group) -> Record | None:
        return self._records.get(group.index)

    def save(self, group: Group, record: Record) -> None:
        self._records[group.index] = record


class Coded:
    """The codecs of the network."""

    def __init__(self, run: Run, learners: int) -> None:
        self._run = run
        self._files = [Memory() for _ in range(learners)]
        self.sent: dict[int, list[list[bytes]]] = {}  # by group, of the open round

    def residual(self, learner: int, round_: int, group: Group) -> Tiles:
        return self._waiting(learner, round_, group)[1].residual

    def send(self, learner: int, round_: int, group: Group, change: Tiles) -> int:
        feedback, waiting = self._waiting(learner, round_, group)
        encoded = feedback.send(group, waiting, change).encoded
        self.sent.setdefault(group.index, []).append(encoded)
        return sum(map(len, encoded))

    def close(self, group: Group, base: Sequence[TileState]) -> list[TileState]:
        parts = [(PPM, encoded) for encoded in self.sent.pop(group.index)]
        return next_tiles(group, base, parts, self._run)

    def _waiting(
        self, learner: int, round_: int, group: Group
    ) -> tuple[Feedback, Waiting]:
        feedback = Feedback(self._files[learner], self._run, round_)
        before = [Settled(round_ - 1, group.index, True, PPM)] if round_ else []
        return feedback, feedback.settled(group, before)


class Control(Protocol):
    """A scheme that is no codec: what one learner sends of one matrix."""

    beta: float  # error feedback; 0: none

    def encode(
        self, learner: int, round_: int, name: str, x: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """Return what the others decode, float64, and its length in bytes."""

    def close(self, name: str, gradient: np.ndarray) -> None:
        """Hear what a tile's decoded deltas came to, once a round."""


class Controlled:
    """A control arm; vectors and routers are sent as float16, as DENSE sends them."""

    def __init__(self, run: Run, control: Control) -> None:
        self._run = run
        self._control = control
        self._residuals: dict[tuple[int, str], np.ndarray] = {}
        self._sent: dict[int, list[Tiles]] = {}

    def residual(self, learner: int, round_: int, group: Group) -> Tiles:
        return [
            self._residuals.get(
                (learner, _name(group, tile)), np.zeros(tile.shape, "f4")
            )
            for tile in group.tiles
        ]

    def send(self, learner: int, round_: int, group: Group, change: Tiles) -> int:
        values, total = [], 0
        for tile, x in zip(group.tiles, change):
            if len(tile.shape) != 2 or group.name.endswith(".router"):
                values.append(x.astype(np.float16).astype(np.float64))
                total += 2 * x.size
                continue
            key = learner, _name(group, tile)
            if self._control.beta and key in self._residuals:
                x = x + np.float32(self._control.beta) * self._residuals[key]
            found, length = self._control.encode(learner, round_, key[1], x)
            self._residuals[key] = x - found.astype(np.float32)
            values.append(found)
            total += length
        self._sent.setdefault(group.index, []).append(values)
        return total

    def close(self, group: Group, base: Sequence[TileState]) -> list[TileState]:
        sent, run, after = self._sent.pop(group.index), self._run, []
        for tile, (weights, momentum) in zip(group.tiles, base):
            gradient = weighted_sum((PPM, values[tile.index]) for values in sent)
            self._control.close(_name(group, tile), gradient)
            rates = run.outer_rate_ppm, run.outer_momentum_ppm
            after.append(step(weights, momentum, gradient, *rates))
        return after


def _name(group: Group, tile: Tile) -> str:
    return f"{group.name}.{tile.index}"
