"""The trials of tests.bench.bench_pareto: which arms, and in which order (DEC-B17)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from blyan_proto.block.model import (
    Architecture,
    Codec,
    CodecChoice,
    Model,
    RateStep,
    Run,
    TensorClass,
)
from blyan_tile.create import PRESETS, model_of, run_preset
from tests.bench.convergence import Trial

NOWHERE = bytes(32)  # stands for block ids: there is no chain
# a quarter of the demo model: its tiles are 128 x 192, so rank 8 costs a parameter the
# bytes that rank 16 costs in the demo model
MINI = replace(
    PRESETS["demo"], width=128, heads=4, kv_heads=4, head_width=32, expert_width=192
)
GRID = [(rate, mu) for mu in (0.5, 0.9, 0.0) for rate in (0.9, 0.7, 1.0)]
Codecs = tuple[CodecChoice, ...]

DENSE = ()


def model(preset: str) -> Model:
    """Return the model of a preset; "mini" is this bench's own."""
    made = model_of("demo" if preset == "mini" else preset, preset)
    return replace(made, architecture=architecture(preset))


def architecture(preset: str) -> Architecture:
    return MINI if preset == "mini" else PRESETS[preset]


def codecs(codec: Codec, setting: int, from_round: int = 0) -> Codecs:
    """Return one codec for matrices and embeddings; all else is sent DENSE."""
    return tuple(
        CodecChoice(tensor_class, from_round, codec, setting)
        for tensor_class in (TensorClass.MATRIX, TensorClass.EMBEDDING)
    )


def run(
    rounds: int,
    chosen: Codecs,
    outer: tuple[float, float],
    *,
    steps: int = 20,
    beta: float = 1.0,
    seed: int = 0,
    rate: float = 1.5e-3,
) -> Run:
    """Return the demo run with a constant inner rate and these numbers."""
    kept = (
        CodecChoice(TensorClass.VECTOR, 0, Codec.DENSE, 0),
        CodecChoice(TensorClass.ROUTER, 0, Codec.DENSE, 0),
    )
    return replace(
        run_preset("demo", NOWHERE, (NOWHERE,), rounds, seed),
        inner_steps=steps,
        inner_rate=(RateStep(0, round(rate * 1e9)),),
        codecs=chosen + kept,
        feedback_ppm=round(beta * 1e6),
        outer_rate_ppm=round(outer[0] * 1e6),
        outer_momentum_ppm=round(outer[1] * 1e6),
    )


def dense_name(outer: tuple[float, float]) -> str:
    return f"dense {outer[0]}/{outer[1]}"


def grid(preset: str, start: str, rounds: int) -> Iterable[Trial]:
    """Yield the dense arm under every outer step."""
    for outer in GRID:
        name = dense_name(outer)
        yield Trial(name, preset, start, 0, run(rounds, DENSE, outer))


def low_rank(
    preset: str, start: str, rounds: int, ranks: Iterable[int], **other: float
) -> Iterable[Trial]:
    """Yield LR4 at several ranks under the outer step of the presets."""
    for rank in ranks:
        chosen = run(rounds, codecs(Codec.LR4, rank), (0.9, 0.5))
        yield Trial(f"LR4 r{rank}", preset, start, 0, chosen)


RANKS = {"tiny": (4, 2, 8), "mini": (8, 4, 16), "demo": (16, 8, 32)}


def screened(preset: str, start: str, rounds: int) -> Iterable[Trial]:
    """Yield the arms that are no dense run, on one seed."""
    yield from low_rank(preset, start, rounds, RANKS[preset])
    middle = RANKS[preset][0]
    for name in ("paper", "paper EF", "mask 128", f"basis {middle}", f"basis {2 * middle}"):
        chosen = run(rounds, DENSE, (0.9, 0.5))
        yield Trial(name, preset, start, 0, chosen, control=name)
    alone = run(rounds, DENSE, (1.0, 0.0))
    yield Trial("one learner", preset, start, 0, alone, learners=1)


STAGES = {
    "scratch": lambda preset: [
        *grid(preset, "scratch", 15),
        *screened(preset, "scratch", 15),
    ],
    "warm": lambda preset: [*grid(preset, "warm", 15), *screened(preset, "warm", 15)],
}
