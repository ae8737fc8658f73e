"""What compressed deltas cost in learning: bytes against extra tokens (DEC-B17).

    python -m tests.bench.bench_pareto --out DIR [--preset demo] [--start warm]
        [--stage NAME …] [--only REGEX] [--table] [--afresh]
    python -m tests.bench.bench_pareto --quick

Results are lines of DIR/results.jsonl; a trial that stands there is not repeated, so the
bench may be stopped at any time. Nor is one that is published (tests/bench/pareto.jsonl),
if its text was the same, unless with --afresh. DIR also keeps the corpus and the warm
checkpoints.
Stages: grid (dense, to tune the outer step), codecs, moves, final (3 seeds), steps (H).
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench import pareto_plan as plan
from tests.bench.channels import Coded, Controlled
from tests.bench.control_arms import control_of
from tests.bench.convergence import (
    TILE_PARAMETERS,
    Network,
    Parameters,
    Text,
    Trial,
    fresh,
    trained_alone,
)
from tests.bench.pareto_table import Results, table

CORPUS_BYTES = 12_000_000
WARM_STEPS = 1000
_JUDGED_EVERY = 3  # rounds


def warm(folder: Path, preset: str, text: Text) -> Parameters:
    """Return the checkpoint of a preset, made by one learner; kept in `folder`."""
    path = folder / f"warm-{preset}.npz"
    if not path.exists():
        run = plan.run_of(plan.Arm("warm"), 1, WARM_STEPS)
        model = plan.model(preset)
        made = trained_alone(model, run, text, fresh(model, 0))
        np.savez(path, **made)  # type: ignore[arg-type]
    with np.load(path) as file:
        return dict(file)


def measured(trial: Trial, folder: Path, text: Text) -> dict[str, Any]:
    """Run a trial and return its line; progress goes to a log beside the results."""
    model = plan.model(trial.preset)
    start = (
        warm(folder, trial.preset, text)
        if trial.start == "warm"
        else fresh(model, trial.seed)
    )
    channel = (
        Controlled(trial.run, control_of(trial.control))
        if trial.control
        else Coded(trial.run, trial.learners)
    )
    network = Network(model, trial, text, start, channel)
    began, curve, sent = time.process_time(), [(0, network.held_out())], 0.0
    rounds = trial.run.rounds
    for closed in network.rounds():
        sent += closed.sent_bytes
        done = closed.round + 1
        if done % _JUDGED_EVERY == 0 or done in (rounds, plan.JUDGED_ROUNDS):
            curve.append((done, network.held_out()))
            with (folder / "progress.log").open("a") as log:
                print(f"{trial.key} {done}: {curve[-1][1]:.4f}", file=log)
    elements = sum(group.elements for group in network.layout.groups)
    return {
        "key": trial.key,
        "arm": trial.arm,
        "preset": trial.preset,
        "start": trial.start,
        "seed": trial.seed,
        "steps": trial.run.inner_steps,
        "rounds": rounds,
        "learners": trial.learners,
        "outer": (trial.run.outer_rate_ppm / 1e6, trial.run.outer_momentum_ppm / 1e6),
        "beta": trial.run.feedback_ppm / 1e6,
        "kb": sent / rounds / elements * TILE_PARAMETERS / 1000,
        "curve": curve,
        "flushed": network.held_out(network.flushed()),
        "cpu_s": time.process_time() - began,
    }


def quick(folder: Path) -> None:
    """Three short rounds of two arms on the tiny model: the bench itself works."""
    text = Text.at(folder / "corpus.tblock", 2_000_000)
    results = Results(folder, text.digest)
    arms = plan.dense_arms()[:1] + plan.codec_arms("tiny")[:1] + plan.moves("tiny")[:1]
    for trial in plan.trials(arms, "tiny", "scratch", 0, 3, 5):
        results.add(measured(trial, folder, text))
    print(table(results, "tiny", "scratch", 5, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--preset", choices=sorted(plan.RANKS), default="demo")
    parser.add_argument("--start", choices=("scratch", "warm"), action="append")
    parser.add_argument("--stage", action="append", choices=plan.STAGES)
    parser.add_argument("--only", default="", help="a pattern for the names of arms")
    parser.add_argument("--table", action="store_true", help="print, measure nothing")
    parser.add_argument("--afresh", action="store_true", help="published ones, too")
    parser.add_argument("--quick", action="store_true", help="the tiny model, 3 rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick or options.out is None:
        with tempfile.TemporaryDirectory() as folder:
            quick(options.out or Path(folder))
        return
    starts, preset = options.start or ("scratch", "warm"), options.preset
    text = Text.at(options.out / "corpus.tblock", CORPUS_BYTES)
    results = Results(options.out, text.digest, afresh=options.afresh)
    for start in starts:
        for stage in () if options.table else options.stage or plan.STAGES:
            found = results.tuned(preset, start)
            best = [arm for arm in plan.dense_arms() if arm.name == found]
            for trial in plan.stage(stage, preset, start, best[0] if best else None):
                if trial not in results and re.search(options.only, trial.arm):
                    results.add(measured(trial, options.out, text))
        print(results.all_tables(preset, start), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
