"""The rules of the agreement one by one, by line of the algorithm; then all at random."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.checkpoint import VoteStage
from blyand.rules.chain.agreement import Agreement
from blyand.rules.chain.effects import (
    Cast,
    Decide,
    Effect,
    Evidence,
    Lock,
    Promises,
    Propose,
    Repropose,
)
from blyand.rules.chain.heard import AHEAD_KEPT, ROUNDS_AHEAD, ROUNDS_BEHIND
from tests.unit.daemon.agreement_stand import (
    HEIGHT,
    NAMES,
    SET,
    Stand,
    checkpoint,
    key,
    proposal,
    proposer_of,
    show,
    value,
    vote,
)

PREVOTE, PRECOMMIT = VoteStage

# X locked by everybody in round 0, decided by nobody; D is in round 1.
LOCKED = """
    start          -> wait propose 0
    P 0 X          -> validate X
    good X         -> prevote 0 X
    v 0 X AB       -> precommit 0 X
    c 0 - AB       -> wait precommit 0
    time precommit 0 -> wait propose 1
"""

SCRIPTS = {
    "11: whoever has a turn proposes, and waits like the others": (
        "A",
        "start -> propose 0, wait propose 0",
    ),
    "11: others wait": ("D", "start -> wait propose 0"),
    "22: a valid proposal is prevoted when the verdict is there": (
        "D",
        """
        start  -> wait propose 0
        P 0 X  -> validate X
        P 0 X  ->
        good X -> prevote 0 X
        good X ->
        """,
    ),
    "22: an invalid one gets nil": (
        "D",
        """
        start  -> wait propose 0
        P 0 X  -> validate X
        bad X  -> prevote 0 -
        """,
    ),
    "22: one that is out of time gets nil, whatever it holds": (
        "D",
        """
        start       -> wait propose 0
        P 0 X late  -> validate X, prevote 0 -
        """,
    ),
    "22: the lock forbids another one, without a look at it": (
        "D",
        LOCKED + "P 1 Y -> validate Y, prevote 1 -",
    ),
    "22: the lock allows its own, out of time as it may be": (
        "D",
        LOCKED + "P 1 X late -> prevote 1 X",
    ),
    "28: a proof from the lock's round or later opens it": (
        "D",
        LOCKED + """
        v 1 Y ABC   ->
        time propose 1 -> prevote 1 -, wait prevote 1
        time prevote 1 -> precommit 1 -
        c 1 - AB    -> wait precommit 1
        time precommit 1 -> wait propose 2
        P 2 Y 1     -> validate Y
        good Y      -> prevote 2 Y
        """,
    ),
    "28: a proof that is older than the lock does not": (
        "D",
        """
        start      -> wait propose 0
        v 0 X AB   ->
        time propose 0 -> prevote 0 -, wait prevote 0
        time prevote 0 -> precommit 0 -
        c 0 - AB   -> wait precommit 0
        time precommit 0 -> wait propose 1
        P 1 Y      -> validate Y
        good Y     -> prevote 1 Y
        v 1 Y AB   -> precommit 1 Y
        c 1 - AB   -> wait precommit 1
        time precommit 1 -> wait propose 2
        v 0 X C    ->
        P 2 X 0    -> validate X, prevote 2 -
        """,
    ),
    "28: without its proof a proposal waits, its time does not count": (
        "D",
        """
        start      -> wait propose 0
        c 0 - ABC  -> wait precommit 0
        time precommit 0 -> wait propose 1
        P 1 X 0 late -> validate X
        good X     ->
        v 0 X AB   ->
        v 0 X C    -> prevote 1 X
        """,
    ),
    "34, 61: a quorum for anything sets a time, then nil": (
        "D",
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        good X     -> prevote 0 X
        v 0 X A    ->
        v 0 - B    -> wait prevote 0
        v 0 Y C    ->
        time prevote 0 -> precommit 0 -
        """,
    ),
    "36: a quorum for a checkpoint locks and precommits it, once": (
        "D",
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        good X     -> prevote 0 X
        v 0 X AB   -> precommit 0 X
        v 0 X C    ->
        """,
    ),
    "36: not without a verdict of our own": (
        "D",
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        v 0 X ABC  ->
        time propose 0 -> prevote 0 -, wait prevote 0
        bad X      ->
        time prevote 0 -> precommit 0 -
        """,
    ),
    "36: after our precommit it is only kept for our turn": (
        "D",
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        v 0 X ABC  ->
        time propose 0 -> prevote 0 -, wait prevote 0
        time prevote 0 -> precommit 0 -
        good X     ->
        c 3 - AB   -> repropose 3 X 0, wait propose 3
        """,
    ),
    "36: of two proposals of a liar the one that a quorum took": (
        "D",
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        good X     -> prevote 0 X
        P 0 Y      -> evidence A, validate Y
        good Y     ->
        P 0 Z      ->
        v 0 Z ABC  -> wait prevote 0
        P 0 Z      -> validate Z
        good Z     -> precommit 0 Z
        """,
    ),
    "44: a quorum for nil is precommitted at once": (
        "D",
        """
        start      -> wait propose 0
        v 0 - AB   ->
        time propose 0 -> prevote 0 -, precommit 0 -
        """,
    ),
    "47, 65: a quorum of precommits for anything sets a time, then a new round": (
        "D",
        """
        start      -> wait propose 0
        c 0 X A    ->
        c 0 - BC   -> wait precommit 0
        time precommit 0 -> wait propose 1
        time precommit 0 ->
        """,
    ),
    "49: a quorum of precommits decides, at any step": (
        "D",
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        c 0 X AB   ->
        c 0 X C    -> decide 0 X
        good X     ->
        time propose 0 ->
        """,
    ),
    "49: in an earlier round as well": (
        "D",
        LOCKED + "c 0 X C -> \n c 0 X A -> evidence A, decide 0 X",
    ),
    "49: when the proposal comes last, of whatever round": (
        "D",
        """
        start      -> wait propose 0
        c 0 X ABC  -> wait precommit 0
        time precommit 0 -> wait propose 1
        P 1 X 0    -> decide 0 X
        """,
    ),
    "49: votes for nil decide nothing": (
        "D",
        "c 0 - AB -> wait propose 0\nc 0 - C -> wait precommit 0",
    ),
    "55: more than a third in a later round takes us there": (
        "D",
        """
        start      -> wait propose 0
        v 2 X A    ->
        c 2 - A    ->
        P 2 X      -> wait propose 2, validate X
        """,
    ),
    "55: those who are further count": (
        "D",
        """
        start      -> wait propose 0
        v 9 - A    ->
        v 4 - B    -> wait propose 4
        """,
    ),
    "57: without a proposal in time, nil": (
        "D",
        """
        start      -> wait propose 0
        time propose 0 -> prevote 0 -
        time propose 0 ->
        P 0 X      -> validate X
        good X     ->
        """,
    ),
    "a proof makes a re-proposal when it is our turn": (
        "D",
        LOCKED + """
        c 2 - AB  -> wait propose 2
        c 2 - C   -> wait precommit 2
        time precommit 2 -> repropose 3 X 0, wait propose 3
        """,
    ),
    "the proposal of round 0 begins a height": (
        "D",
        "P 0 X -> wait propose 0, validate X",
    ),
    "one other's vote does not begin a height, two do": (
        "D",
        "v 0 - A ->\nv 0 - B -> wait propose 0",
    ),
    "who signs two votes of one stage is named once": (
        "D",
        """
        start    -> wait propose 0
        v 0 X A  ->
        v 0 - A  -> evidence A
        v 0 Y A  ->
        c 0 X A  ->
        c 0 Y A  ->
        """,
    ),
    "a vote that conflicts counts for its own checkpoint": (
        "D",
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        good X     -> prevote 0 X
        v 0 - A    ->
        v 0 X A    -> evidence A
        v 0 X B    -> precommit 0 X
        """,
    ),
    "an observer follows, and signs nothing": (
        None,
        """
        start      -> wait propose 0
        P 0 X      -> validate X
        good X     ->
        v 0 X ABC  ->
        c 0 X ABC  -> decide 0 X
        """,
    ),
}


