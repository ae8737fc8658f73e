"""Standing and places: who is judged how, what is forgotten, what outlives a restart."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from blyan_proto.errors import BadSignature, DecodeError, LimitExceeded
from blyand.clock import ManualClock
from blyand.errors import Busy, LocalFault, TooSlow
from blyand.metrics import Metrics
from blyand.net import places, standing
from blyand.net.places import Places, origin_of
from blyand.net.standing import Standing
from blyand.rules.net import misbehaviour as rules
from blyand.rules.verdict import Ignore


class World:
    """A standing, its two clocks and what it does to connections."""

    def __init__(self, saved=None, wall_ms=1_700_000_000_000):
        self.now_s = 0.0
        self.clock = ManualClock(wall_ms)
        self.metrics = Metrics()
        self.severed: list[str] = []
        self.at: dict[str, str] = {}
        self.standing = Standing(
            "me",
            saved=saved,
            clock=self.clock,
            now_s=lambda: self.now_s,
            metrics=self.metrics,
        )
        self.standing.attach(self.severed.append, lambda peer: self.at.get(peer, ""))

    def pass_s(self, seconds):
        self.now_s += seconds
        self.clock.advance(int(seconds * 1000))

    def ban(self, peer):
        for _ in range(9):
            self.standing.blame(peer, BadSignature("forged"))
        assert self.standing.of(peer).state == "banned"


def test_origins():
    assert origin_of("10.1.2.3") == ("10.1.2.3", "10.1.2.0/24")
    assert origin_of("/ip4/10.1.2.3/tcp/4/p2p/x") == origin_of("10.1.2.3")
    assert origin_of("::ffff:10.1.2.3") == origin_of("10.1.2.3")
    assert origin_of("2001:db8:1:2:3::4") == (
        "2001:db8:1:2::/64",
        "2001:db8:1::/48",
    )
    assert origin_of("fe80::1%eth0") == origin_of("/ip6/fe80::1/tcp/1")
    relayed = "/ip4/10.1.2.3/tcp/4/p2p/r/p2p-circuit/p2p/x"
    for none in ("", "name", "/dns4/x/tcp/1", relayed):
        assert origin_of(none) is None


def test_a_peer_is_throttled_then_disconnected_then_banned():
    world = World()
    judge = world.standing
    seen = []
    for n in range(14):
        judge.blame("p", DecodeError(f"no. {n}"))
        seen.append((judge.of("p").state, len(world.severed)))
    assert seen[3] == ("good", 0) and seen[4] == ("throttled", 0)
    assert seen[8] == ("throttled", 1) and seen[12] == ("throttled", 5)
    assert seen[13] == ("banned", 6)
    told = judge.of("p")
    assert [r.sentence for r in told.reasons] == [f"no. {n}" for n in range(6, 14)]
    reason = told.reasons[0]
    assert (reason.time_ms, reason.error) == (world.clock.now_ms(), "DecodeError")
    assert told.banned_until == world.clock.now_ms() + rules.FIRST_BAN_S * 1000
    assert told.bans == 1 and [one.peer for one in judge.banned()] == ["p"]
    judge.blame("p", DecodeError("was under way"))
    assert judge.of("p") == told
    counted = world.metrics.snapshot()
    assert counted['blyan_net_misbehaviour{reason="DecodeError"}'] == 14
    assert counted['blyan_net_sanctions{step="ban"}'] == 1
    world.pass_s(rules.FIRST_BAN_S)
    assert judge.of("p").state == "throttled" and judge.may_connect("p", "")
    world.pass_s(rules.HALF_LIFE_S)
    assert judge.of("p").state == "good" and not judge.banned()
    assert judge.of("q").state == "good" and not judge.of("q").reasons


def test_only_the_peers_own_faults_count():
    world = World()
    for error in (
        Busy("x"),
        TooSlow("x"),
        LocalFault("x"),
        Ignore("x"),
        RuntimeError("a bug"),
    ):
        for _ in range(50):
            world.standing.blame("p", error)
            world.standing.blame_address("10.0.0.1", error)
    for _ in range(50):
        world.standing.blame("me", BadSignature("ours"))
        world.standing.blame("", BadSignature("nobody's"))
    assert world.standing.of("p").points == world.standing.of("me").points == 0
    assert world.standing.may_connect(None, "10.0.0.1") and not world.severed
    assert not world.metrics.snapshot()


def test_a_throttled_peer_gets_a_stream_a_second_and_no_gossip():
    world = World()
    judge = world.standing
    assert all(judge.may_serve("p") for _ in range(9)) and not judge.is_ignored("p")
    judge.blame("p", BadSignature("forged"))
    assert judge.is_ignored("p") and not judge.is_ignored("q")
    served = 0
    for _ in range(100):  # ten seconds
        served += judge.may_serve("p")
        world.pass_s(0.1)
    assert 9 <= served <= 10
    world.ban("p")
    world.pass_s(5)
    assert not judge.may_serve("p") and judge.may_serve("q")


def test_what_a_peer_says_cannot_steer_a_terminal_or_fill_memory():
    world = World()
    world.standing.blame("p", DecodeError("\x1b[2J\n" + "x" * 9999))
    (reason,) = world.standing.of("p").reasons
    assert reason.sentence.startswith("?[2J?x") and len(reason.sentence) == 200


def test_one_bad_peer_costs_its_address_nothing_fresh_keys_do():
    world = World()
    judge = world.standing
    home = "10.0.0.1"
    world.at = {f"key{n}": f"/ip4/{home}/tcp/{n + 1}" for n in range(20)}
    world.ban("key0")
    assert all(judge.may_connect(None, home) for _ in range(50))
    waits = []
    for n in range(1, 20):
        world.ban(f"key{n}")
        waited = 0
        while not judge.may_connect(None, home):
            world.pass_s(1)
            waited += 1
        waits.append(waited)
    assert waits == sorted(waits) and 20 <= waits[-1] <= rules.SPACE_LONGEST_S
    assert judge.may_connect("honest", home), "who is inside stays inside"
    assert judge.may_connect(None, "10.0.1.1"), "another group"
    world.pass_s(3600)
    assert all(judge.may_connect(None, home) for _ in range(9)), "an hour later"


def test_a_banned_key_that_knocks_for_ever_slows_its_address():
    world = World()
    world.standing.ban("p", 10**6, "by hand")
    assert not world.standing.may_connect("p", "")  # we do not dial it
    for _ in range(60):
        assert not world.standing.may_connect("p", "10.0.0.1")
    world.standing.may_connect(None, "10.0.0.1")
    assert not world.standing.may_connect(None, "10.0.0.1")


def test_strangers_without_a_key_slow_their_address_and_its_group():
    world = World()
    judge = world.standing
    for n in range(1, 11):
        for _ in range(10):
            judge.blame_address(f"10.0.0.{n}", LimitExceeded("handshakes"))
    assert judge.may_connect(None, "10.0.0.1")
    assert not judge.may_connect(None, "10.0.0.1")
    assert not judge.may_connect(None, "10.0.0.99"), "the group waits as well"
    assert judge.may_connect(None, "10.0.9.1")
    assert judge.may_connect(None, "a relay"), "an address that says nothing"


def test_a_live_ban_is_the_last_thing_to_be_forgotten(monkeypatch):
    monkeypatch.setattr(standing, "MAX_KEYS", 64)
    world = World()
    world.ban("short")
    world.standing.ban("long", 10**6, "by hand")
    for _ in range(4):
        world.standing.blame("guilty", DecodeError("often"))
    for n in range(2000):
        world.standing.blame(f"p{n}", DecodeError("once"))
        world.pass_s(0.01)
        assert len(world.standing._keys) <= 64
    assert {one.peer for one in world.standing.banned()} == {"short", "long"}
    assert world.standing.of("guilty").points > 35
    for n in range(200):
        world.standing.ban(f"b{n}", 1000 + n, "by hand")
    left = {one.peer for one in world.standing.banned()}
    assert len(world.standing._keys) <= 64 and {"long", "b199"} <= left


def test_places_are_bounded_and_the_worst_is_remembered(monkeypatch):
    monkeypatch.setattr(places, "MAX_PLACES", 64)
    kept = Places(lambda: 0.0)
    kept.charge("10.9.9.9", 500)
    for n in range(2000):
        kept.charge(f"10.{n // 250}.{n % 250}.1", 10)
        assert len(kept._places) <= 65
    assert kept.points("10.9.9.9") == 500


def test_bans_outlive_the_process_in_wall_time():
    old = World()
    old.ban("p")
    old.pass_s(rules.FIRST_BAN_S + 1)
    old.ban("p")
    old.standing.ban("q", 60, "by hand")
    old.standing.blame("r", DecodeError("once"))
    until_ms = old.standing.of("p").banned_until
    raw = old.standing.to_bytes()
    new = World(raw, old.clock.now_ms() + 61_000)
    told = new.standing.of("p")
    assert told.state == "banned" and told.bans == 2
    assert abs(told.banned_until - until_ms) <= 1
    assert told.reasons == old.standing.of("p").reasons
    assert new.standing.of("q").state == "good", "it ended while we were away"
    assert new.standing.of("r").points == 0
    new.pass_s(2 * rules.FIRST_BAN_S)
    assert new.standing.of("p").state == "throttled"
    new.ban("p")
    assert new.standing.of("p").bans == 3


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_bans_nobody(seed):
    world = World()
    world.ban("p")
    raw = bytearray(world.standing.to_bytes())
    source = random.Random(seed)
    for damaged in (b"", b"\x00", raw[: len(raw) // 2], source.randbytes(200)):
        assert World(bytes(damaged)).standing.banned() == ()


def test_unban_lets_a_peer_start_anew():
    world = World()
    assert not world.standing.unban("p")
    world.ban("p")
    assert world.standing.unban("p")
    assert world.standing.of("p") == World().standing.of("p")
    assert World(world.standing.to_bytes()).standing.banned() == ()


def test_changes_are_saved_soon_and_at_the_end():
    saved = []

    async def save(raw):
        await trio.sleep(0.1)
        saved.append(raw)

    async def main():
        judge = Standing(save=save, clock=ManualClock(10**12))
        async with trio.open_nursery() as nursery:
            await nursery.start(judge.run)
            judge.blame("p", DecodeError("no ban, nothing to save"))
            await trio.sleep(5)
            assert not saved
            for n in range(50):
                judge.ban(f"p{n}", 60, "by hand")
            await trio.sleep(0.5)
            assert len(saved) == 1
            judge.ban("late", 60, "by hand")
            await judge.flush()
            assert len(saved) == 2
            judge.unban("late")
            nursery.cancel_scope.cancel()
        assert len(saved) == 3
        last = Standing(saved=saved[-1], clock=ManualClock(10**12))
        assert len(last.banned()) == 50

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
