"""What it costs that a learner holds only some of the experts (DEC-B13).

    python -m tests.bench.bench_partial [--quick] [--rounds 40] [--seeds 3] [--out DIR]
        [--preset small8] [--steps 20] [--arms full,masked,…]

Simulated learners over the real parts: the inner steps, error feedback, codecs, the
exact sum, the outer step, and the rule of placement that says who holds what. Every arm of a seed
starts from the same weights and reads the same batches. Results are JSON lines in
DIR/partial.jsonl, one per arm and seed; what stands there is not run again.

Arms. full: everybody holds all. masked: each holds half of the experts, the router knows
no others (what a learner does). rows: masked, and a router's row is averaged over the
learners that hold its expert. rotateN: rows, placement drawn anew every N rounds. remote: as
masked, but a token may go to an expert elsewhere, which computes with the round's
base weights and sends back the gradient of its input.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blyan_proto.block.model import Model, Run
from blyan_proto.block.sending import chosen
from blyan_proto.constants import PPM
from blyan_proto.digest import Domain, digest
from blyan_tile import inner
from blyan_tile.batches import assign, gather, held_out_windows
from blyan_tile.corpus import Archive
from blyan_tile.create import (
    PRESETS,
    initial_parameters,
    model_of,
    run_preset,
)
from blyan_tile.delta import TileState, next_tiles
from blyan_tile.feedback import Feedback
from blyan_tile.layout import Group, join, layout_of, split
from blyan_tile.model.training import held_out_loss
from blyan_tile.residual import Settled
from blyand.rules.model.placement import place
from blyand.rules.model.update import contribution_weights
from tests.bench.channels import Memory
from tests.bench.convergence import Text

MODELS = {
    # eight experts of which each learner holds four; 0.37 and 1.4 million parameters
    "small8": replace(PRESETS["tiny"], experts=8),
    "mini": replace(
        PRESETS["demo"],
        width=128,
        heads=4,
        kv_heads=4,
        head_width=32,
        expert_width=192,
    ),
    **PRESETS,
}
JUDGED_EVERY = 10  # rounds

Held = Mapping[bytes, frozenset[int]]  # learner -> groups
Sent = dict[
    int, list[tuple[bytes, int, list[bytes]]]
]  # group -> learner, tokens, tiles


@dataclass(frozen=True)
class Arm:
    """Who holds and trains what."""

    copies: int  # holders per expert; 0: everybody
    every: int = 0  # rounds after which placement is drawn anew; 0: never
    rows: bool = False  # router rows are averaged over the holders of their expert
    remote: bool = False  # a token may go to experts elsewhere


def arm_called(name: str) -> Arm:
    if name.startswith("rotate"):
        return Arm(2, every=int(name[len("rotate") :]), rows=True)
    known = {
        "full": Arm(0),
        "masked": Arm(2),
        "rows": Arm(2, rows=True),
        "remote": Arm(2, remote=True),
    }
    return known[name]


@dataclass
class Simulation:
    """Learners that train one model round by round."""

    model: Model
    run: Run
    arm: Arm
    archive: Archive
    learners: list[bytes]
    state: dict[int, list[TileState]]
    settled: dict[bytes, tuple[Settled, ...]] = field(default_factory=dict)
    bytes_sent: int = 0
    skipped: int = 0  # experts that saw too few tokens, over learners and rounds

    def __post_init__(self) -> None:
        self.layout = layout_of(self.model)
        self._residuals = {learner: Memory() for learner in self.learners}

    def held(self, round_: int) -> Held:
        """Return who holds which groups in a round."""
        arm = self.arm
        turn = round_ // arm.every if arm.every else 0
        name = digest(Domain.SEED, self.run.seed.to_bytes(8, "little"), bytes([turn]))
        copies = arm.copies or len(self.learners)
        return place(name, self.layout, self.learners, copies)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters of the version that all have."""
        return {
            name: array
            for group in self.layout.groups
            for name, array in join(
                self.layout, group, [w for w, _ in self.state[group.index]]
            ).items()
        }

    def loss(self, windows: np.ndarray) -> float:
        """Return nats per byte of the whole model, nothing masked."""
        parameters = {name: torch.from_numpy(a) for name, a in self.arrays().items()}
        architecture = self.model.architecture
        return held_out_loss(architecture, parameters, torch.from_numpy(windows))

    def round(self, round_: int) -> None:
        """Let everybody learn, then move every group by the rule."""
        held = self.held(round_)
        base = self.arrays()
        sent: Sent = {group.index: [] for group in self.layout.groups}
        for learner in self.learners:
            self._learn(learner, round_, held, base, sent)
        for group in self.layout.groups:
            parts = sorted(sent[group.index])
            weights = contribution_weights([tokens for _, tokens, _ in parts])
            listed = [(weight, tiles) for weight, (_, _, tiles) in zip(weights, parts)]
            state = self.state[group.index]
            self.state[group.index] = next_tiles(group, state, listed, self.run)

    def _learn(
        self,
        learner: bytes,
        round_: int,
        held: Held,
        base: dict[str, np.ndarray],
        sent: Sent,
    ) -> None:
        run = self.run
        trained = [g for g in self.layout.groups if g.index in held[learner]]
        mine = {p for group in trained for p in names_of(group)}
        parameters = {
            name: torch.tensor(array, requires_grad=name in mine)
            for name, array in base.items()
            if self.arm.remote or name in mine
        }
        views = self.archive.train
        total = sum(map(len, views))
        starts = assign(bytes(32), round_, learner, run, total)  # (H, B)
        batches = (torch.from_numpy(gather(views, s, run.sequence + 1)) for s in starts)
        layers = range(self.model.architecture.layers)
        known = self.layout.groups if self.arm.remote else trained
        outcome = inner.train(
            self.model.architecture,
            run,
            round_,
            parameters,
            [
                [g.expert for g in known if g.layer == n and g.expert is not None]
                for n in layers
            ],
            batches,
            lambda done, loss: None,
        )
        assert outcome.finite
        local = {name: parameters[name].detach().numpy() for name in mine}
        feedback = Feedback(self._residuals[learner], run, round_)
        whole = run.inner_steps * run.batch * run.sequence
        settled = []
        for group in trained:
            waiting = feedback.settled(group, self.settled.get(learner, ()))
            tokens = whole
            if group.expert is not None:
                tokens = int(outcome.routed[group.layer, group.expert])
                if tokens < run.min_tokens:
                    feedback.keep(group, waiting)
                    self.skipped += 1
                    continue
            old = [weights for weights, _ in self.state[group.index]]
            change = [np.subtract(a, b) for a, b in zip(old, split(group, local))]
            if group.name.endswith(".router") and not self.arm.remote:
                (rows,) = change
                rows *= self._row_factors(group, learner, held)[:, None]
            record = feedback.send(group, waiting, change)
            sent[group.index].append((learner, tokens, record.encoded))
            settled.append(Settled(round_, group.index, True, PPM))
            self.bytes_sent += sum(map(len, record.encoded))
        self.settled[learner] = tuple(settled)

    def _row_factors(self, router: Group, learner: bytes, held: Held) -> np.ndarray:
        """Return what a learner multiplies its router's rows with, (E,) float32."""
        experts = [g for g in self.layout.expert_groups if g.layer == router.layer]
        factors = np.zeros(len(experts), np.float32)
        for group in experts:
            holders = sum(group.index in groups for groups in held.values())
            if group.index in held[learner]:
                factors[group.expert] = len(held) / holders if self.arm.rows else 1
        return factors


