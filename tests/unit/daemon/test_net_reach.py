"""The reachability check between real hosts, and what follows from it."""

from __future__ import annotations

import pytest
import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.reach import PROTOCOL_ID, DialBack, Dialled, Outcome
from blyan_proto.protocols.result import ResultCode
from blyand.errors import ConfigFault, NoRoute, NotHere, Unavailable
from blyand.net.outside import announced
from blyand.protocols.reach import PER_PEER, ask, serve
from blyand.rules.net.reach import Reach
from tests.unit.daemon.relay_world import (
    CLOSED,
    ECHO,
    hosts,
    link,
    reaching,
    relayed,
    settings,
    until,
)


def port_of(host) -> int:
    return int(host.outside.listening[0].split("/")[4])


def test_a_node_is_reached_or_not_and_the_state_follows():
    async def main():
        async with hosts(settings(1), settings(2), settings(3, announce=(CLOSED,))) as (
            relay,
            open_one,
            hidden,
        ):
            async with reaching(relay, open_one, hidden) as checks:
                await link(open_one, relay)
                await link(hidden, relay)
                await until(lambda: checks[1].judgement.state is Reach.PUBLIC)
                await until(lambda: checks[2].judgement.state is Reach.PRIVATE)
                found = checks[1].judgement
                assert found.observed == "127.0.0.1"
                assert found.address == open_one.outside.listening[0]
                assert open_one.addresses[0].startswith(found.address)
                assert "tcp/9" in checks[2].judgement.reason
                # The relay volunteers, because it is public; the hidden one uses it.
                await until(lambda: relay.relay.serving)
                await until(lambda: hidden.circuits.places == (relay.peer_id,))
                assert await open_one.connect(hidden.addresses[0]) == hidden.peer_id
                assert not open_one.circuits.places and not hidden.relay.serving

    trio.run(main)


def test_when_a_relay_dies_another_takes_its_place():
    async def main():
        first, second, third = settings(1), settings(4), settings(5)
        hidden_settings, client_settings = settings(2, announce=(CLOSED,)), settings(3)
        async with hosts(hidden_settings, client_settings, third) as (
            hidden,
            client,
            spare,
        ):
            async with hosts(first, second) as relays, reaching(*relays, mode="serve"):
                async with reaching(hidden) as [own], reaching(spare, mode="serve"):
                    for relay in (*relays, spare):
                        await link(hidden, relay)
                        await link(client, relay)
                    await until(lambda: len(hidden.circuits.places) == 2)
                    own.wait_changed = (
                        trio.sleep_forever
                    )  # the loss itself must wake it
                    await own.check()
                    lost = next(
                        r for r in relays if r.peer_id in hidden.circuits.places
                    )
                    await lost._connections.close_all()
                    await until(
                        lambda: len(hidden.circuits.places) == 2
                        and lost.peer_id not in hidden.circuits.places
                    )
                    assert spare.peer_id in hidden.circuits.places
                    await client.connect(hidden.addresses[0])
                    async with client.request(hidden.peer_id, ECHO, 5) as stream:
                        await stream.send(b"still there")
                        assert await stream.receive(64, 5) == b"still there"

    trio.run(main)


def test_a_dial_back_needs_the_right_key_and_only_the_askers_ip():
    async def main():
        async with hosts(settings(1), settings(2), settings(3)) as (peer, asker, other):
            async with reaching(peer):
                await link(asker, peer)
                mine, theirs = port_of(asker), port_of(other)
                assert (await ask(asker, peer.peer_id, mine)).outcome is Outcome.REACHED
                # Somebody listens there, but it is not the asker: nothing is told.
                found = await ask(asker, peer.peer_id, theirs)
                assert found == Dialled(Outcome.FAILED, "127.0.0.1", False)
                assert len(other.peers()) == 0
                nothing = await ask(asker, peer.peer_id, 0)
                assert nothing.outcome is Outcome.NOT_TRIED
                assert nothing.observed == "127.0.0.1"

    trio.run(main)


