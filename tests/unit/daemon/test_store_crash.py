"""SIGKILL at any instant: what was acknowledged is there, whole, and indexed."""

import random

from tests.unit.daemon.crash_life import Lives, losses

KILLS = 5


def test_kills_lose_nothing_acknowledged(tmp_path):
    rng, said = random.Random(4), []
    with Lives(tmp_path / "home") as lives:
        for life in range(KILLS):
            said += lives.one(life, rng)
            assert list(losses(tmp_path / "home", said)) == []
    assert {"block", "blob", "final"} <= {words[0] for words in said}
