"""Who is asked for which leaves: simulated donors of all kinds, drawn by hypothesis."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.protocols.blobs import LEAVES_PER_REQUEST
from blyand.rules.net.swarm import (
    COPIES,
    LATE_S,
    MOST_BUSY,
    RANGES_IN_FLIGHT,
    Out,
    Range,
    Swarm,
)

RATE = LEAF_BYTES * 40.0  # an ordinary donor: 10 MiB/s


@dataclass
class Donor:
    """What one donor does; `fails_at`: the number of the leaf at which it does."""

    rate: float = RATE
    delay_s: float = 0.02
    fault: str = ""  # busy, lost, silent, false
    fails_at: int = 0
    given: int = 0
    waiting: list[Range] = field(default_factory=list)
    free_s: float = 0.0
    last_s: float = 0.0
    gone: bool = False
    stream: int = 0  # what was under way on an earlier one is lost


class Simulation:
    """A swarm and its donors; every leaf that a donor sends is an event."""

    def __init__(self, count: int, donors: dict[str, Donor]) -> None:
        self.count, self.donors = count, donors
        self.swarm = Swarm()
        self.events: list[tuple[float, int, str, int, int]] = []
        self.now, self._number = 0.0, 0
        self.kept: Counter[int] = Counter()
        self.sent = 0
        self.asked: Counter[int] = Counter()  # how often each leaf, now
        self.false = 0
        self.swarm.deal(range(count))
        for name in donors:
            self.swarm.join(name, 0.0)
            self.at(0.0, name, -1)

    def at(self, when: float, name: str, leaf: int) -> None:
        self._number += 1
        stream = self.donors[name].stream
        heapq.heappush(self.events, (when, self._number, name, leaf, stream))

    def run(self) -> None:
        """Run until the blob is here, or nothing more happens."""
        while self.events and not self.swarm.is_done:
            self.now, _, name, leaf, stream = heapq.heappop(self.events)
            assert self.now < 1e5, "it does not end"
            if self.donors[name].gone:
                continue
            if leaf >= 0 and stream == self.donors[name].stream:
                self.arrive(name, leaf)
            if not self.donors[name].gone:
                self.ask(name)
                if leaf < 0 and not self.swarm.is_done:
                    self.at(self.now + LATE_S, name, -1)

    def ask(self, name: str) -> None:
        donor, swarm = self.donors[name], self.swarm
        while (found := swarm.ask(name, self.now)) is not None:
            assert 1 <= found.count <= LEAVES_PER_REQUEST
            assert 0 <= found.first and found.first + found.count <= self.count
            donor.waiting.append(found)
            assert len(donor.waiting) <= RANGES_IN_FLIGHT
            begins_s = max(donor.free_s, self.now + donor.delay_s)
            for step in range(found.count):
                self.asked[found.first + step] += 1
                assert self.asked[found.first + step] <= COPIES
                begins_s += LEAF_BYTES / donor.rate
                self.at(begins_s, name, found.first + step)
            donor.free_s = begins_s

    def arrive(self, name: str, leaf: int) -> None:
        donor, swarm = self.donors[name], self.swarm
        if donor.fault and donor.given >= donor.fails_at:
            self.fail(name, donor, leaf)
            return
        donor.given += 1
        self.sent += 1
        assert swarm.owed(name)[0] == leaf
        self.settle(donor, leaf)
        if swarm.arrived(name, LEAF_BYTES, self.now):
            self.kept[leaf] += 1
            swarm.kept([leaf])

    def settle(self, donor: Donor, leaf: int) -> None:
        self.asked[leaf] -= 1
        if leaf == leaves_of(donor.waiting[0])[-1]:
            donor.waiting.pop(0)

    def fail(self, name: str, donor: Donor, leaf: int) -> None:
        swarm = self.swarm
        if donor.fault == "silent":
            if not donor.last_s:
                donor.last_s = self.now
                self.at(self.now + 16.0, name, leaf)
                return
            self.let_go(donor)
            swarm.drop(name, Out.SLOW)
            return
        if donor.fault == "false":
            self.settle(donor, leaf)
            if swarm.arrived(name, LEAF_BYTES, self.now):
                swarm.spoiled([leaf])
            self.false += 1
            self.let_go(donor)
            swarm.drop(name, Out.FALSE)
            return
        self.let_go(donor)
        donor.gone = False
        if donor.fault == "busy":
            again_s = swarm.busy(name, self.now)
        else:
            again_s = swarm.lost(name, donor.given > 0, self.now)
            donor.given = 0
        if again_s is None:
            donor.gone = True
        else:
            assert swarm.ask(name, self.now) is None and swarm.is_slack(name, self.now)
            self.at(again_s, name, -1)

    def let_go(self, donor: Donor) -> None:
        for found in donor.waiting:
            for leaf in leaves_of(found):
                if self.asked[leaf]:
                    self.asked[leaf] -= 1
        donor.waiting.clear()
        donor.stream += 1
        donor.free_s, donor.gone = 0.0, True


def leaves_of(found: Range) -> range:
    return range(found.first, found.first + found.count)


def donors() -> st.SearchStrategy[Donor]:
    return st.builds(
        Donor,
        rate=st.sampled_from([RATE / 50, RATE / 4, RATE, RATE * 10]),
        delay_s=st.sampled_from([0.0, 0.02, 0.3]),
        fault=st.sampled_from(["", "", "busy", "lost", "silent", "false"]),
        fails_at=st.integers(0, 40),
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 120), st.lists(donors(), min_size=1, max_size=5))
def test_whatever_donors_do_a_leaf_is_kept_once_or_nobody_is_left(count, drawn):
    world = Simulation(count, {f"d{i}": donor for i, donor in enumerate(drawn)})
    world.run()
    assert max(world.kept.values(), default=1) == 1
    if any(not donor.fault for donor in drawn):
        assert world.swarm.is_done
    if world.swarm.is_done:
        assert len(world.kept) == count
    else:
        assert set(world.swarm.out) == set(world.donors)
    assert world.false <= sum(donor.fault == "false" for donor in drawn)
    most_twice = len(drawn) * RANGES_IN_FLIGHT * LEAVES_PER_REQUEST
    assert world.sent <= count + most_twice


@pytest.mark.parametrize(
    "rates", [[1.0], [1.0, 1.0, 1.0], [1.0, 0.1], [1.0, 0.02, 3.0], [0.5, 0.01, 0.01]]
)
def test_donors_of_steady_rates_end_near_the_ideal(rates):
    """Not much later than if every byte of every donor were put to use."""
    count = 400
    world = Simulation(
        count, {f"d{i}": Donor(rate=RATE * r) for i, r in enumerate(rates)}
    )
    world.run()
    ideal_s = count * LEAF_BYTES / (RATE * sum(rates))
    assert world.swarm.is_done
    assert world.now <= 1.1 * ideal_s + 0.5
    assert world.sent <= count + (0 if len(set(rates)) == 1 else 32)


def test_a_donor_that_stops_in_the_middle_holds_nobody_up():
    stuck = Donor(fault="silent", fails_at=30)
    world = Simulation(200, {"good": Donor(), "stuck": stuck})
    world.run()
    assert world.swarm.is_done
    assert world.now < 200 * LEAF_BYTES / RATE + 3


def test_endless_busy_backs_off_and_ends():
    swarm = Swarm()
    swarm.deal(range(4))
    swarm.join("a", 0.0)
    now, waits = 0.0, []
    while (again_s := swarm.busy("a", now)) is not None:
        assert swarm.ask("a", again_s - 0.01) is None
        assert swarm.ask("a", again_s) == Range(0, 4)
        waits.append(again_s - now)
        now = again_s
    assert len(waits) == MOST_BUSY - 1 and waits == sorted(waits)
    assert swarm.out == {"a": Out.BUSY}


def test_two_ranges_are_asked_at_once_and_grow_with_the_rate():
    swarm = Swarm()
    swarm.deal(range(100))
    swarm.join("a", 0.0)
    assert swarm.ask("a", 0.0) == Range(0, 4)
    assert swarm.ask("a", 0.0) == Range(4, 4)
    assert swarm.ask("a", 0.0) is None
    for _ in range(4):
        assert swarm.arrived("a", LEAF_BYTES, 0.1)
    assert swarm.ask("a", 0.1) == Range(8, LEAVES_PER_REQUEST)
    slow = Swarm()
    slow.deal(range(100))
    slow.join("a", 0.0)
    slow.ask("a", 0.0)
    for number in range(4):
        slow.arrived("a", LEAF_BYTES, number + 1.0)
    assert slow.ask("a", 4.0) == Range(4, 1)


def test_ranges_do_not_run_over_what_is_here():
    swarm = Swarm()
    swarm.deal([0, 1, 5, 6, 7, 9])
    swarm.join("a", 0.0)
    found = []
    while (asked := swarm.ask("a", 0.0)) is not None:
        found.append(asked)
        for _ in range(asked.count):
            swarm.arrived("a", LEAF_BYTES, math.nextafter(0.0, 1.0))
    assert found == [Range(0, 2), Range(5, 3), Range(9, 1)]
