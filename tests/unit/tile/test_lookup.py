"""What is drafted, and when."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from blyan_tile.model.lookup import COMPARED, LONGEST_REST, Drafting, agreeing, draft

few = st.lists(st.integers(0, 3), max_size=60)  # of few kinds, so that some repeat


def plainly(tokens, most):
    """The same, one place after the other."""
    for count in (3, 2):
        for start in range(len(tokens) - count - 1, -1, -1):
            if tokens[start : start + count] == tokens[-count:]:
                all_tokens = list(tokens)
                for place in range(most):
                    all_tokens.append(all_tokens[start + count + place])
                return all_tokens[len(tokens) :]
    return []


@given(few, st.integers(0, 12))
def test_a_draft_is_what_followed_the_last_time(tokens, most):
    assert draft(np.array(tokens, np.int64), most) == plainly(tokens, most)


def test_three_alike_go_before_two_and_a_repetition_goes_on():
    assert draft(np.array([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]), 2) == [4, 9]
    assert draft(np.array([7, 1, 2, 1, 2]), 5) == [1, 2, 1, 2, 1]
    assert draft(np.array([1, 2, 3, 4]), 5) == []


@given(few, few)
def test_agreeing_is_the_common_beginning(drafted, chosen):
    count = agreeing(drafted, chosen)
    assert drafted[:count] == chosen[:count]
    assert count in (len(drafted), len(chosen)) or drafted[count] != chosen[count]


def decoded(drafting, steps, is_right, plain_s, row_s):
    """Run so many steps of the same time; return the length of each draft."""
    lengths = []
    for _ in range(steps):
        guess = drafting.draft(100)
        right = len(guess) if is_right else 0
        drafting.note(len(guess), right, plain_s + len(guess) * row_s)
        drafting.add(1)
        lengths.append(len(guess))
    return lengths


def repeating(most=7):
    return Drafting([1] * 10, 5000, most)


def test_a_first_step_is_plain_and_what_is_right_grows():
    assert decoded(repeating(), 5, True, 1.0, 0.1) == [0, 3, 6, 7, 7]
    lengths = decoded(repeating(), 500, True, 1.0, 0.1)
    assert lengths.count(0) == 1 + 499 // (COMPARED + 1)  # to know a step's time


def test_drafts_that_are_wrong_end_but_for_a_try_now_and_then():
    drafting = repeating()
    lengths = decoded(drafting, 3000, False, 1.0, 0.1)
    assert sum(1 for length in lengths if length) < 40
    assert lengths[-LONGEST_REST:].count(0) >= LONGEST_REST - 1
    assert (drafting.drafted, drafting.accepted) == (sum(lengths), 0)


def test_rows_that_cost_as_much_as_a_step_are_not_drafted_even_when_right():
    lengths = decoded(repeating(), 1000, True, 1.0, 1.5)
    assert sum(1 for length in lengths if length) < 20
    far = decoded(repeating(), 1000, True, 1.0, 0.0)  # a peer far away
    assert sum(1 for length in far if length) > 950


@given(few.filter(len), st.integers(0, 7), st.lists(st.booleans(), max_size=50))
def test_a_draft_is_never_longer_than_wanted(tokens, most, rights):
    drafting = Drafting(tokens, len(tokens) + len(rights), most)
    for count, is_right in enumerate(rights):
        guess = drafting.draft(len(rights) - count)
        assert len(guess) <= min(most, len(rights) - count)
        drafting.note(len(guess), len(guess) * is_right, 1.0 + 0.1 * len(guess))
        drafting.add(tokens[0])
