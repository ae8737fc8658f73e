"""One learner's round, the job of a worker process: base tiles in, encoded deltas out.

The daemon names the messages here; torch is imported only when the job runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from blake3 import blake3

from blyan_proto.block.model import Model, Run
from blyan_proto.codec import U8, U16, U32, U64, Size, message
from blyan_proto.constants import MAX_GROUPS, MAX_TRAINED_TILES, PPM
from blyan_proto.protocols.audit import MAX_STEPS, LoggedStep
from blyan_proto.types import Account, Bitmap, BlockId, Hash
from blyan_tile import tblock
from blyan_tile.feedback import Feedback
from blyan_tile.jobs import Progress
from blyan_tile.layout import Group, Layout, split
from blyan_tile.residual import ResidualFiles, Settled

if TYPE_CHECKING:
    from blyan_tile.inner import Outcome

FilePath = Annotated[str, Size(1, 4096)]
MAX_TILE_DELTA_BYTES = 4 << 20  # a tile of float16 takes 2 MiB


@message
class GroupFiles:
    """The TBLOCK files of a group's float32 weights, in tile order."""

    group: U16
    tiles: Annotated[tuple[FilePath, ...], Size(1, MAX_TRAINED_TILES)]


@message
class LearnJob:
    """Train one round on what this node holds."""

    model: Model
    run: Run
    run_id: BlockId
    round: U32
    learner: Account
    beacon: Hash
    archives: Annotated[tuple[FilePath, ...], Size(1, 16)]  # the run's datasets
    base: Annotated[tuple[GroupFiles, ...], Size(1, MAX_GROUPS)]
    held: Bitmap  # expert groups to train; shared groups always are
    settled: Annotated[tuple[Settled, ...], Size(0, 4 * MAX_GROUPS)]
    residuals: FilePath  # a directory of this learner and run; may be emptied
    device: Annotated[str, Size(1, 32)]  # "cpu", "cuda", …
    threads: U8
    processes: U8 = 1  # that share each batch; at most the run's batch
    rank: U8 = 0  # of this one; only rank 0 returns deltas
    meeting: Annotated[str, Size(0, 4096)] = ""  # a file that is not there yet
    sharded: bool = False  # each of them keeps a part of every parameter; experimental
    steps: U16 = 0  # fewer than the run's: for who is slower than the others; 0: all


@message
class GroupDelta:
    """The change of one group, first - local, with its feedback, encoded.

    `first` is the base, in a run `from_residual` minus the residual.
    """

    group: U16
    tiles: Annotated[
        tuple[Annotated[bytes, Size(0, MAX_TILE_DELTA_BYTES)], ...],
        Size(1, MAX_TRAINED_TILES),
    ]
    tokens: U32  # an expert: those routed to it; else all of the round
    change: Hash  # blake3 of first - local, float32, tile after tile (DEC-B12)
    residual: Hash  # blake3 of e, likewise


@message
class ExpertShare:
    """How many of the round's tokens one expert saw."""

    group: U16
    tokens: U32


@message
class LearnResult:
    """What a round gave. Without `finite` there are no deltas."""

    deltas: Annotated[tuple[GroupDelta, ...], Size(0, MAX_GROUPS)]
    finite: bool
    steps: U16
    tokens: U64
    loss_micro: U64  # mean over the steps, micro-nats per token
    shares: Annotated[tuple[ExpertShare, ...], Size(0, MAX_GROUPS)]
    log: Annotated[tuple[LoggedStep, ...], Size(0, MAX_STEPS)] = ()  # PoDL
    device: Annotated[str, Size(0, 64)] = ""  # class of the device that it ran on


@dataclass(frozen=True)
class Steps:
    """What the inner steps of a round made of its tiles."""

    layout: Layout
    trained: list[Group]
    first: dict[int, list[np.ndarray]]  # where they began, float32, by group
    parameters: dict[str, np.ndarray]  # after the last step, float32
    outcome: Outcome
    log: tuple[LoggedStep, ...]


