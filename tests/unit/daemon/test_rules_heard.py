"""What is kept of the messages of a height, and counted: values, rounds, bounds."""

from __future__ import annotations

from blyan_proto.checkpoint import VoteStage
from blyand.rules.chain.heard import AHEAD_KEPT, ROUNDS_BEHIND, Heard, Held, reached
from blyand.rules.chain.tally import Tally
from tests.unit.daemon.agreement_stand import SET, key, proposal, value, vote

PREVOTE, PRECOMMIT = VoteStage


def heard_at(round: int, pinned: int = -1) -> Heard:
    heard = Heard(SET)
    heard.move_to(round, pinned)
    return heard


def prevotes(heard: Heard, round: int, name: str, voters: str) -> list[bool]:
    return [heard.add_vote(vote(PREVOTE, round, name, v))[0] for v in voters]


def offer(heard: Heard, round: int, name: str, proof: int | None = None) -> bool:
    return heard.add_proposal(Held(proposal(round, name, proof), True))[0]


# Counting


def test_a_voter_counts_once_for_anything_and_once_for_each_value() -> None:
    tally = Tally(SET)
    for name in "XXY":
        tally.add(vote(PREVOTE, 0, name, "A"), lambda id: False)
    tally.add(vote(PREVOTE, 0, "X", "B"), lambda id: False)
    assert tally.weight == 2 and not tally.is_quorum
    tally.add(vote(PREVOTE, 0, "X", "C"), lambda id: False)
    assert tally.is_quorum and list(tally.chosen()) == [value("X")]
    assert not tally.has_quorum(value("Y"))
    assert [said.voter for said in tally.votes_for(value("X"))] == [*map(key, "ABC")]
    assert tally.values() == [value("X"), value("Y")]


def test_of_a_voter_two_values_count_and_those_that_are_wanted() -> None:
    tally = Tally(SET)
    given = [vote(PREVOTE, 0, name, "A") for name in "XYZW"]
    for made in given[:3]:
        tally.add(made, lambda id: False)
    assert tally.add(given[2], lambda id: False) == (False, given[0])
    assert tally.add(given[3], lambda id: id == value("W")) == (True, given[0])
    assert tally.values_of(key("A")) == 3 == len(tally)


def test_a_voter_is_forgotten_without_a_trace() -> None:
    tally = Tally(SET)
    for name, voter in ("XA", "YA", "XB", "XC"):
        tally.add(vote(PREVOTE, 0, name, voter), lambda id: False)
    tally.drop(key("A"))
    tally.drop(key("A"))
    assert tally.weight == 2 and not tally.has_quorum(value("X"))
    assert tally.values() == [value("X")] and len(tally) == 2
    tally.add(vote(PREVOTE, 0, "Z", "A"), lambda id: False)
    assert tally.weight == 3


# Rounds


def test_of_rounds_to_come_a_signer_keeps_its_highest_two() -> None:
    heard = heard_at(0)
    for round in (3, 9, 5):
        assert prevotes(heard, round, "X", "A") == [True]
    assert sorted(heard.rounds) == [5, 9], "3 made room"
    assert prevotes(heard, 4, "X", "A") == [False]
    assert prevotes(heard, 4, "X", "B") == [True], "others have room of their own"
    assert prevotes(heard, 9, "Y", "A") == [True], "the same round again"
    assert AHEAD_KEPT == 2


def test_the_current_round_and_those_before_are_not_counted_as_to_come() -> None:
    heard = heard_at(4)
    for round in (0, 1, 2, 3, 4, 5, 6):
        assert prevotes(heard, round, "X", "A") == [True]
    assert sorted(heard.rounds) == [*range(7)]


def test_old_rounds_go_but_for_the_proof_that_is_ours_or_awaited() -> None:
    heard = heard_at(0)
    prevotes(heard, 0, "X", "ABC")
    heard.move_to(1, 0)
    prevotes(heard, 1, "Y", "ABC")
    far = 1 + ROUNDS_BEHIND + 4 - (1 + ROUNDS_BEHIND) % 4  # A's turn
    heard.move_to(far, 0)
    assert list(heard.rounds) == [0], "what this node may propose again"
    assert prevotes(heard, 1, "Y", "A") == [False]
    assert offer(heard, far, "Y", 1)
    assert prevotes(heard, 1, "Y", "ABC") == [True] * 3 and heard.proves(b"Y" * 32, 1)
    assert prevotes(heard, 2, "Y", "A") == [False]
    heard.move_to(far + 1, -1)
    assert list(heard.rounds) == [far]


def test_a_liars_votes_do_not_hide_what_a_proof_needs() -> None:
    """Its first two values are taken; the one that a proposal is about counts still."""
    heard = heard_at(4)
    prevotes(heard, 0, "X", "C")
    prevotes(heard, 0, "Y", "C")
    assert prevotes(heard, 0, "Z", "C") == [False]
    assert offer(heard, 4, "Z", 0)
    assert prevotes(heard, 0, "Z", "CAB") == [True] * 3 and heard.proves(b"Z" * 32, 0)


# Proposals


def test_of_a_liars_proposals_two_are_kept_and_those_with_a_quorum() -> None:
    heard = heard_at(0)
    assert [offer(heard, 0, name) for name in "XYZWX"] == [
        True,
        True,
        False,
        False,
        False,
    ]
    prevotes(heard, 0, "Z", "ABC")
    assert offer(heard, 0, "Z") and not offer(heard, 0, "W")
    for voter in "ABC":
        heard.add_vote(vote(PRECOMMIT, 0, "W", voter))
    assert offer(heard, 0, "W") and not offer(heard, 0, "W", 0)
    assert heard.checkpoint_of(b"W" * 32) and not heard.checkpoint_of(b"V" * 32)
    assert (
        heard.deciding_round(b"W" * 32) == 0 and heard.deciding_round(b"Z" * 32) is None
    )


def test_where_a_third_is() -> None:
    assert reached({key("A"): 9}, SET, -1) == -1
    assert reached({key("A"): 9, key("B"): 4, key("C"): 4}, SET, -1) == 4
    assert reached({key("A"): 9, key("Z"): 9, key("C"): 2}, SET, -1) == 2


def test_a_late_message_does_not_take_its_signer_back() -> None:
    heard = heard_at(0)
    prevotes(heard, 9, "X", "AB")
    prevotes(heard, 3, "X", "AB")
    assert heard.round_reached() == 9
