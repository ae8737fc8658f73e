"""Places and turns for uploads: nobody gets more than its share, nothing is lost."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from blyand.rules.net.uploads import (
    LEAST_SHARE,
    PEERS,
    PLACES_PER_PEER,
    Pace,
    Places,
    UploadLimits,
)

LEAF = 256 * 1024


def test_a_peer_alone_has_many_places_and_gives_way_to_others():
    places = Places(UploadLimits(places=12))
    assert sum(places.take("a") for _ in range(20)) == PLACES_PER_PEER
    assert sum(places.take("b") for _ in range(20)) == 12 - PLACES_PER_PEER
    for _ in range(PLACES_PER_PEER):
        places.free("a")
    assert sum(places.take("b") for _ in range(20)) == 4  # alone again: up to 8
    assert sum(places.take("a") for _ in range(20)) == 4
    places.free("b")
    assert not places.take("b")  # half of twelve is six
    assert places.take("a") and not places.take("a")


def test_a_small_rate_serves_fewer_so_that_each_gets_something():
    assert Places(UploadLimits(32, rate=4 * LEAST_SHARE)).total == 4
    assert Places(UploadLimits(32, rate=1)).total == 1
    assert Places(UploadLimits(32, rate=1 << 40)).total == 32
    thin = Places(UploadLimits(32, peer_rate=2 * LEAST_SHARE))
    assert [thin.take("a") for _ in range(3)] == [True, True, False]


@given(st.lists(st.sampled_from("abcde"), max_size=200), st.integers(1, 20))
def test_places_are_never_more_than_there_are(asked, total):
    places, held = Places(UploadLimits(places=total)), Counter()
    for number, peer in enumerate(asked):
        if places.take(peer):
            held[peer] += 1
        assert places.taken == held.total() <= total
        assert max(held.values(), default=0) <= PLACES_PER_PEER
        if number % 3 == 2 and held.total():
            (one, _), *_ = held.most_common(1)
            held[one] -= 1
            places.free(one)


def drive(limits: UploadLimits, streams: dict[str, int], until_s: float) -> Counter:
    """Let every stream of every peer want a leaf all the time; count bytes by peer."""
    pace, now, sent = Pace(limits, 0.0), 0.0, Counter()
    waiting = [
        pace.queue(peer, LEAF, now)
        for peer, count in streams.items()
        for _ in range(count)
    ]
    while now < until_s:
        waits = {ticket: pace.wait_s(ticket, now) for ticket in waiting}
        ready = [ticket for ticket, wait_s in waits.items() if wait_s <= 1e-9]
        if not ready:
            soonest = min(waits.values())
            assert soonest < math.inf, "nobody's turn"
            now += soonest
            continue
        ticket = ready[0]
        waiting.remove(ticket)
        pace.leave(ticket, now, sent=True)
        sent[ticket.peer] += ticket.size
        waiting.append(pace.queue(ticket.peer, LEAF, now))
    return sent


def test_the_rate_holds_and_streams_buy_no_share():
    rate = 10 * LEAF
    sent = drive(UploadLimits(rate=rate), {"many": 7, "one": 1, "two": 2}, 20.0)
    assert 0.95 <= sent.total() / (rate * 20) <= 1.1
    assert max(sent.values()) - min(sent.values()) <= 8 * LEAF


def test_a_peer_at_its_own_limit_leaves_the_rest_to_others():
    limits = UploadLimits(rate=10 * LEAF, peer_rate=3 * LEAF)
    sent = drive(limits, {"a": 2, "b": 1}, 20.0)
    assert all(0.9 <= sent[peer] / (3 * LEAF * 20) <= 1.1 for peer in "ab")
    both = drive(UploadLimits(peer_rate=3 * LEAF), {"a": 2, "b": 1}, 20.0)
    assert all(0.9 <= both[peer] / (3 * LEAF * 20) <= 1.1 for peer in "ab")


def test_who_was_away_gets_no_credit_for_it():
    limits, now = UploadLimits(rate=LEAF), 0.0
    pace = Pace(limits, now)
    for _ in range(100):
        ticket = pace.queue("busy", LEAF, now)
        now += pace.wait_s(ticket, now)
        pace.leave(ticket, now, sent=True)
    late = [pace.queue("late", LEAF, now) for _ in range(3)]
    busy = pace.queue("busy", LEAF, now)
    assert late[0].start <= busy.start < late[2].start


def test_a_piece_that_was_given_up_holds_nobody_up():
    pace = Pace(UploadLimits(rate=LEAF), 0.0)
    first, second = pace.queue("a", LEAF, 0.0), pace.queue("b", LEAF, 0.0)
    assert pace.wait_s(second, 0.0) == math.inf
    pace.leave(first, 0.0, sent=False)
    assert pace.wait_s(second, 0.0) == 0.0


def test_peers_are_forgotten():
    pace, now = Pace(UploadLimits(rate=1 << 40, peer_rate=1 << 40), 0.0), 0.0
    for number in range(3 * PEERS):
        ticket = pace.queue(f"p{number}", 10, now)
        pace.leave(ticket, now, sent=True)
        now += 1.0
    assert len(pace._finish) <= PEERS + 1 and len(pace._purses) <= PEERS + 1
