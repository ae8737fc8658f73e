"""A bounded, seeded run of every fuzz target; `python -m tests.fuzz.run` goes on."""

from random import Random

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS

ROUNDS = 400


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_samples_fail_cleanly_or_are_canonical(name):
    target, random = TARGETS[name], Random(f"blyan {name}")
    assert all(target.check(raw) for raw in target.samples[:1])
    assert not target.check(b"\xff" * 40) or target.encode is None
    for round in range(ROUNDS):
        raw = mutate(random, target.samples)
        try:
            target.check(raw)
        except Exception as error:
            error.add_note(f"round {round}: {raw.hex()}")
            raise
