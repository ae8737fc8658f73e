"""Who may go on from what it knows, and who needs a checkpoint (DEC-A11, HZ-31)."""

import pytest

from blyand.rules.chain.trust import (
    Known,
    Pin,
    Refused,
    Start,
    check_pin,
    duration,
    parse_pin,
    start,
)

DAY = 86_400_000
GENESIS = Known(0, b"g" * 32, 0)
NEWEST = Known(7, b"n" * 32, 10 * DAY)


def begin(known, pin=None, now=0, *, vouched=False, decides=False):
    return start(known, pin, now, DAY, vouched=vouched, decides=decides)


def test_a_young_genesis_and_a_recent_checkpoint_are_trusted():
    assert begin(GENESIS, now=DAY) is Start.GO_ON
    assert begin(NEWEST, now=11 * DAY) is Start.GO_ON


def test_after_the_trust_span_a_checkpoint_is_asked_for():
    with pytest.raises(Refused, match="genesis of this network is 2 days old.*--check"):
        begin(GENESIS, now=2 * DAY)
    with pytest.raises(Refused, match="3 days old.*--checkpoint own.*7:6e6e"):
        begin(NEWEST, now=13 * DAY)


@pytest.mark.parametrize("known", [GENESIS, NEWEST])
@pytest.mark.parametrize("why", ["vouched", "decides"])
def test_the_operator_or_an_own_third_of_the_weight_is_enough(known, why):
    assert begin(known, now=99 * DAY, **{why: True}) is Start.GO_ON


def test_a_pin_ahead_is_joined_and_one_behind_is_compared():
    ahead = Pin(9, b"p" * 32)
    assert begin(NEWEST, ahead, now=99 * DAY) is Start.JOIN
    assert begin(GENESIS, ahead) is Start.JOIN
    assert begin(NEWEST, Pin(7, b"n" * 32), now=10 * DAY) is Start.GO_ON
    assert begin(NEWEST, Pin(3, b"x" * 32), now=10 * DAY) is Start.GO_ON
    with pytest.raises(Refused, match="another history"):
        begin(NEWEST, Pin(7, b"x" * 32), now=10 * DAY)
    with pytest.raises(Refused, match="3 days old"):
        begin(NEWEST, Pin(7, b"n" * 32), now=13 * DAY)


def test_an_old_pin_is_refused():
    check_pin(Pin(7, b"n" * 32), 10 * DAY, 11 * DAY, DAY)
    with pytest.raises(Refused, match="is 2 days old.*newer one"):
        check_pin(Pin(7, b"n" * 32), 10 * DAY, 12 * DAY, DAY)


def test_a_pin_is_spelled_as_it_is_shown():
    pin = Pin(12, bytes(range(32)))
    assert parse_pin(str(pin)) == pin == parse_pin(f" {pin} ")
    assert parse_pin(f"12:0x{pin.id.hex()}") == pin
    for wrong in ("", "12", pin.id.hex(), "0:" + pin.id.hex(), "12:ab", "x:y", "-1:00"):
        with pytest.raises(Refused, match="HEIGHT:HASH"):
            parse_pin(wrong)


def test_spans_are_said_as_people_do():
    spans = [(0, "0 seconds"), (90_000, "90 seconds"), (3 * DAY, "3 days")]
    for ms, said in spans:
        assert duration(ms) == said
    assert duration(DAY) == "24 hours" and duration(7_200_000) == "2 hours"
