"""The trials of tests.bench.bench_pareto: which arms, in which order (DEC-B17)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from blyan_proto.block.model import (
    Architecture,
    Codec,
    CodecChoice,
    Inner,
    Model,
    RateStep,
    Run,
    TensorClass,
)
from blyan_proto.block.sending import chosen
from blyan_tile.create import PRESETS, model_of, run_preset
from tests.bench.convergence import Trial

NOWHERE = bytes(32)  # stands for block ids: there is no chain
# A quarter of the demo model: tiles of 128 x 192, so a rank costs a parameter the bytes
# that twice the rank costs in the demo model.
MINI = replace(
    PRESETS["demo"], width=128, heads=4, kv_heads=4, head_width=32, expert_width=192
)
# 26 million parameters in tiles of up to 512 x 512: half of the small model's layers.
LARGE = replace(PRESETS["small"], layers=4)
OWN = {"mini": MINI, "large": LARGE}
ROUNDS = 15  # of a screening; finalists go on to
FINAL_ROUNDS = 46  # which is 15 % more than
JUDGED_ROUNDS = 40
SEEDS = (0, 1, 2)
# the ranks that take about 100, 52 and 200 KB per 2 M parameters
RANKS = {
    "tiny": (4, 2, 8),
    "mini": (8, 4, 16),
    "demo": (13, 7, 28),
    "large": (21, 11, 44),
}
GRID = [(rate, mu) for mu in (0.5, 0.9, 0.0) for rate in (0.9, 0.7, 1.0)]
LIGHT = (0.9, 0.5)  # the presets' outer step
MEAN = (1.0, 0.0)  # the next weights are the mean of the learners'


@dataclass(frozen=True)
class Arm:
    """How deltas are sent and what the outer step makes of them."""

    name: str
    codecs: tuple[str, ...] = ("DENSE",)  # as `train start --codec`
    outer: tuple[float, float] = LIGHT
    beta: float = 1.0
    control: str = ""
    learners: int = 4
    inner: Inner = Inner.ADAMW
    ahead: bool = False  # learners start from the base minus their residual


SPARSE_LOCO = Arm("SparseLoCo SC:64/2 EF 0.95", ("SC:64/2",), (1.0, 0.0), 0.95)


def architecture(preset: str) -> Architecture:
    return OWN.get(preset) or PRESETS[preset]


def model(preset: str) -> Model:
    """Return the model of a preset, or one of this bench's own."""
    made = model_of("demo" if preset in OWN else preset, preset)
    return replace(made, architecture=architecture(preset))


def run_of(arm: Arm, rounds: int, steps: int = 20) -> Run:
    """Return the demo run with the arm's numbers and a constant inner rate."""
    kept = (
        CodecChoice(TensorClass.VECTOR, 0, Codec.DENSE, 0),
        CodecChoice(TensorClass.ROUTER, 0, Codec.DENSE, 0),
    )
    return replace(
        run_preset("demo", NOWHERE, (NOWHERE,), rounds, 0),
        inner_steps=steps,
        inner_rate=(RateStep(0, 1_500_000),),
        codecs=chosen(arm.codecs, kept),
        feedback_ppm=round(arm.beta * 1e6),
        outer_rate_ppm=round(arm.outer[0] * 1e6),
        outer_momentum_ppm=round(arm.outer[1] * 1e6),
        from_residual=arm.ahead,
        inner=arm.inner,
    )


def dense_arms() -> list[Arm]:
    """Return the dense arm under every outer step of the grid."""
    return [Arm(f"dense {rate}/{mu}", outer=(rate, mu)) for rate, mu in GRID]


def codec_arms(preset: str) -> list[Arm]:
    """Return the codecs of the network and the control arms that they are held against."""
    light = [f"{codec}:{rank}" for rank in RANKS[preset] for codec in ("LR4", "LRC")]
    light += ["Q:1", "Q:2", "Q:4", "SC:128/2", "SC:64/2"]
    return [
        *(Arm(text, (text,)) for text in light),
        SPARSE_LOCO,
        Arm("white paper", control="paper 0"),
        Arm("white paper, EF 1", control="paper 1"),
        Arm("one learner", outer=(1.0, 0.0), learners=1),
    ]