@pytest.mark.parametrize("rule", SCRIPTS)
def test_rule(rule: str) -> None:
    me, script = SCRIPTS[rule]
    Stand(me).play(script)


def test_one_checkpoint_under_two_valid_rounds_hides_no_offence() -> None:
    stand = Stand("D")
    stand.play("""
        P 2 X 0    ->
        P 2 X 1    ->
        P 2 Y      -> evidence C
        """)


def test_evidence_is_the_two_signed_messages() -> None:
    stand = Stand()
    one, other = vote(PREVOTE, 3, "X", "A"), vote(PREVOTE, 3, "-", "A")
    stand.machine.receive_vote(one)
    (evidence,) = stand.machine.receive_vote(other)
    assert evidence == Evidence(one, other)
    assert evidence.signer == key("A")
    two = [proposal(0, "X"), proposal(0, "X", proposer=key("A"))]
    for made in two:  # the same statement twice is no offence
        effects = stand.machine.receive_proposal(made, is_timely=True)
        assert not any(isinstance(effect, Evidence) for effect in effects)


def test_what_has_no_right_is_not_kept() -> None:
    stand = Stand()
    stand.play("start -> wait propose 0")
    strangers = vote(PREVOTE, 0, "X", "Z"), vote(PRECOMMIT, 5, "X", "Z")
    assert not any(stand.machine.receive_vote(made) for made in strangers)
    for made in (
        proposal(0, "X", proposer=key("B")),  # not B's turn
        proposal(1, "X", 1),  # a proof of its own round
        proposal(1, "X", 2),
        proposal(ROUNDS_AHEAD + 4, "X"),
    ):
        assert not stand.machine.receive_proposal(made, is_timely=True)
    assert not len(stand.machine.heard)


