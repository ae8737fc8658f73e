"""Who is tried for a blob: named ones first, nobody without end, nobody forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blyand.rules.net.candidates import MAX_GUESSES, Candidates

NAMES = st.lists(st.sampled_from([f"p{n}" for n in range(20)]), max_size=30)


def drained(candidates: Candidates, is_given: bool) -> list[str]:
    found = []
    while candidates.would_try(is_given):
        peer = candidates.next(is_given)
        assert peer is not None
        found.append(peer)
    assert candidates.next(is_given) is None
    return found


def test_named_ones_come_first_and_of_the_others_few_beside_a_donor():
    others = [f"p{n}" for n in range(50)]
    candidates = Candidates(["a", "b", "a"], ["b", *others])
    assert drained(candidates, True) == ["a", "b", *others[:MAX_GUESSES]]
    assert drained(candidates, False) == others[MAX_GUESSES:]
    candidates.add(["c", "a"])
    assert drained(candidates, True) == ["c"]
    assert not candidates.put_back()


def test_who_gave_way_is_tried_once_more():
    candidates = Candidates(["slow", "b"], [])
    assert drained(candidates, True) == ["slow", "b"]
    assert candidates.put_off("slow") and not candidates.put_off("slow")
    assert not candidates.would_try(False)
    assert candidates.put_back() and drained(candidates, True) == ["slow"]
    assert not candidates.put_off("slow") and not candidates.put_back()


@given(NAMES, NAMES, NAMES, st.booleans())
def test_everybody_is_tried_exactly_once(told, others, found, is_given):
    candidates = Candidates(told, others)
    tried = drained(candidates, is_given)
    candidates.add(found)
    tried += drained(candidates, False)
    assert sorted(tried) == sorted({*told, *others, *found})