def test_a_probe_leaves_nothing_behind():
    async def main():
        async with hosts(settings(1), settings(2)) as (one, other):
            await one.outside.probe(other.addresses[0], other.peer_id, 5)
            with pytest.raises(NoRoute):
                await one.outside.probe(other.addresses[0], one.peer_id, 5)
            with pytest.raises(Unavailable):
                await one.outside.probe(CLOSED, other.peer_id, 5)
            assert one.peers() == other.peers() == ()

    trio.run(main)


def test_dials_are_rationed_by_peer_and_nothing_is_dialled_through_a_relay():
    async def main():
        dialled = []

        async def probe(address, peer, deadline_s):
            dialled.append(address)

        async with hosts(settings(1), settings(2)) as (peer, asker):
            seen = {"ip": "192.0.2.8"}
            peer.handle(PROTOCOL_ID, serve(lambda _: seen["ip"], probe, lambda: True))
            await link(asker, peer)
            outcomes = [(await ask(asker, peer.peer_id, 7)).outcome for _ in range(6)]
            assert outcomes[: PER_PEER[0]] == [Outcome.REACHED] * PER_PEER[0]
            assert set(outcomes[PER_PEER[0] :]) == {Outcome.NOT_TRIED}
            assert set(dialled) == {"/ip4/192.0.2.8/tcp/7"}
            seen["ip"] = ""
            assert (await ask(asker, peer.peer_id, 7)) == Dialled(
                Outcome.NOT_TRIED, "", True
            )

    trio.run(main)


def test_an_asker_behind_a_relay_is_not_dialled():
    async def main():
        async with relayed() as (relay, hidden, client):
            async with reaching(client):
                await client.connect(hidden.addresses[0])
                await until(lambda: len(hidden.peers()) == 2)
                client.admit(hidden.peer_id)
                found = await ask(hidden, client.peer_id, 9)
                assert found == Dialled(Outcome.NOT_TRIED, "", False)

    trio.run(main)


@pytest.mark.parametrize(
    "lie",
    [
        Dialled(Outcome.REACHED, "example.org", False),
        Dialled(Outcome.REACHED, "", False),
        Dialled(Outcome.REACHED, "10.0.0.01", False),
        Dialled(Outcome.REACHED, "fe80::1%eth0", False),
        DialBack(7),
    ],
    ids=repr,
)
def test_answers_that_are_none_are_blamed(lie):
    async def main():
        blamed = []
        mine = settings(2, blame=lambda peer, error: blamed.append(peer))
        async with hosts(settings(1), mine) as (peer, asker):

            async def answer(stream):
                await stream.receive_message(DialBack, 64, 5)
                await stream.send_result(ResultCode.OK)
                await stream.send_message(lie)

            peer.handle(PROTOCOL_ID, answer)
            await link(asker, peer)
            with pytest.raises(ProtocolError):
                await ask(asker, peer.peer_id, 7)
            assert blamed == [peer.peer_id]

    trio.run(main)


def test_modes():
    async def main():
        async with hosts(settings(1), settings(2, announce=(CLOSED,))) as (peer, asker):
            async with reaching(peer, mode="use"), reaching(asker, mode="off") as [own]:
                await link(asker, peer)
                await until(lambda: own.judgement.state is Reach.PRIVATE)
                assert not own.relays() and not peer.relay.serving
                with pytest.raises(NotHere):
                    await asker.circuits.reserve(peer.peer_id)
                assert not asker.circuits.places

    trio.run(main)


def test_announced_addresses_are_literal():
    assert announced(["/ip4/192.0.2.1/tcp/4001"]) == ("/ip4/192.0.2.1/tcp/4001",)
    with pytest.raises(ConfigFault, match="net.announce"):
        announced(["/dns4/example.org/tcp/4001"])
