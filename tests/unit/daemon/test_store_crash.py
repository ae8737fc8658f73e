"""SIGKILL at any instant: what was acknowledged is there, whole, and indexed."""

import random

from tests.unit.daemon.crash_life import losses, one_life

KILLS = 5


def test_kills_lose_nothing_acknowledged(tmp_path):
    rng, said = random.Random(4), []
    for life in range(KILLS):
        said += one_life(tmp_path / "home", life, rng)
        assert list(losses(tmp_path / "home", said)) == []
    assert {"block", "blob", "final"} <= {words[0] for words in said}
