"""What it costs to learn ahead of the updates, so that transfer hides behind inner steps.

    python -m tests.bench.bench_stagger [--preset tiny] [--rounds 15] [--out DIR] [--quick]

Learners that do not wait for round r - 1 begin round r at the version before, whose update
is out; its delta goes into the update after the one under way. "naive": at that version;
"eager": minus what they themselves sent since, so that each goes on from its own model.
Held against waiting, and against rounds twice as long, which halve the transfer as well.
Learning only; how much of the time waiting takes, tests.bench.bench_goodput --links says.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from blyan_tile.delta import decode_group
from blyan_tile.layout import join, split
from tests.bench import pareto_plan as plan
from tests.bench.channels import Coded
from tests.bench.convergence import Network, Parameters, Text, Trial, fresh

CORPUS_BYTES = 12_000_000


@dataclass
class Ahead(Network):
    """Learners that begin each round before the update of the last one is there."""

    eager: bool = False
    before: Parameters = field(default_factory=dict)  # the version before the newest
    flying: dict[int, Parameters] = field(default_factory=dict)  # own, not in `before`

    def learn(self, round_: int) -> int:
        base, sent = self.before or self.parameters(), 0
        flying: dict[int, Parameters] = {}
        for learner in range(self.trial.learners):
            first = self._first(base, round_, learner)
            local = self._local(first, round_, learner)
            for group in self.layout.groups:
                old, new = split(group, first), split(group, local)
                change = [np.subtract(a, b) for a, b in zip(old, new)]
                sent += self.channel.send(learner, round_, group, change)
                assert isinstance(self.channel, Coded)
                encoded = self.channel.sent[group.index][-1]
                made = [x.astype(np.float32) for x in decode_group(group, encoded)]
                flying.setdefault(learner, {}).update(join(self.layout, group, made))
        self.before, self.flying = self.parameters(), flying
        return sent

    def _first(self, base: Parameters, round_: int, learner: int) -> Parameters:
        found = dict(base)
        if self.trial.run.from_residual:
            for group in self.layout.groups:
                waiting = self.channel.residual(learner, round_, group)
                for name, e in join(self.layout, group, waiting).items():
                    found[name] = found[name] - e
        if self.eager and learner in self.flying:
            found = {name: w - self.flying[learner][name] for name, w in found.items()}
        return found


ARMS = {  # name: (codecs, from the residual, how rounds begin, inner steps)
    "DENSE, waits": (("DENSE",), False, "waits", 20),
    "DENSE, naive": (("DENSE",), False, "naive", 20),
    "DENSE, eager": (("DENSE",), False, "eager", 20),
    "LRC, from the residual, waits": (("LRC",), True, "waits", 20),
    "LRC, from the residual, naive": (("LRC",), True, "naive", 20),
    "LRC, from the residual, eager": (("LRC",), True, "eager", 20),
    "LRC, from the residual, waits, H 40": (("LRC",), True, "waits", 40),
}
OUTER = {"0.9/0.5": (0.9, 0.5), "0.7/0": (0.7, 0.0)}


def measured(
    arm: str, outer: str, preset: str, rounds: int, text: Text
) -> list[tuple[int, float]]:
    """Return (rounds of H 20 so far, held-out loss), every third round."""
    codecs, ahead, how, steps = ARMS[arm]
    codecs = tuple(f"LRC:{plan.UNITS[preset]}" if c == "LRC" else c for c in codecs)
    named = plan.Arm(arm, codecs, OUTER[outer], ahead=ahead)
    run = plan.run_of(named, rounds * 20 // steps, steps)
    trial = Trial(arm, preset, "scratch", 0, run)
    model = plan.model(preset)
    parts = model, trial, text, fresh(model, 0), Coded(run, trial.learners)
    net = Network(*parts) if how == "waits" else Ahead(*parts, eager=how == "eager")
    curve = []
    for closed in net.rounds():
        done = (closed.round + 1) * steps // 20
        if done % 3 == 0 or closed.round + 1 == run.rounds:
            curve.append((done, net.held_out()))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(plan.UNITS), default="tiny")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="where the corpus is kept")
    parser.add_argument("--only", default="", help="a pattern for the names of arms")
    parser.add_argument("--quick", action="store_true", help="two rounds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.out or Path(scratch)
        text = Text.at(folder / "corpus.tblock", CORPUS_BYTES)
        print("| learners | outer | held-out loss after rounds of H 20 |")
        print("| --- | --- | --- |")
        for outer in OUTER:
            for arm in filter(re.compile(given.only).search, ARMS):
                rounds = 2 if given.quick else given.rounds
                curve = measured(arm, outer, given.preset, rounds, text)
                said = ", ".join(f"{done}: {loss:.4f}" for done, loss in curve)
                print(f"| {arm} | {outer} | {said} |", flush=True)


if __name__ == "__main__":
    main()
