"""The genesis: its id is everything in it, and it is understood whole or not at all."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from blyan_proto.codec import decode, encode, from_plain, to_plain
from blyan_proto.errors import LimitExceeded
from blyan_proto.genesis import (
    DEVNET,
    MAX_GENESIS_BYTES,
    Balance,
    Genesis,
    Parameters,
    Setting,
)
from tests.fuzz.mutate import cuts, flips
from tests.fuzz.targets import TARGETS
from tests.strategies import most_bytes
from tests.vectors import make_proto as made

GOLDEN = json.loads((Path(made.HERE) / "blocks.json").read_text())["genesis"]


def test_golden_bytes_both_ways():
    genesis = decode(Genesis, bytes.fromhex(GOLDEN["raw"]), MAX_GENESIS_BYTES)
    assert genesis == made.GENESIS and genesis.id.hex() == GOLDEN["id"]
    assert encode(genesis).hex() == GOLDEN["raw"]
    assert from_plain(Genesis, GOLDEN["plain"]) == genesis
    assert to_plain(genesis) == GOLDEN["plain"]


def test_cuts_and_changed_bits_fail_cleanly_or_name_another_network():
    target, raw = TARGETS["genesis"], encode(made.GENESIS)
    assert not any(target.check(wrong) for wrong in cuts(raw))
    for wrong in flips(raw):
        target.check(wrong)


def test_every_parameter_is_in_the_id():
    ids = {made.GENESIS.id}
    for field in fields(Parameters):
        changed = replace(DEVNET, **{field.name: getattr(DEVNET, field.name) + 1})
        ids.add(replace(made.GENESIS, parameters=changed).id)
    ids.add(replace(made.GENESIS, salt=bytes(32)).id)
    ids.add(replace(made.GENESIS, name="other").id)
    assert len(ids) == len(fields(Parameters)) + 3


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"version": 2}, "version 2"),
        ({"settings": (Setting("unheard", 1),)}, "does not know 'unheard'"),
        ({"settings": (Setting("b", 1), Setting("a", 1))}, "ascending"),
        ({"settings": (Setting("a", 1), Setting("a", 2))}, "distinct"),
        ({"balances": (Balance(bytes(20), 1),) * 2}, "two balances"),
        ({"participants": made.GENESIS.participants * 2}, "two registrations"),
    ],
)
def test_what_a_genesis_cannot_say(changed, reason):
    with pytest.raises(ValueError, match=reason):
        replace(made.GENESIS, **changed)


def test_a_genesis_needs_a_validator_and_a_participant():
    for empty in ("validators", "participants"):
        with pytest.raises(LimitExceeded, match=empty):
            encode(replace(made.GENESIS, **{empty: ()}))


def test_the_largest_genesis_fits_its_limit():
    assert most_bytes(Genesis) <= MAX_GENESIS_BYTES