def moves(preset: str) -> list[Arm]:
    """Return what might move the front, at about the bytes of the unit rank or half."""
    unit, low, high = RANKS[preset]
    middle = f"LR4:{unit}"
    early = (f"LR4:{high}", f"{middle}@4", f"LR4:{low}@8")
    late = (f"LR4:{low}", f"{middle}@7", f"LR4:{high}@11")
    by_class = (f"matrix=LRC:{unit}", "embedding=Q:1")
    return [
        *(_ahead(f"LRC:{rank}") for rank in RANKS[preset]),
        *(_ahead(f"LRC:{rank}", MEAN) for rank in RANKS[preset]),
        *(_ahead(text) for text in (middle, f"LR4:{low}", "Q:1")),
        *(_ahead(middle, outer) for outer in ((1.0, 0.5), (0.7, 0.9), (1.0, 0.0))),
        _ahead("SC:64/2", (1.0, 0.0)),
        Arm(f"LRC:{unit}, embeddings Q:1, ahead", by_class, ahead=True),
        Arm(f"LR2 {high} ahead", control=f"LR2 {high}", ahead=True),
        Arm(f"LR2 {high}", control=f"LR2 {high}"),
        Arm(f"LR3 {4 * unit // 3}", control=f"LR3 {4 * unit // 3}"),
        Arm(f"{middle} EF 0.9", (middle,), beta=0.9),
        Arm(f"{middle} EF 0.5 outer 0.7/0.9", (middle,), (0.7, 0.9), 0.5),
        Arm(f"{middle} outer 1.0/0.3", (middle,), (1.0, 0.3)),
        Arm("more bytes early", early),
        Arm("more bytes late, ahead", late, ahead=True),
        Arm(f"shared basis {high}", control=f"basis {high}"),
        Arm("shared mask 256", control="mask 256"),
        *(
            Arm(
                f"Muon inside, {text} {outer[0]}/{outer[1]}",
                (text,),
                outer,
                inner=Inner.MUON,
            )
            for text in ("DENSE", "Q:2", middle)
            for outer in (MEAN, LIGHT)
        ),
        *(
            Arm(
                f"Muon inside, LRC:{rank} ahead {outer[0]}/{outer[1]}",
                (f"LRC:{rank}",),
                outer,
                inner=Inner.MUON,
                ahead=True,
            )
            for rank in RANKS[preset]
            for outer in (MEAN, LIGHT)
        ),
    ]


def _ahead(text: str, outer: tuple[float, float] = LIGHT) -> Arm:
    name = f"{text} ahead {outer[0]}/{outer[1]}"
    return Arm(name, (text,), outer, ahead=True)


def finalists(preset: str) -> list[Arm]:
    """Return the four arms that go on beside the dense winner."""
    return [*(_ahead(f"LRC:{rank}", MEAN) for rank in RANKS[preset]), SPARSE_LOCO]


def trials(
    arms: Sequence[Arm],
    preset: str,
    start: str,
    seed: int,
    rounds: int,
    steps: int = 20,
) -> Iterator[Trial]:
    """Yield one trial per arm."""
    for arm in arms:
        yield Trial(
            arm.name,
            preset,
            start,
            seed,
            run_of(arm, rounds, steps),
            arm.learners,
            arm.control,
        )


def stage(name: str, preset: str, start: str, winner: Arm | None) -> Iterator[Trial]:
    """Yield the trials of a stage; `winner` is the best dense arm of the grid so far.

    KeyError for a stage that there is not.
    """
    best = [winner] if winner else []
    if name == "grid":
        yield from trials(dense_arms(), preset, start, 0, ROUNDS)
    elif name == "codecs":
        yield from trials(codec_arms(preset), preset, start, 0, ROUNDS)
    elif name == "moves":
        yield from trials(moves(preset), preset, start, 0, ROUNDS)
    elif name == "steps":  # as many inner steps, at other lengths of a round
        for steps in (15, 30, 100):
            rounds = max(1, 20 * ROUNDS // steps)
            arms = best + finalists(preset)
            yield from trials(arms, preset, start, 0, rounds, steps)
    elif name == "final":
        for seed in SEEDS:
            yield from trials(best, preset, start, seed, JUDGED_ROUNDS)
            yield from trials(finalists(preset), preset, start, seed, FINAL_ROUNDS)
    else:
        raise KeyError(name)


STAGES = ("grid", "codecs", "moves", "final", "steps")
