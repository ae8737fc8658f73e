"""Scores and buckets: quiet peers stay at zero, only deeds of one's own cost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blyand.rules.net import score
from blyand.rules.net.bucket import Bucket
from blyand.rules.net.score import Scores, is_silent

GAPS = st.lists(st.tuples(st.sampled_from("fib"), st.floats(0, 5000)), max_size=40)


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = Bucket(rate=10, burst=100, now=0)
    assert bucket.take(100, 0) and not bucket.take(1, 0)
    assert not bucket.take(6, 0.5) and bucket.take(5, 0.5)
    assert not bucket.take(101, 1000) and bucket.take(100, 1000)
    assert not bucket.take(1, 999), "a clock that steps back gives nothing"


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 3)), max_size=50),
    st.floats(0.1, 50),
    st.floats(1, 100),
)
def test_a_bucket_never_gives_more_than_it_was_given(takes, rate, burst):
    bucket, now, given_away = Bucket(rate, burst, 0.0), 0.0, 0.0
    for amount, gap in takes:
        now += gap
        given_away += amount if bucket.take(amount, now) else 0.0
    assert given_away <= burst + rate * now + 1e-6


@settings(max_examples=50)
@given(GAPS)
def test_only_own_deeds_cost_and_all_is_forgiven(deeds):
    scores, now = Scores(), 0.0
    for deed, gap in deeds:
        now += gap
        {"f": scores.first, "i": scores.invalid, "b": scores.broken}[deed]("p", now)
        assert scores.of("another", now) == 0.0
    if all(deed == "f" for deed, _ in deeds):
        assert 0 <= scores.of("p", now) <= score.FIRST_WORTH * score.FIRST_CAP
    assert scores.of("p", now + 20 * score.HALF_LIFE_S) == 0.0


def test_what_it_takes():
    """A stranger: one invalid message ends the mesh, three end everything."""
    scores = Scores()
    assert scores.of("quiet", 1e9) == 0.0 >= score.MESH_FLOOR
    scores.invalid("p", 0)
    assert score.GOSSIP_FLOOR < scores.of("p", 0) < score.MESH_FLOOR
    scores.invalid("p", 0)
    scores.invalid("p", 0)
    assert scores.of("p", 0) < score.GRAYLIST
    scores.forgive("p")
    assert scores.of("p", 0) == 0
    for _ in range(1000):
        scores.first("good", 0)
    scores.invalid("good", 0)
    assert scores.of("good", 0) > score.MESH_FLOOR, "one slip after long service"
    for _ in range(4):
        scores.broken("unlucky", 0)
    assert scores.of("unlucky", 0) == 0.0
    for _ in range(6):
        scores.broken("unlucky", 0)
    assert scores.of("unlucky", 0) < score.GRAYLIST


def test_scores_are_bounded_and_debtors_stay():
    scores = Scores()
    for _ in range(5):
        scores.invalid("debtor", 0)
    for number in range(score.MAX_PEERS + 500):
        scores.first(number, 1)
    assert len(scores) == score.MAX_PEERS
    assert scores.of("debtor", 1) < score.GRAYLIST


def test_silence_needs_something_to_tell():
    assert not is_silent(could_tell=0, told=0, age_s=1e6)
    assert not is_silent(could_tell=1000, told=1, age_s=1e6)
    assert not is_silent(could_tell=1000, told=0, age_s=1)
    assert is_silent(could_tell=1000, told=0, age_s=100)
