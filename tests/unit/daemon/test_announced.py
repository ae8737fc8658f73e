"""The order in which deltas were announced."""

from __future__ import annotations

from blyand.training import announced
from blyand.training.announced import Announced

AT = (b"run", 0, 1, b"base", 5)


def test_the_first_word_counts_until_another_is_said():
    order = Announced()
    assert not order.is_earlier(AT, b"a", b"b")
    for learner in (b"a", b"b", b"a"):
        order.note(AT, learner, b"delta of " + learner)
    assert order.is_earlier(AT, b"a", b"b") and not order.is_earlier(AT, b"b", b"a")
    assert order.is_earlier(AT, b"a", b"unheard")
    assert not order.is_earlier(AT, b"unheard", b"a")
    order.note(AT, b"a", b"another delta")
    assert order.is_earlier(AT, b"b", b"a"), "a place is not kept for what comes later"
    other_lease = (*AT[:4], 6)
    assert not order.is_earlier(other_lease, b"b", b"a")


def test_the_oldest_places_are_forgotten(monkeypatch):
    monkeypatch.setattr(announced, "MAX_STANDS", 3)
    order = Announced()
    places = [(b"run", round, 1, b"base", 5) for round in range(5)]
    for place in places:
        order.note(place, b"a", b"x")
    known = [order.is_earlier(place, b"a", b"b") for place in places]
    assert known == [False, False, True, True, True]
