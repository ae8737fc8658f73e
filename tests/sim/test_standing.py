"""Hours of honest and hostile peers around one judge, in virtual time, seeded."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from blyan_proto.errors import BadSignature, DecodeError, LimitExceeded
from blyand.clock import ManualClock
from blyand.errors import Busy, TooSlow
from blyand.net.standing import Standing

HOURS = 3
NAT = "198.51.100.7"


@pytest.mark.parametrize("seed", range(2))
def test_hours_of_attack_beside_honest_peers(seed):
    """Honest peers, half of them behind the address of an attacker, are never banned;
    an attacker with a fresh key for every ban soon gets less than one key a minute."""
    source = random.Random(seed)
    banned: dict[str, Counter[int]] = {}  # address -> hour -> keys
    waited: list[float] = []
    until_s = HOURS * 3600.0

    async def main() -> None:
        judge = Standing("me", clock=ManualClock(10**12))
        at: dict[str, str] = {}
        gone: set[str] = set()
        judge.attach(gone.add, lambda peer: at.get(peer, ""))

        async def honest(peer: str, address: str) -> None:
            """It comes and goes, is slow, and errs every two minutes at most."""
            at[peer] = address
            while trio.current_time() < until_s:
                began = trio.current_time()
                while not judge.may_connect(None, address):
                    await trio.sleep(source.uniform(0.5, 1.5))
                waited.append(trio.current_time() - began)
                assert judge.may_connect(peer, address), f"seed {seed}"
                for _ in range(source.randrange(1, 20)):
                    await trio.sleep(source.uniform(120, 400))
                    judge.blame(peer, source.choice([DecodeError, Busy, TooSlow])("x"))
                    assert judge.of(peer).state != "banned", f"seed {seed}"
                assert peer not in gone, f"seed {seed}: it was disconnected"

        async def hostile(name: str, address: str, fault: type[Exception]) -> None:
            """It breaks a format each second, and changes its key when banned."""
            number = 0
            counts = banned.setdefault(address, Counter())
            while trio.current_time() < until_s:
                peer = f"{name} {number}"
                if judge.may_connect(None, address) and judge.may_connect(
                    peer, address
                ):
                    at[peer] = address
                    gone.discard(peer)
                    while peer not in gone:
                        await trio.sleep(1)
                        if judge.may_serve(peer):
                            judge.blame(peer, fault("x"))
                    if judge.of(peer).state == "banned":
                        counts[int(trio.current_time() // 3600)] += 1
                        number += 1
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(honest, f"home {n}", NAT)
                nursery.start_soon(honest, f"alone {n}", f"203.0.113.{n}")
            nursery.start_soon(hostile, "forger", NAT, BadSignature)
            nursery.start_soon(hostile, "flood", "192.0.2.1", LimitExceeded)
        assert all(judge.of(f"alone {n}").bans == 0 for n in range(5))

    trio.run(main, clock=MockClock(autojump_threshold=0))
    for address, counts in banned.items():
        assert counts[0] > 30, (seed, address, counts)
        assert all(counts[hour] < 60 for hour in range(1, HOURS)), (seed, counts)
    assert max(waited) < 900 and sorted(waited)[len(waited) // 2] < 60, f"seed {seed}"
