"""Who did what in a round, counted out of its updates."""

from types import SimpleNamespace

from blyan_proto.constants import PPM
from blyan_proto.types import Role, bitmap
from blyan_tile.create import model_of
from blyan_tile.layout import layout_of
from blyand.rules.records import Schedule, Seat
from blyand.store.rounds import PARTS, Led, Part, Takeover
from blyand.training.tally import tally

LAYOUT = layout_of(model_of("tiny", "m"))
FAST, SLOW, PASSIVE = (bytes([n]) * 20 for n in (1, 2, 3))
EXPERT = LAYOUT.group_named("layer0.expert0").index


def seat(account, groups, roles=Role.LEARN):
    held = bitmap(groups, len(LAYOUT.groups))
    return Seat(account, bytes(33), roles, 1, held)


def update(group, *listed, rank=0, author=FAST):
    parts = [
        SimpleNamespace(learner=who, tokens=tokens, clip_ppm=clip)
        for who, tokens, clip in listed
    ]
    content = SimpleNamespace(group=group, rank=rank, contributions=parts)
    header = SimpleNamespace(account=author)
    return SimpleNamespace(content=content, header=header, id=bytes([group]) * 32)


def schedule(*seats):
    return Schedule(bytes(32), 0, 1, bytes(32), seats)


def test_late_is_who_has_a_seat_and_is_not_listed_where_all_train():
    every = range(len(LAYOUT.groups))
    seats = schedule(seat(FAST, every), seat(SLOW, every), seat(PASSIVE, every, 0))
    made = [
        update(1, (FAST, 100, PPM)),
        update(0, (FAST, 90, PPM), (SLOW, 40, PPM // 2), rank=1, author=SLOW),
        update(EXPERT, (FAST, 100, PPM)),  # few tokens reached it at SLOW's
    ]
    counted = tally(made, seats, LAYOUT)
    assert counted.parts == (Part(SLOW, 40, 1, 1, 1), Part(FAST, 100, 3, 0, 0))
    assert counted.learners == 2 and counted.tokens == 140
    assert counted.contributions == 4
    assert counted.primaries == (Led(FAST, 2), Led(SLOW, 1))
    assert counted.takeovers == (Takeover(0, 1, SLOW),)
    assert [one.group for one in counted.moves.moved] == [0, 1, EXPERT]


def test_of_many_learners_those_that_missed_most_are_named():
    seats = [seat(n.to_bytes(20, "big"), [0]) for n in range(PARTS + 9)]
    late = seats[-1].account
    listed = [(one.account, 5, PPM) for one in seats[:-1]]
    counted = tally([update(0, *listed)], schedule(*seats), LAYOUT)
    assert counted.learners == PARTS + 9 and len(counted.parts) == PARTS
    assert counted.parts[0].account == late


def test_without_a_schedule_nobody_was_expected():
    counted = tally([update(0, (FAST, 5, PPM))], None, None)
    assert counted.parts == (Part(FAST, 5, 1, 0, 0),)