def test_more_than_a_third_at_a_later_height_is_told_once() -> None:
    machine = Stand().machine
    far = [
        vote(PREVOTE, 0, "X", "A", HEIGHT + 9),
        vote(PREVOTE, 1, "X", "A", HEIGHT + 9),
        vote(PREVOTE, 0, "X", "B", HEIGHT + 2),
        vote(PRECOMMIT, 0, "X", "B", HEIGHT + 2),
        vote(PREVOTE, 0, "X", "C", HEIGHT - 1),
        vote(PREVOTE, 0, "X", "C", HEIGHT + 3),
    ]
    told = [show(effect) for made in far for effect in machine.receive_vote(made)]
    assert told == [f"behind {HEIGHT + 2}", f"behind {HEIGHT + 3}"]
    assert not len(machine.heard)


def test_a_height_that_is_final_elsewhere_is_over() -> None:
    stand = Stand()
    stand.play("start -> wait propose 0\nv 0 - A ->")
    votes = tuple(vote(PRECOMMIT, 1, "X", name) for name in "ABC")
    final = Decide(checkpoint("X"), value("X") or b"", 1, votes)
    assert not stand.machine.conclude(final)
    stand.play("""
        time propose 0   ->
        P 0 Y            ->
        v 5 - ABC        ->
        c 1 X D          ->
        v 0 X A          -> evidence A
    """)
    assert len(stand.machine.precommits()) == 4
    other = tuple(vote(PRECOMMIT, 1, "Y", name) for name in "BCD")
    told = stand.machine.conclude(Decide(checkpoint("Y"), b"Y" * 32, 1, other))
    assert [show(effect) for effect in told] == [
        f"evidence {name}" for name in "BCD"
    ], "of a second final checkpoint: who signed both"


# Starting again


def lock(round: int, name: str, voters: str) -> Lock:
    votes = tuple(vote(PREVOTE, round, name, voter) for voter in voters)
    return Lock(round, checkpoint(name), votes)


def promised(*lines: str) -> dict[tuple[int, VoteStage], bytes | None]:
    """Return promised votes from lines like "v 0 X"."""
    stages = {"v": PREVOTE, "c": PRECOMMIT}
    split = [line.split() for line in lines]
    return {(int(round), stages[stage]): value(name) for stage, round, name in split}


