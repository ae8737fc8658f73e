"""What deltas that come one round late would add, by the rules of quorum and pace alone.

    python -m tests.bench.bench_late [--rounds 300] [--quick]

Learners of different speeds in made-up time. "refused" is what the network does: whoever is
not done when the update is out begins the next round at once. "late" lets it finish, hand
its delta to the next round's primary, where it counts half, and begin that round late.
Counted are the tokens that updates list, the late ones half, in parts of what as many
learners that are all alike would have listed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from blyan_proto.block.model import Run
from blyand.rules.model import quorum
from blyand.rules.model.pace import Passed, Stride, next_stride
from blyand.rules.model.quorum import Habit
from tests.unit.daemon.chain_world import run_of

STEPS = 20
STEP_MS = 250  # of a learner that is not slow
BETWEEN_MS = 450  # from the last delta to the next version everywhere
TICK_MS = 50
LATE_WEIGHT = 0.5
COUNT = 8


@dataclass
class Learner:
    """One learner; times in ms since the beginning."""

    slow: float = 1.0
    unsteady: float = 0.0  # share by which a round takes more, or less
    hiccup: float = 0.0  # how often a round takes twice as long
    stride: Stride = Stride(STEPS)
    round: int = -1  # that it works on, or worked on last
    begun: int = 0
    done: int = 0  # when its delta comes
    habit: Habit | None = None

    def begin(self, round_: int, at: int, draw: random.Random) -> None:
        pace = self.slow * (1 + draw.uniform(-self.unsteady, self.unsteady))
        pace *= 2 if draw.random() < self.hiccup else 1
        self.round, self.begun = round_, at
        self.done = at + int(self.stride.steps * STEP_MS * pace)


@dataclass
class Race:
    """Rounds of some learners, one after the other."""

    learners: Sequence[Learner]
    takes_late: bool
    draw: random.Random
    run: Run = field(
        default_factory=lambda: run_of(
            bytes(32), bytes(32), inner_steps=STEPS, grace_ms=2_000
        )
    )
    now: int = 0
    on_time: int = 0  # steps that updates list
    late: int = 0

    def play(self, round_: int) -> None:
        """Let one round open, be learned, and close."""
        for one in self.learners:
            if not self._goes_on(one, round_):
                one.begin(round_, self.now, self.draw)
        came: dict[int, int] = {}  # learner -> when
        while not came or not self._is_due(came):
            self.now += TICK_MS
            for index, one in enumerate(self.learners):
                if one.done > self.now or index in came:
                    continue
                if one.round == round_:
                    came[index] = self.now
                    self.on_time += one.stride.steps
                else:
                    self.late += one.stride.steps
                    one.begin(round_, one.done, self.draw)
        self._judge(round_, came)
        self.now += BETWEEN_MS

    def _goes_on(self, one: Learner, round_: int) -> bool:
        """True while it finishes the round before, to hand that in late."""
        return self.takes_late and one.round == round_ - 1 and one.done > self.now

    def _is_due(self, came: dict[int, int]) -> bool:
        first = min(came.values())
        missing = [
            one.habit for index, one in enumerate(self.learners) if index not in came
        ]
        times = sorted(at - first for at in came.values())
        closes = quorum.closes_ms(self.run, len(self.learners), times, missing)
        return self.now - first >= closes

    def _judge(self, round_: int, came: dict[int, int]) -> None:
        """Let primaries learn when deltas come, and learners how many steps to take."""
        first, over = min(came.values()), self.now + BETWEEN_MS
        did_all = any(self.learners[index].stride.steps == STEPS for index in came)
        for index, one in enumerate(self.learners):
            if index in came:
                one.habit = quorum.heard(one.habit, came[index] - first)
            else:
                one.habit = quorum.missed(one.habit, self.run)
            if one.round != round_:
                continue  # it is still at the round before
            worked = min(one.done, over) - one.begun
            done = one.stride.steps * worked // max(1, one.done - one.begun)
            passed = Passed(
                steps=one.stride.steps if one.done <= over else done,
                listed=index in came,
                most_were=2 * len(came) >= len(self.learners),
                somebody_did_all=did_all,
                learned_ms=worked,
                waited_ms=max(0, over - one.done),
            )
            one.stride = next_stride(self.run, one.stride, passed)


CASES: dict[str, list[dict[str, float]]] = {
    "all alike": [{}] * COUNT,
    "one 4 x slower": [{}] * 7 + [{"slow": 4.0}],
    "two 4 x slower": [{}] * 6 + [{"slow": 4.0}] * 2,
    "half of them 2 x slower": [{}] * 4 + [{"slow": 2.0}] * 4,
    "all unsteady by a half": [{"unsteady": 0.5}] * COUNT,
    "every tenth round takes twice as long": [{"hiccup": 0.1}] * COUNT,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="30 rounds")
    given = parser.parse_args()
    rounds = 30 if given.quick else given.rounds
    whole = None
    print("| learners | refused | late, half | of which late | s/round |")
    print("| --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        rates, races = [], []
        for takes_late in (False, True):
            race = Race([Learner(**one) for one in case], takes_late, random.Random(1))
            for round_ in range(rounds):
                race.play(round_)
            races.append(race)
            rates.append((race.on_time + LATE_WEIGHT * race.late) / race.now)
        whole = whole or rates[0]
        late = LATE_WEIGHT * races[1].late / races[1].now / rates[1]
        seconds = " / ".join(f"{one.now / rounds / 1000:.2f}" for one in races)
        print(
            f"| {name} | {100 * rates[0] / whole:.1f} % "
            f"| {100 * rates[1] / whole:.1f} % | {100 * late:.1f} % | {seconds} |"
        )


if __name__ == "__main__":
    main()