def learn(job: LearnJob, report: Callable[[Progress], None]) -> LearnResult:
    """Run the job. OSError and ProtocolError for files that cannot be used."""
    from blyan_tile.steps import device_class, run_steps

    steps = run_steps(job, job.steps or job.run.inner_steps, report)
    outcome = steps.outcome
    tokens = len(outcome.losses) * job.run.batch * job.run.sequence
    seen = {
        group.index: int(outcome.routed[group.layer, group.expert])
        for group in steps.trained
        if _is_expert(group)
    }
    counts = outcome.finite and job.rank == 0
    deltas = _deltas(job, steps, seen, tokens) if counts else []
    mean = sum(outcome.losses) / max(1, len(outcome.losses))
    return LearnResult(
        tuple(deltas),
        outcome.finite,
        len(outcome.losses),
        tokens,
        round(mean * PPM),
        tuple(ExpertShare(index, count) for index, count in seen.items()),
        steps.log,
        device_class(job.device, job.processes),
    )


def _is_expert(group: Group) -> bool:
    return group.expert is not None


def first_tiles(job: LearnJob, trained: Sequence[Group]) -> dict[int, list[np.ndarray]]:
    """Return where the inner steps begin, float32 tiles by group.

    That is the base; in a run that says so, minus what this learner has not been able
    to send yet: then it need not find again what it found before (decision 0029).
    """
    base = {files.group: tiles_of(files) for files in job.base}
    if not job.run.from_residual:
        return base
    feedback = Feedback(ResidualFiles(Path(job.residuals)), job.run, job.round)
    return {
        group.index: [
            np.subtract(tile, e)
            for tile, e in zip(
                base[group.index], feedback.settled(group, job.settled).residual
            )
        ]
        for group in trained
    }


def tiles_of(files: GroupFiles) -> list[np.ndarray]:
    """Return a group's tiles as float32 views over their files. OSError, DecodeError."""
    return [tblock.widened(mapped(path)) for path in files.tiles]


def mapped(path: str) -> np.ndarray:
    """Return the tensor of a TBLOCK file, mapped read-only. OSError, DecodeError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return tblock.open_array(fd)
    finally:
        os.close(fd)


def _deltas(
    job: LearnJob, steps: Steps, seen: dict[int, int], tokens: int
) -> list[GroupDelta]:
    feedback = Feedback(ResidualFiles(Path(job.residuals)), job.run, job.round)
    deltas = []
    for group in steps.trained:
        waiting = feedback.settled(group, job.settled)
        if _is_expert(group) and seen[group.index] < job.run.min_tokens:
            feedback.keep(group, waiting)  # restored to base, DEC-B13
            continue
        change = change_of(steps, group)
        sent = feedback.send(group, waiting, change)
        deltas.append(
            GroupDelta(
                group.index,
                tuple(sent.encoded),
                min(seen.get(group.index, tokens), 2**32 - 1),
                digest_of(change),
                digest_of(sent.before),
            )
        )
    return deltas


def change_of(steps: Steps, group: Group) -> list[np.ndarray]:
    """Return first - local of a group, float32, tile by tile.

    Zero in the router's rows of experts that were not trained (DEC-B13).
    """
    local = split(group, steps.parameters)
    change = [
        np.subtract(old, new) for old, new in zip(steps.first[group.index], local)
    ]
    if group.name.endswith(".router"):
        mine = {g.expert for g in steps.trained if g.layer == group.layer}
        experts, _ = steps.layout.parameters[group.parameters[0]]
        absent = np.array([expert not in mine for expert in range(experts)])  # (E,)
        _clear_rows(group, change, absent)
    return change


def _clear_rows(group: Group, change: list[np.ndarray], absent: np.ndarray) -> None:
    """Zero the router's rows of experts that this node does not hold (DEC-B13)."""
    for tile, x in zip(group.tiles, change):
        (piece,) = tile.pieces
        x[absent[piece.row0 : piece.row1]] = 0


def digest_of(arrays: Sequence[np.ndarray]) -> bytes:
    """Return blake3 of float32 arrays, one after the other."""
    hasher = blake3()
    for array in arrays:
        hasher.update(
            np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data
        )
    return hasher.digest()