def test_promised_votes_are_given_again_and_no_others() -> None:
    stand = Stand(promises=Promises(promised("v 0 X", "c 0 -", "v 1 -")))
    stand.play("""
        P 1 X       -> validate X
        good X      ->
        time propose 1 ->
        start       -> prevote 0 X, precommit 0 -, prevote 1 -
        start       ->
        v 1 - AB    -> precommit 1 -
        v 0 X ABC   ->
    """)


def test_a_lock_follows_from_the_promises_alone() -> None:
    """The database is lost, the intent log is not: X is unknown, and still locked."""
    stand = Stand(promises=Promises(promised("v 0 X", "c 0 X", "v 1 -", "c 1 -")))
    stand.play("""
        start      -> prevote 0 X, precommit 0 X, prevote 1 -, precommit 1 -
        c 1 - AB   -> wait precommit 1
        time precommit 1 -> wait propose 2
        P 2 Y      -> validate Y, prevote 2 -
        good Y     ->
        c 2 - ABC  -> wait precommit 2
        time precommit 2 -> propose 3, wait propose 3
        v 1 Y ABC  ->
        c 6 - AB   -> wait propose 6
        P 6 Y 1    -> prevote 6 Y
    """)
    assert stand.machine.locked == value("X") and stand.machine.locked_round == 0


def test_a_stored_lock_brings_the_checkpoint_and_its_proof_back() -> None:
    votes = promised("v 0 X", "c 0 X", "v 2 -", "c 2 -")
    stand = Stand(promises=Promises(votes, lock=lock(0, "X", "ABD")))
    stand.play("""
        start      -> prevote 0 X, precommit 0 X, prevote 2 -, precommit 2 -
        c 2 - AB   -> wait precommit 2
        time precommit 2 -> repropose 3 X 0, wait propose 3
        P 3 X 0    -> prevote 3 X
    """)


def test_a_lock_that_was_stored_before_its_promise_leads_to_it() -> None:
    promises = Promises(promised("v 0 X"), lock=lock(0, "X", "ABD"))
    stand = Stand(promises=promises)
    assert stand.machine.locked is None
    stand.play("start -> prevote 0 X, precommit 0 X")
    assert stand.machine.locked == value("X")


def test_a_proposal_is_made_once_a_round() -> None:
    stand = Stand("A", Promises(proposed=frozenset({0})))
    stand.play("""
        start      -> wait propose 0
        P 0 X      -> validate X
        good X     -> prevote 0 X
    """)
    stand = Stand("A", Promises(promised("v 3 -"), frozenset({0, 4})))
    stand.play("start -> prevote 3 -, wait propose 4")


def test_a_precommit_comes_with_the_proof_that_it_rests_on() -> None:
    stand = Stand()
    stand.do(["start"])
    stand.do(["P", "0", "X"])
    stand.do(["good", "X"])
    cast = stand.do(["v", "0", "X", "AC"])[0]
    assert isinstance(cast, Cast)
    assert cast.lock == lock(0, "X", "ACD")


# Anything in any order


