"""New models: presets, first parameters, and the job that writes them as tiles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np

from blyan_proto.block.model import (
    Architecture,
    Codec,
    CodecChoice,
    Dtype,
    Model,
    RateStep,
    Run,
    TensorClass,
    TileRoots,
    TileRootsList,
)
from blyan_proto.codec import U64, Size, message
from blyan_proto.constants import FORMAT_VERSION, MAX_GROUPS
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import DecodeError
from blyan_proto.types import BlockId
from blyan_tile import packed, tblock
from blyan_tile.jobs import Progress
from blyan_tile.layout import Group, laid_out, layout_of, split
from blyan_tile.tokenizer import BYTES


def _architecture(
    width: int,
    head_width: int,
    experts: int,
    expert_width: int,
    context: int,
    layers: int = 2,
) -> Architecture:
    return Architecture(
        vocabulary=256,
        layers=layers,
        width=width,
        heads=width // head_width,
        kv_heads=width // head_width,
        head_width=head_width,
        experts=experts,
        experts_per_token=2,
        expert_width=expert_width,
        rope_base=10_000,
        rms_epsilon_ppb=10_000,
        normalise_top_k=True,
        tied_embeddings=False,
        context=context,
    )


PRESETS = {
    "demo": _architecture(256, 64, 8, 384, 512),  # 5.4 million parameters
    "small": _architecture(512, 64, 8, 448, 1024, layers=8),  # 52 million
    "tiny": _architecture(64, 16, 4, 96, 256),  # 0.2 million, for tests
}


def architecture_of(preset: str) -> Architecture:
    """Return the architecture of a preset; KeyError if there is none of that name."""
    return PRESETS[preset]


def model_of(preset: str, name: str, replication: int = 2) -> Model:
    """Return the model block's payload of a preset; KeyError as above."""
    return Model(
        version=FORMAT_VERSION,
        name=name,
        architecture=architecture_of(preset),
        tokenizer=BYTES,
        dtype=Dtype.F32,
        replication=replication,
        note="",
    )


def initial_parameters(architecture: Architecture, seed: int) -> dict[str, np.ndarray]:
    """Return fresh float32 parameters by name; each depends on (seed, name) alone.

    Matrices are normal with variance 1 / inputs; those that write to the residual
    stream are smaller by sqrt(2 * layers), so that its variance starts near 1.
    """
    return {
        name: _initial(name, shape, architecture.layers, seed)
        for name, shape in laid_out(architecture).parameters.items()
    }


def _initial(name: str, shape: tuple[int, ...], layers: int, seed: int) -> np.ndarray:
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)  # norms
    key = digest(Domain.SEED, seed.to_bytes(8, "little"), name.encode())
    philox = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    deviation = 1.0 if name == "embed.weight" else shape[1] ** -0.5
    if name.endswith((".o.weight", ".down.weight")):
        deviation *= (2 * layers) ** -0.5
    drawn = np.random.Generator(philox).standard_normal(shape, np.float32)
    return drawn * np.float32(deviation)


@message
class CreateJob:
    """Write the first version of a model's tiles into `directory`."""

    model: Model
    seed: U64
    directory: Annotated[str, Size(1, 4096)]
    momentum: bool  # also write the zeros that outer momentum starts from
    weights: Annotated[str, Size(0, 4096)] = ""  # a packed file; empty: from the seed


@message
class CreateResult:
    """The roots of every group's tiles, by group index; files are named by root, hex."""

    groups: Annotated[tuple[TileRootsList, ...], Size(1, MAX_GROUPS)]


def create(job: CreateJob, report: Callable[[Progress], None]) -> CreateResult:
    """Run the job. OSError from the file system; an existing file is left alone.

    ProtocolError when the packed file is none, or of another architecture.
    """
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    count = len(layout_of(job.model).groups)
    groups = []
    for group, first in _first(job):
        tiles = []
        for tile in first:
            momentum = (
                write_tile(directory, np.zeros_like(tile)) if job.momentum else None
            )
            tiles.append(TileRoots(write_tile(directory, tile), momentum))
        groups.append(tuple(tiles))
        report(Progress(group.index + 1, count, group.name))
    return CreateResult(tuple(groups))


def _first(job: CreateJob) -> Iterator[tuple[Group, list[np.ndarray]]]:
    """Yield every group with its first tiles."""
    if job.weights:
        opened, _ = packed.read(job.weights)
        if opened.index.architecture != job.model.architecture:
            raise DecodeError("packed weights of another architecture")
        yield from opened.groups()
        return
    parameters = initial_parameters(job.model.architecture, job.seed)
    for group in layout_of(job.model).groups:
        yield group, split(group, parameters)


def write_tile(directory: Path, tile: np.ndarray) -> bytes:
    """Write one TBLOCK file named by its root, unless it is there; return the root."""
    outline = tblock.outline_of(tile)
    path = directory / outline.root.hex()
    if not path.exists():
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            file.write(outline.head_bytes())
            file.write(np.ascontiguousarray(tile).reshape(-1).view(np.uint8).data)
            file.write(outline.tail_bytes())
        os.replace(partial, path)
    return outline.root


def _falling(rounds: int) -> tuple[RateStep, ...]:
    """Return the inner rate of the presets: four stairs, one per quarter of the run."""
    stairs: dict[int, int] = {}
    for quarter, rate in enumerate((2_000_000, 1_600_000, 1_000_000, 600_000)):
        stairs.setdefault(quarter * rounds // 4, rate)
    return tuple(RateStep(round_, rate) for round_, rate in stairs.items())


def run_preset(
    preset: str,
    model: BlockId,
    datasets: tuple[BlockId, ...],
    rounds: int,
    seed: int,
) -> Run:
    """Return a run with the numbers that fit a preset model; KeyError for another."""
    demo = {"demo": True, "tiny": False}[preset]
    # What is best for the demo model within 100 KB per 2 M parameters (bench_pareto).
    low_rank = (Codec.LRC, 13) if demo else (Codec.LR4, 16)
    return Run(
        version=FORMAT_VERSION,
        model=model,
        datasets=datasets,
        held_out_ppm=30_000,
        rounds=rounds,
        inner_steps=20 if demo else 5,
        batch=4 if demo else 2,
        sequence=128 if demo else 64,
        inner_rate=_falling(rounds),
        beta1_ppm=900_000,
        beta2_ppm=950_000,
        decay_ppm=50_000,
        clip_ppm=1_000_000,
        auxiliary_ppm=10_000,
        codecs=(
            CodecChoice(TensorClass.MATRIX, 0, *low_rank),
            CodecChoice(TensorClass.VECTOR, 0, Codec.DENSE, 0),
            CodecChoice(TensorClass.ROUTER, 0, Codec.DENSE, 0),
            CodecChoice(TensorClass.EMBEDDING, 0, *low_rank),
        ),
        feedback_ppm=1_000_000,
        outer_rate_ppm=1_000_000 if demo else 900_000,
        outer_momentum_ppm=0 if demo else 500_000,
        delta_clip_ppm=3_000_000,
        quorum_ppm=500_000,
        deadline_ms=30_000 if demo else 10_000,
        grace_ms=4_000 if demo else 2_000,
        min_tokens=64,
        rotation=0,
        adopt_every=4,
        snapshot_every=8,
        rounds_ahead=2,
        seed=seed,
        from_residual=demo,
    )
