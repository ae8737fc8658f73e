"""Every guard against what it guards from: our host lives, libp2p's own does not.

A test against stock that begins to pass means that upstream mended it: then the guard
can go.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from blyan_proto.signing import SigningKey
from blyan_proto.topics import BLOCK
from blyand.net.host import HostSettings, open_host
from tests.unit.daemon.offences import (
    INBOUND,
    LIVES,
    OFFENCES,
    RAISES,
    STALLS,
    Field,
    play_all,
    stranger,
    until,
)

NETWORK = b"\x07" * 32
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ended():
    """What became of hosts after each offence: (of ours, of stock ones)."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.unit.daemon.offences"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as theirs:
        ours = play_all(play_against_ours)
        output, _ = theirs.communicate()
    return ours, json.loads(output)


async def play_against_ours(offence):
    async def raises(stream):
        raise RuntimeError("a bug")

    async def stalls(stream):
        await trio.sleep_forever()

    async def check(peer, raw):
        raise RuntimeError("a bug")

    poison = []
    settings = HostSettings(
        SigningKey(os.urandom(32)),
        NETWORK,
        max_connections=INBOUND,
        poison=lambda *what: poison.append(what),
    )
    async with open_host(settings) as host, stranger() as attacker:
        host.handle(RAISES, raises, before_hello=True)
        host.handle(STALLS, stalls, before_hello=True, deadline_s=None)
        await host.gossip.listen(BLOCK, check)
        topic = BLOCK.on(NETWORK)
        field = Field(host._libp2p, None, attacker, topic, patience_s=20)
        await field.dial(attacker)
        await offence(field)
        await field.assert_serves()
        if offence is OFFENCES["check_raises"]:
            await until(lambda: bool(poison))
        assert len(poison) == (offence is OFFENCES["check_raises"])


# Ours has no part of the stock router whose heartbeat could raise.
@pytest.mark.parametrize("name", sorted(OFFENCES.keys() - {"heartbeat_raises"}))
def test_our_host_lives(ended, name):
    ours, _ = ended
    assert ours[name] == LIVES


@pytest.mark.parametrize("name", OFFENCES)
@pytest.mark.xfail(strict=True, reason="libp2p 0.8.1 lets itself be used")
def test_a_stock_host_lives(ended, name):
    _, theirs = ended
    assert theirs[name] == LIVES