class Ledger:
    """What a node promised, as its disk has it, and what it was told."""

    def __init__(self) -> None:
        self.votes: dict[tuple[int, VoteStage], bytes | None] = {}
        self.proposed: set[int] = set()
        self.lock: Lock | None = None
        self.prevotes: dict[tuple[int, bytes | None], set[bytes]] = {}

    def promises(self, with_lock: bool) -> Promises:
        kept = self.lock if with_lock else None
        return Promises(dict(self.votes), frozenset(self.proposed), kept)

    def note(self, words: list[str], me: str) -> None:
        if words[0] == "v":
            voters = {key(name) for name in words[3]}
            place = int(words[1]), value(words[2])
            self.prevotes.setdefault(place, set()).update(voters)

    def check(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Cast):
                self._check_cast(effect)
            elif isinstance(effect, (Propose, Repropose)):
                assert effect.round not in self.proposed, "proposes twice"
                self.proposed.add(effect.round)
            elif isinstance(effect, Decide):
                assert SET.is_quorum(len(effect.precommits))
                assert all(
                    said.statement.checkpoint == effect.id
                    and said.statement.round == effect.round
                    for said in effect.precommits
                )

    def _check_cast(self, cast: Cast) -> None:
        place, id = (cast.round, cast.stage), cast.checkpoint
        assert self.votes.setdefault(place, id) == id, "votes twice"
        if cast.stage is PREVOTE:
            self.prevotes.setdefault((cast.round, id), set()).add(key("D"))
        if id is None or cast.stage is PRECOMMIT and cast.lock is None:
            return  # nil, or given again
        if cast.stage is PRECOMMIT:
            self.lock = cast.lock
            assert self._is_proven(id, range(cast.round, cast.round + 1))
            return
        for (round, stage), locked in self.votes.items():
            if stage is PRECOMMIT and round < cast.round and locked not in (None, id):
                assert self._is_proven(id, range(round, cast.round)), "ignores its lock"

    def _is_proven(self, id: bytes, rounds: range) -> bool:
        return any(
            SET.is_quorum(len(self.prevotes.get((round, id), ()))) for round in rounds
        )


ROUND = st.sampled_from("0001112345") | st.integers(0, 2**32 - 1).map(str)
CHECKPOINT = st.sampled_from("XXY")
WORDS = st.one_of(
    st.tuples(st.just("P"), ROUND, CHECKPOINT),
    st.tuples(
        st.just("P"), ROUND, CHECKPOINT, st.sampled_from("0123") | st.just("late")
    ),
    st.tuples(
        st.sampled_from("vvc"),
        ROUND,
        st.sampled_from("XXY-"),
        st.sampled_from(["A", "BC", "ABC", "AC", "ABC"]),
    ),
    st.tuples(st.sampled_from(["good", "good", "bad"]), CHECKPOINT),
    st.tuples(
        st.just("time"),
        st.sampled_from(["propose", "prevote", "precommit"]),
        st.sampled_from("001123"),
    ),
    st.just(("start",)),
    st.sampled_from([("again",), ("again", "poor")]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=60))
def test_no_history_makes_it_sign_twice_or_forget_its_lock(
    history: list[tuple[str, ...]],
) -> None:
    """Restarts included, with the stored lock or without it."""
    ledger, stand = Ledger(), Stand("D")
    for words in history:
        if words[0] == "again":
            stand = Stand("D", ledger.promises(with_lock=len(words) == 1))
            continue
        if words[0] == "P" and stand.machine.round > 10_000:
            continue  # as the proposer of so late a round would: too slow for a test
        ledger.note(list(words), "D")
        before = stand.machine.round
        ledger.check(stand.do(list(words)))
        assert stand.machine.round >= before


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_memory_is_bounded_whatever_three_of_four_send(data: st.DataObject) -> None:
    """Far more than a third lies here, so that the round moves as they like."""
    machine = Agreement(HEIGHT, SET, proposer_of, key("D"))
    rounds = st.integers(0, 300) | st.just(2**32 - 1)
    letters = st.sampled_from("-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    stages = st.sampled_from([PREVOTE, PRECOMMIT])
    votes = st.tuples(stages, rounds, letters, st.sampled_from("ABC"))
    for stage, round, name, voter in data.draw(st.lists(votes, max_size=80)):
        for near in range(round, min(round + 4, 2**32)):
            machine.receive_vote(vote(stage, near, name, voter))
            if name != "-":
                made = proposal(near, name, near - 1 if near % 2 else None)
                machine.receive_proposal(made, is_timely=True)
    kept_rounds = ROUNDS_BEHIND + 2 + len(NAMES) * AHEAD_KEPT + 4
    assert len(machine.heard.rounds) <= kept_rounds
    for place in machine.heard.rounds.values():
        assert len(place.proposals) <= 4
        for tally in (place.prevotes, place.precommits):
            assert all(tally.values_of(key(name)) <= 8 for name in NAMES)
