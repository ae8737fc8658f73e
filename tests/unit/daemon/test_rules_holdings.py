"""What a node lists of its messages, and what a peer adds to it."""

from __future__ import annotations

from blyan_proto.checkpoint import Proposal, Vote
from blyan_proto.codec import decode, encode
from blyan_proto.holdings import Holdings
from blyand.rules.chain.holdings import holdings_of, lacking
from tests.unit.daemon.agreement_stand import HEIGHT, Stand, letter


def stand(*lines: str) -> Stand:
    made = Stand(None)
    for line in lines:
        made.do(line.split())
    return made


def sent(here: Stand, there: Stand, limit: int = 99) -> list[str]:
    """Return in short hand what `here` sends to `there`."""
    found = []
    for message in lacking(here.machine, holdings_of(there.machine), limit):
        said = message.statement
        if isinstance(message, Proposal):
            found.append(f"P {said.round} {letter(said.checkpoint)}")
        else:
            kind = "vc"[message.statement.stage - 1]
            voter = chr(message.voter[0])
            found.append(f"{kind} {said.round} {letter(said.checkpoint)} {voter}")
    return found


def test_what_lacks_is_sent_and_then_nothing() -> None:
    here = stand("start", "P 0 X", "v 0 X AB", "v 0 - C", "c 0 X A")
    there = stand("start", "v 0 X B")
    assert sent(here, there) == ["P 0 X", "c 0 X A", "v 0 X A", "v 0 - C"]
    for message in lacking(here.machine, holdings_of(there.machine), 99):
        if isinstance(message, Vote):
            there.machine.receive_vote(message)
        else:
            there.machine.receive_proposal(message, is_timely=True)
    assert sent(here, there) == sent(there, here) == []
    assert sent(here, stand("start", "v 0 X B"), 2) == ["P 0 X", "c 0 X A"]


def test_both_votes_of_a_liar_get_around() -> None:
    here, there = stand("start", "v 0 X A"), stand("start", "v 0 - A")
    assert sent(here, there) == ["v 0 X A"] and sent(there, here) == ["v 0 - A"]


def test_one_that_is_behind_hears_what_takes_it_on() -> None:
    here = stand("start", "c 0 - ABC", "time precommit 0", "v 1 X AB", "v 8 X D")
    assert here.machine.round == 1
    behind = stand("start", "c 0 - A")
    assert sent(here, behind) == [
        "v 8 X D",
        "v 1 X A",
        "v 1 X B",
        "c 0 - B",
        "c 0 - C",
    ]


def test_one_that_has_not_begun_hears_all() -> None:
    """It may have lost its memory, and asks for what it said itself."""
    here = stand("start", "c 0 X D", "c 0 - AB", "time precommit 0", "c 3 - AB")
    assert here.machine.round == 3
    told = sent(here, Stand(None))
    assert told == ["c 3 - A", "c 3 - B", "c 0 - A", "c 0 - B", "c 0 X D"]


def test_a_proof_that_is_awaited_is_asked_for() -> None:
    here = stand("v 0 X ABC", "c 4 - ABC", "P 4 X 0")
    there = stand("start", "c 4 - ABC", "P 4 X 0", "v 0 - C")
    assert here.machine.round == there.machine.round == 4
    assert sent(here, there) == ["v 0 X A", "v 0 X B", "v 0 X C"]


def test_another_height_is_not_answered() -> None:
    here = stand("start", "P 0 X")
    for height in (HEIGHT - 1, HEIGHT + 1):
        assert lacking(here.machine, Holdings(height, None, ()), 99) == []


def test_the_list_is_small_and_travels() -> None:
    here = stand("start", "P 0 X", "v 0 X AB", "v 0 Y A", "c 0 - ABC")
    listed = holdings_of(here.machine)
    raw = encode(listed)
    assert decode(Holdings, raw, 4096) == listed and len(raw) < 250


def test_one_far_behind_is_not_told_of_the_rounds_between() -> None:
    here = stand("start", "v 1 X A", "v 2 X A", "c 3 - AB", "c 4 - AB", "v 5 X AB")
    assert here.machine.round == 5
    told = sent(here, stand("start", "v 0 X A"))
    assert told == ["v 5 X A", "v 5 X B", "c 4 - A", "c 4 - B"]
