"""What compressed deltas cost in learning: bytes against extra tokens (DEC-B17).

    python -m tests.bench.bench_pareto --out DIR [--stage NAME …] [--quick] [--table]

Results are lines of DIR/results.jsonl; a trial that stands there is not repeated, so the
bench can be stopped at any time. DIR also keeps the corpus and the warm checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench import pareto_plan as plan
from tests.bench.control_arms import CONTROLS
from tests.bench.convergence import (
    TILE_PARAMETERS,
    Network,
    Parameters,
    Text,
    Trial,
    fresh,
    trained_alone,
)

CORPUS_BYTES = 12_000_000
WARM_STEPS = 1000


class Results:
    """The file of results, a line per trial."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.jsonl"
        self._found: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                row = json.loads(line)
                self._found[row["key"]] = row

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self._found

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._found[key]

    def add(self, row: dict[str, Any]) -> None:
        self._found[row["key"]] = row
        with self._path.open("a") as file:
            print(json.dumps(row), file=file)

    def rows(self) -> list[dict[str, Any]]:
        return list(self._found.values())


def warm(folder: Path, preset: str, text: Text) -> Parameters:
    """Return the checkpoint of a preset, made by one learner; kept in `folder`."""
    path = folder / f"warm-{preset}.npz"
    if not path.exists():
        model = plan.model(preset)
        run = plan.run(1, plan.DENSE, (1.0, 0.0), steps=WARM_STEPS)
        np.savez(path, **trained_alone(model, run, text, fresh(model, 0)))
    with np.load(path) as file:
        return dict(file)


def measured(trial: Trial, folder: Path, text: Text, every: int) -> dict[str, Any]:
    """Run a trial and return its line."""
    model = plan.model(trial.preset)
    start = (
        warm(folder, trial.preset, text)
        if trial.start == "warm"
        else fresh(model, trial.seed)
    )
    control = CONTROLS[trial.control]() if trial.control else None
    network = Network(model, trial, text, start, control)
    began, curve, sent = time.process_time(), [(0, network.held_out())], 0.0
    for closed in network.rounds():
        sent += closed.sent_bytes
        if (closed.round + 1) % every == 0 or closed.round + 1 == trial.run.rounds:
            curve.append((closed.round + 1, network.held_out()))
            note = f"{trial.key} {curve[-1][0]}: {curve[-1][1]:.4f}"
            print(note, file=(folder / "progress.log").open("a"), flush=True)
    elements = sum(group.elements for group in network.layout.groups)
    return {
        "key": trial.key,
        "arm": trial.arm,
        "preset": trial.preset,
        "start": trial.start,
        "seed": trial.seed,
        "steps": trial.run.inner_steps,
        "rounds": trial.run.rounds,
        "learners": trial.learners,
        "outer": (trial.run.outer_rate_ppm / 1e6, trial.run.outer_momentum_ppm / 1e6),
        "beta": trial.run.feedback_ppm / 1e6,
        "kb": sent / trial.run.rounds / elements * TILE_PARAMETERS / 1000,
        "curve": curve,
        "cpu_s": time.process_time() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", action="append", choices=sorted(plan.STAGES))
    parser.add_argument("--preset", choices=("tiny", "mini", "demo"), default="mini")
    parser.add_argument("--quick", action="store_true", help="the tiny model, 3 rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out)
    text = Text.at(options.out / "corpus.tblock", CORPUS_BYTES)
    for stage in options.stage or plan.STAGES:
        for trial in plan.STAGES[stage](options.preset):
            if trial not in results:
                results.add(measured(trial, options.out, text, 3))


if __name__ == "__main__":
    main()
