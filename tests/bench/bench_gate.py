"""How often the gate refuses honest rounds, and how often it lets harmful ones through.

    python -m tests.bench.bench_gate [--quick] [--out DIR] [--seeds 1 2 3]

Honest versions are four rounds apart, made by four learners of the tiny preset (H 5, LR4),
from a start that is trained already, so that a version hardly changes the loss. Harmful
ones are made of them: noise of the same size, the step turned round, and the same rounds
on bytes turned round (255 - b). Each version and its predecessor are measured once on all
windows; draws of windows are then repeated, and `rules.model.gate` decides. A bare
threshold on the same draws, as the white paper has it, stands beside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from blyan_proto.block.gate import Gate
from blyan_proto.block.model import RateStep
from blyan_proto.constants import PPM
from blyan_tile.batches import drawn_windows
from blyan_tile.create import model_of, run_preset
from blyan_tile.model.training import Trainable
from blyand.rules.model.gate import Scored, passes
from blyand.training.scorer import micro_of
from tests.bench.channels import Coded
from tests.bench.convergence import (
    Network,
    Parameters,
    Text,
    Trial,
    fresh,
    trained_alone,
)

MODEL = model_of("tiny", "tiny")
LEARNERS = 4
APART = 4  # rounds between two versions
DRAWS = 2000
WINDOWS = (32, 128, 512)
MARGINS = (0, 1_000, 2_000, 5_000)  # micro-nats per token
BOUND_MILLI = 1645
BARE = (0.0, 0.02)  # gain that a bare threshold asks for, nats per token
HONEST = "honest"
CLEARLY = 0.01  # a rise beyond this is harmful beyond doubt


@dataclass(frozen=True)
class Pair:
    """One version and the one before it, on the same windows."""

    kind: str
    seed: int
    before: np.ndarray  # (N,) micro-nats per token
    after: np.ndarray

    @property
    def rise(self) -> float:
        """On all windows, nats per token."""
        return float((self.after - self.before).mean()) / PPM


def losses(parameters: Parameters, windows: torch.Tensor) -> np.ndarray:
    """windows (N, T + 1) -> mean loss of each (N,), micro-nats per token."""
    shape = MODEL.architecture
    tensors = {name: torch.from_numpy(x) for name, x in parameters.items()}
    model = Trainable(shape, tensors, [range(shape.experts)] * shape.layers)
    with torch.no_grad():
        found = [float(model.run(one[None]).loss) for one in windows]
    return micro_of(np.array(found))


class Turned(Text):
    """The same text with every byte turned round."""

    def batches(self, *place: int) -> Iterator[torch.Tensor]:  # type: ignore[override]
        for batch in super().batches(*place):  # type: ignore[arg-type]
            yield 255 - batch


def pairs_of(seed: int, warm: int, rounds: int, text: Text, count: int) -> list[Pair]:
    """Train; return each version with its predecessor, and what liars make of it."""
    run = run_preset("tiny", bytes(32), (bytes(32),), rounds, seed)
    alone = replace(
        run, inner_steps=warm, batch=8, inner_rate=(RateStep(0, 3 * 10**6),)
    )
    start = trained_alone(MODEL, alone, text, fresh(MODEL, seed))
    trial = Trial("gate", "tiny", "warm", seed, run, LEARNERS)
    network = Network(MODEL, trial, text, start, Coded(run, LEARNERS))
    windows = torch.from_numpy(
        drawn_windows(text.archive.held_out, run.sequence, count, bytes(32))
    )
    source = np.random.default_rng(seed)
    found: list[Pair] = []
    base, before = start, losses(start, windows)
    for closed in network.rounds():
        if (closed.round + 1) % APART:
            continue
        now = network.parameters()
        step = {name: now[name] - base[name] for name in base}
        noise = {
            name: source.standard_normal(x.shape).astype("f4") * x.std()
            for name, x in step.items()
        }
        after = losses(now, windows)
        found.append(Pair(HONEST, seed, before, after))
        for kind, change in (
            ("noise", noise),
            ("turned round", {name: -x for name, x in step.items()}),
            ("other text", _of_other_text(run, text, base)),
        ):
            bad = {name: base[name] + change[name] for name in base}
            found.append(Pair(kind, seed, before, losses(bad, windows)))
        base, before = now, after
    return found


def _of_other_text(run: object, text: Text, base: Parameters) -> Parameters:
    """Return what the same number of steps on turned bytes changes."""
    assert hasattr(run, "inner_steps")
    longer = replace(run, inner_steps=APART * run.inner_steps)  # type: ignore[type-var]
    local = trained_alone(MODEL, longer, Turned(text.archive), base)
    return {name: local[name] - base[name] for name in base}


Accepts = Callable[[int, int, int], bool]  # windows, their rise, its squares: sums


def refused(pair: Pair, size: int, accepts: Accepts, seed: int = 0) -> float:
    """Return the share of draws of `size` windows in which a version is refused.

    Drawn with replacement: the held-out side of a real dataset is larger.
    """
    source = np.random.default_rng(seed)
    rise = (pair.after - pair.before)[
        source.integers(0, len(pair.before), (DRAWS, size))
    ]  # (DRAWS, size)
    sums = zip(rise.sum(1).tolist(), (rise * rise).sum(1).tolist())
    return sum(not accepts(size, *one) for one in sums) / DRAWS


def gate_of(margin_micro: int) -> Accepts:
    """Return the rule of the network."""

    def accepts(size: int, rise: int, squares: int) -> bool:
        scored = Scored(bytes(20), size, max(0, -rise), max(0, rise), squares)
        return passes(Gate(1, size, BOUND_MILLI, margin_micro), scored)

    return accepts


def bare(gain: float) -> Accepts:
    """Return the white paper's rule: the mean falls by so much."""
    return lambda size, rise, squares: -rise / size / PPM >= gain


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    options.add_argument("--out", default="")
    options.add_argument("--seeds", type=int, nargs="+", default=[1])
    asked = options.parse_args()
    torch.set_num_threads(1)
    warm, rounds, count = (150, 8, 192) if asked.quick else (1500, 48, 768)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(asked.out or scratch)
        out.mkdir(parents=True, exist_ok=True)
        text = Text.at(out / "archive", 6 << 20)
        found: list[Pair] = []
        for seed in asked.seeds:
            path = out / f"pairs-{warm}-{rounds}-{count}-{seed}.json"
            began = time.process_time()
            if not path.exists():
                made = pairs_of(seed, warm, rounds, text, count)
                rows = [
                    [p.kind, p.seed, p.before.tolist(), p.after.tolist()] for p in made
                ]
                path.write_text(json.dumps(rows))
            for kind, of, *sides in json.loads(path.read_text()):
                found.append(Pair(kind, of, *map(np.array, sides)))
            print(f"seed {seed}: {time.process_time() - began:.0f} s", flush=True)
    tell(found)


