"""Who pulls against the others: seen over rounds, never by a minority, never for ever."""

from types import SimpleNamespace

import numpy as np
import pytest
import trio

from blyand.training import opposition
from blyand.training.membership import Taken
from blyand.training.opposition import Opposition
from blyand.training.watching import Watcher
from tests.sim.network import InlineLane

RUN, WIDTH = b"run", 1024


class Learners:
    """Learners whose changes have a little in common, and an account of what is seen."""

    def __init__(self):
        self.source = np.random.default_rng(1)
        self.common = self.unit()
        self.seen = Opposition()

    def unit(self):
        made = self.source.standard_normal(WIDTH)
        return made / np.linalg.norm(made)

    def sent(self, **signs):
        """Return sketches of a round's deltas; the sign is of what is in common."""
        sent = {}
        for name, sign in signs.items():
            change = 0.2 * sign * self.common + self.unit()
            sent[name.encode()] = change / np.linalg.norm(change)
        return sent

    def rounds(self, count, **signs):
        """Everybody sends for some groups and rounds."""
        for _ in range(count):
            self.seen.note(RUN, self.sent(**signs))

    def out(self, voices, *others):
        names = {name.encode() for name in voices}
        return "".join(
            name
            for name in sorted({*voices, *others})
            if self.seen.is_against(RUN, name.encode(), names)
        )


@pytest.fixture
def learners():
    return Learners()


SIX = dict.fromkeys("abcdef", 1)
FOUR = dict.fromkeys("wxyz", -1)


def test_four_of_ten_that_turn_the_sign_are_out_and_honest_ones_never(learners):
    learners.rounds(5, **SIX, **FOUR)
    assert learners.out("abcdefwxyz") == ""  # too early to tell
    learners.rounds(145, **SIX, **FOUR)
    for _ in range(20):
        learners.rounds(10, **SIX, **FOUR)
        assert learners.out("abcdefwxyz") == "wxyz"


def test_learners_with_nothing_in_common_stay(learners):
    for _ in range(30):
        learners.rounds(10, **dict.fromkeys("abcdefghij", 0))
        assert learners.out("abcdefghij") == ""


def test_half_has_nobody_left_out_and_two_judge_nobody(learners):
    learners.rounds(200, **dict(list(SIX.items())[:4]), **FOUR)
    assert learners.out("abcdwxyz") == ""
    assert learners.out("ab", "w") == "" and learners.out("abc", "w") == "w"


def test_newcomers_without_a_voice_are_judged_and_judge_nobody(learners):
    """Many new accounts turn the sign together: the known ones are not outvoted."""
    many = dict.fromkeys("mnopqrstuvwxyz", -1)
    learners.rounds(200, **SIX, **many)
    assert learners.out("abcdef", *many) == "".join(many)


def test_who_turns_round_is_let_in_again(learners):
    learners.rounds(150, **SIX, z=-1)
    assert learners.out("abcdefz") == "z"
    learners.rounds(250, **SIX, z=1)
    assert learners.out("abcdefz") == ""


def test_what_a_rank_turned_away_is_looked_at_as_well(learners):
    """Else who turns round would be judged for ever by what it sent before."""
    listed = {}
    watcher = Watcher(lambda: None, None, None, InlineLane(), None)
    watcher._sketches = lambda view, update: listed
    voices = [name.encode() for name in "abcdefz"]
    away = []

    async def main():
        nonlocal listed
        for round in range(400):
            listed = learners.sent(**SIX, z=-1 if round < 150 else 1)
            mine = Taken(SimpleNamespace(learner=b"z"), 1, listed[b"z"])
            away.append(watcher.turns_away((RUN, round, 0), mine, voices))
            if away[-1]:
                del listed[b"z"]
            await watcher._look_at(SimpleNamespace(run=RUN, round=round, group=0))

    trio.run(main)
    assert not any(away[:10]) and all(away[100:150]) and not any(away[350:])


def test_what_is_remembered_is_bounded(learners, monkeypatch):
    monkeypatch.setattr(opposition, "LEARNERS", 4)
    monkeypatch.setattr(opposition, "RUNS", 2)
    learners.rounds(2, **SIX)
    (seen,) = learners.seen._runs.values()
    assert len(seen._learners) == 4 and len(seen._sums) == 6
    for name in b"one", b"two":
        learners.seen.note(name, {})
    assert set(learners.seen._runs) == {b"one", b"two"}
