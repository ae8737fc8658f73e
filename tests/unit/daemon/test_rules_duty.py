"""Validators' duties: counted from carried votes, the same for everybody."""

from __future__ import annotations

from blyan_proto.constants import PPM
from blyan_proto.signing import SigningKey
from blyan_proto.validators import Validator
from blyand.rules.economy import duty
from blyand.rules.economy.reward import scale, validator
from blyand.rules.economy.statement import Duty
from tests.unit.daemon.chain_world import World, key, some


def network(count=4):
    keys = [key(index) for index in range(count)]
    founders = tuple(Validator(k.public, 1, some(k.public).randbytes(32)) for k in keys)
    return World(nodes=count, validators=founders)


def counted(world):
    return {one.key: one for one in duty.running(world.view)}


def test_the_genesis_owes_no_votes():
    world = network()
    world.checkpoint()
    assert not duty.running(world.view)


def test_votes_count_once_their_successor_carries_them():
    world = network()
    a, b, c, d = world.keys
    world.checkpoint()
    world.checkpoint(signers=(a, b, c), proposer=b)
    world.checkpoint(signers=(a, b), proposer=b)
    world.checkpoint(signers=(a, b, c, d), proposer=a)
    assert counted(world) == {
        a.public: Duty(a.public, a.account, 3, 3, 1, 4, 4),
        b.public: Duty(b.public, b.account, 3, 3, 2, 8, 5),
        c.public: Duty(c.public, c.account, 3, 2, 0, 0, 0),
        d.public: Duty(d.public, d.account, 3, 1, 0, 0, 0),
    }


def test_a_stranger_among_the_signers_counts_for_nothing():
    world = network(2)
    stranger = SigningKey(bytes([7]) * 32)
    world.checkpoint()
    world.checkpoint(signers=(*world.keys, stranger))
    assert set(counted(world)) == {k.public for k in world.keys}
    assert counted(world)[world.keys[0].public].carried == 2


def test_uptime_is_what_one_signed_times_what_one_carried():
    def uptime(*numbers):
        return duty.uptime_ppm(Duty(bytes(33), bytes(20), *numbers))

    assert uptime(10, 10, 0, 0, 0) == PPM
    assert uptime(10, 5, 0, 0, 0) == PPM // 2
    assert uptime(10, 10, 2, 8, 6) == 750_000
    assert uptime(10, 5, 2, 8, 4) == 250_000
    assert uptime(0, 0, 1, 4, 4) == 0


def test_leaving_out_a_vote_costs_its_proposer_more_than_it_gives():
    """A proposer that always drops one of seven others' votes, in an epoch of 70."""

    def paid(duties):
        worth = [
            validator(
                10**9,
                one.signed,
                70,
                duty.uptime_ppm(one),
                is_fast=False,
                is_faultless=True,
            )
            for one in duties
        ]
        return scale(worth, 10**9)

    honest = [Duty(bytes(33), bytes(20), 70, 70, 10, 70, 70)] * 7
    greedy = [Duty(bytes(33), bytes(20), 70, 70, 10, 70, 60)]
    robbed = [Duty(bytes(33), bytes(20), 70, 60, 10, 70, 70)]
    assert paid(greedy + robbed + honest[:5])[0] < paid(honest)[0]