def tell(found: list[Pair]) -> None:
    """Print the table: the share of refused versions, in per cent."""
    sizes = [size for size in WINDOWS if size <= len(found[0].before)]
    rules = [(f"margin {m / PPM:g}", gate_of(m)) for m in MARGINS]
    rules += [(f"bare {gain:g}", bare(gain)) for gain in BARE]
    print(f"\n{len(found[0].before)} windows of 64 tokens, {DRAWS} draws of each size")
    print("refused, %. `margin`: upper bound of the rise at 95 %; `bare`: mean gain")
    head = [f"{name}, {size}" for name, _ in rules for size in sizes]
    print("\n| versions | n | rise, median | " + " | ".join(head) + " |")
    print("| --- | --: | --: |" + " --: |" * len(head))
    groups: list[tuple[str, list[Pair]]] = []
    kinds = list(dict.fromkeys(pair.kind for pair in found))
    for kind in kinds:
        mine = [pair for pair in found if pair.kind == kind]
        if kind == HONEST:
            better = [pair for pair in mine if pair.rise < 0]
            flat = [pair for pair in better if pair.rise > -CLEARLY]
            groups += [("honest, all", mine), ("honest, better by < 0.01", flat)]
            groups += [("honest, worse", [p for p in mine if p.rise >= 0])]
        else:
            worse = [pair for pair in mine if pair.rise > 0]
            groups.append((kind, worse))
    for name, mine in groups:
        if not mine:
            print(f"| {name} | 0 | – |" + " – |" * len(head))
            continue
        rise = np.median([pair.rise for pair in mine])
        cells = [
            100 * float(np.mean([refused(pair, size, rule) for pair in mine]))
            for _, rule in rules
            for size in sizes
        ]
        numbers = " | ".join(f"{cell:.1f}" for cell in cells)
        print(f"| {name} | {len(mine)} | {rise:+.4f} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