def names_of(group: Group) -> set[str]:
    return {piece.parameter for tile in group.tiles for piece in tile.pieces}


def simulate(
    options: argparse.Namespace, name: str, seed: int, archive: Archive
) -> dict[str, Any]:
    """Run one arm with one seed and return its row."""
    model = replace(model_of("demo", "simulated"), architecture=MODELS[options.preset])
    run = run_preset("demo", bytes(32), (bytes(32),), options.rounds, seed)
    if model.architecture.width < 128:
        run = replace(run, sequence=64)
    run = replace(
        run,
        inner_steps=options.steps,
        codecs=chosen(("LR4:16",), run.codecs),
        outer_rate_ppm=900_000,
        outer_momentum_ppm=500_000,
        from_residual=False,
    )
    first = initial_parameters(model.architecture, seed)
    state: dict[int, list[TileState]] = {
        group.index: [(tile, None) for tile in split(group, first)]
        for group in layout_of(model).groups
    }
    learners = [bytes([n]) * 20 for n in range(options.learners)]
    windows = held_out_windows(archive.held_out, run.sequence)
    began, cpu = time.monotonic(), time.process_time()
    simulation = Simulation(model, run, arm_called(name), archive, learners, state)
    losses = {0: simulation.loss(windows)}
    for round_ in range(options.rounds):
        simulation.round(round_)
        if (round_ + 1) % JUDGED_EVERY == 0 or round_ + 1 == options.rounds:
            losses[round_ + 1] = simulation.loss(windows)
            print(
                f"  {name} seed {seed} round {round_ + 1}: {losses[round_ + 1]:.4f}",
                flush=True,
            )
    return {
        "preset": options.preset,
        "learners": options.learners,
        "rounds": options.rounds,
        "steps": options.steps,
        "arm": name,
        "seed": seed,
        "losses": losses,
        "mib_sent": simulation.bytes_sent / 2**20,
        "skipped": simulation.skipped,
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - began, 1),
    }


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print what every arm reached, against full replicas of the same seed."""
    full = {row["seed"]: row["losses"] for row in rows if row["arm"] == "full"}
    print(
        "arm      | seeds | held-out loss, mean | over full, % (mean; worst) | MiB sent | CPU s"
    )
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        last = str(mine[0]["rounds"])
        ends = [row["losses"][last] for row in mine]
        over = [
            100 * (row["losses"][last] / full[row["seed"]][last] - 1)
            for row in mine
            if row["seed"] in full
        ]
        against = f"{statistics.mean(over):+.2f}; {max(over):+.2f}" if over else "-"
        print(
            f"{arm:8} | {len(mine):5} | {statistics.mean(ends):19.4f} | {against:>26} | "
            f"{statistics.mean(row['mib_sent'] for row in mine):8.1f} | "
            f"{statistics.mean(row['cpu_s'] for row in mine):5.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=MODELS, default="small8")
    parser.add_argument("--arms", default="full,masked,rows,rotate8,remote")
    parser.add_argument("--learners", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20, help="inner, per round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for results; kept")
    parser.add_argument("--quick", action="store_true", help="tiny, 3 rounds, one seed")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.rounds, options.seeds = "tiny", 3, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        archive = Text.at(out / "archive", 16 << 20).archive
        results = out / "partial.jsonl"
        names = "preset", "learners", "rounds", "steps"
        asked = [getattr(options, name) for name in names]
        rows = [
            row
            for row in map(
                json.loads, results.read_text().splitlines() if results.exists() else ()
            )
            if [row[name] for name in names] == asked
        ]
        done = {(row["arm"], row["seed"]) for row in rows}
        for arm in options.arms.split(","):
            for seed in range(1, options.seeds + 1):
                if (arm, seed) not in done:
                    row = json.dumps(simulate(options, arm, seed, archive))
                    rows.append(json.loads(row))
                    with results.open("a") as file:
                        file.write(row + "\n")
        model = f"{options.preset} model, {options.learners} learners"
        print(
            f"{model}, {options.rounds} rounds from scratch, half of the experts each"
        )
        table(rows)


if __name__ == "__main__":
    main()
