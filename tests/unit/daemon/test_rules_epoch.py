"""Consensus epochs: their boundary, their length, and what runs at their end."""

from __future__ import annotations

import pytest

from blyan_proto.genesis import Setting
from blyand.rules.chain import execute as execution
from blyand.rules.economy import epoch as epochs
from blyand.rules.economy.epoch import Epoch
from tests.unit.daemon.chain_world import START_MS, World

SPAN_MS = 3_600_000


def running(world):
    return epochs.running(world.view)


def test_the_first_epoch_begins_with_the_genesis():
    assert running(World()) == Epoch(0, START_MS, 1, 0)


@pytest.mark.parametrize("before_ms", (SPAN_MS - 2, SPAN_MS - 1))
def test_the_checkpoint_that_fills_the_span_is_the_last_one(before_ms):
    world = World()
    world.checkpoint(step_ms=before_ms)
    assert running(world) == Epoch(0, START_MS, 1, 1)
    world.checkpoint(step_ms=SPAN_MS - before_ms)
    assert running(world) == Epoch(1, START_MS + SPAN_MS, 3, 0)
    world.checkpoint(step_ms=1)
    assert running(world) == Epoch(1, START_MS + SPAN_MS, 3, 1)


def test_the_boundary_of_an_hour_of_a_checkpoint_a_second():
    world = World()
    numbers = []
    for _ in range(3601):
        world.checkpoint(step_ms=1_000)
        numbers.append(running(world).number)
    assert numbers[3598:] == [0, 1, 1], "3599, 3600, 3601"


def test_a_standstill_makes_one_long_epoch():
    world = World()
    world.checkpoint(step_ms=10 * SPAN_MS + 7)
    assert running(world) == Epoch(1, START_MS + 10 * SPAN_MS + 7, 2, 0)


def test_the_genesis_sets_the_span():
    world = World(settings=(Setting("epoch_span_ms", 1_000),))
    world.checkpoint(step_ms=999)
    assert running(world).number == 0
    world.checkpoint(step_ms=1)
    assert running(world).number == 1


def test_what_ends_an_epoch_runs_once_and_sees_the_whole_of_it(monkeypatch):
    ended = []
    monkeypatch.setattr(
        execution,
        "EPOCH_ENDINGS",
        (lambda view, at, epoch: ended.append((at.height, epoch)),),
    )
    world = World()
    for _ in range(3):
        world.checkpoint(step_ms=SPAN_MS // 2)
    assert ended == [(2, Epoch(0, START_MS, 1, 2))]
