"""Circuits through a relay: three real hosts, and those who abuse one."""

from __future__ import annotations

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage

from blyan_proto.errors import DecodeError
from blyand.errors import Busy, NoRoute, NotHere
from blyand.net.address import may_dial, parse, parse_circuit
from blyand.net.guard import circuit
from blyand.net.guard.circuit import HOP, STOP
from blyand.net.identity import parse_peer_id
from blyand.rules.net.relay import RelayLimits
from tests.unit.daemon.relay_world import (
    CLOSED,
    ECHO,
    hosts,
    link,
    relayed,
    settings,
    until,
)


async def exchange(client, peer, size=1 << 20):
    async with client.request(peer, ECHO, 20) as stream:
        await stream.send(bytes(size))
        await stream.close_write()
        return len(await stream.receive(size, 20)) == size


async def raw_stream(host, peer, protocol):
    connection = host._connections.live(parse_peer_id(peer))[0]
    return await host._raw.open_on(connection, protocol, 5)


def test_circuit_addresses():
    relay, peer = "16Uiu2HAkrelay", "16Uiu2HAkpeer"
    text = f"/ip4/192.0.2.1/tcp/4001/p2p/{relay}/p2p-circuit"
    assert parse_circuit(text) == (parse(f"/ip4/192.0.2.1/tcp/4001/p2p/{relay}"), None)
    assert parse_circuit(f"{text}/p2p/{peer}").peer == peer
    assert parse_circuit(f"{text}/p2p/{peer}").text == text
    assert may_dial(parse_circuit(text).relay, parse("/ip4/192.0.2.9/tcp/1")) is False
    for wrong in (
        f"/ip4/192.0.2.1/tcp/4001/p2p/{relay}",
        "/ip4/192.0.2.1/tcp/4001/p2p-circuit",
        f"/p2p/{relay}/p2p-circuit",
        f"/dns4/a.example/tcp/1/p2p/{relay}/p2p-circuit",
        f"{text}/p2p/",
        f"{text}/",
        f"{text}x",
        f"{text}/p2p/{relay}",
        f"{text}/p2p/{peer}/p2p-circuit",
        f"{text}/p2p-circuit/p2p/{peer}",
        f"{text}/p2p/{'x' * 300}",
    ):
        with pytest.raises(DecodeError):
            parse_circuit(wrong)


def test_a_node_behind_a_relay_is_dialled_and_serves():
    async def main():
        async with relayed() as (relay, hidden, client):
            address = hidden.addresses[0]
            assert address.startswith(relay.addresses[0])
            assert address.endswith(f"/p2p-circuit/p2p/{hidden.peer_id}")
            assert await client.connect(address) == hidden.peer_id
            assert await exchange(client, hidden.peer_id)
            seen = {info.peer_id: info for info in hidden.peers()}[client.peer_id]
            assert seen.inbound and seen.address.endswith("/p2p-circuit")
            # The ends authenticated one another: the relay is in neither's place.
            assert hidden.public_key_of(client.peer_id) == settings(3).key.public
            assert len(relay.relay.ledger.circuits) == 1
            await client.disconnect(hidden.peer_id)
            await until(lambda: not relay.relay.ledger.circuits)
            await until(lambda: len(hidden.peers()) == 1)
            assert relay.relay.carried_bytes > 2 << 20
            assert await client.connect(address) == hidden.peer_id  # and again

    trio.run(main)


def test_strangers_get_nothing_from_a_relay():
    async def main():
        async with hosts(settings(1), settings(2), settings(3)) as (relay, a, b):
            await link(a, relay)
            with pytest.raises(NotHere):
                await a.circuits.reserve(relay.peer_id)  # it is no relay
            relay.relay.serve(True)
            await b.connect(relay.addresses[0])  # without a hello
            with pytest.raises(Busy, match="202"):
                await b.circuits.reserve(relay.peer_id)
            await a.circuits.reserve(relay.peer_id)
            with pytest.raises(NoRoute, match="202"):
                await b.connect(a.addresses[0])
            relay.relay.serve(False)
            with pytest.raises(NotHere):
                await a.circuits.reserve(relay.peer_id)

    trio.run(main)


def test_without_a_place_there_is_no_circuit():
    async def main():
        async with relayed() as (relay, hidden, client):
            address = hidden.addresses[0]
            hidden.circuits.give_up(relay.peer_id)
            with pytest.raises(NoRoute, match="203"):  # the target wants none
                await client.connect(address)
            await hidden.circuits.reserve(relay.peer_id)
            await hidden.disconnect(relay.peer_id)
            await until(lambda: not relay.relay.ledger.places)
            assert hidden.circuits.addresses == ()
            with pytest.raises(NoRoute, match="204"):
                await client.connect(address)

    trio.run(main)


def test_a_relay_that_lies_about_who_comes_is_found_out():
    """The relay joins the client to itself instead of the target."""

    async def main():
        async with relayed() as (relay, hidden, client):
            async with hosts(settings(4)) as (thief,):
                await link(thief, relay)
                await thief.circuits.reserve(relay.peer_id)
                announce = relay.relay._announce

                async def elsewhere(opened):
                    changed = type(opened)(
                        opened.number, opened.source, opened.address, thief.peer_id
                    )
                    return await announce(changed)

                relay.relay._announce = elsewhere
                with pytest.raises(NoRoute):
                    await client.connect(hidden.addresses[0])
                assert hidden.peer_id not in {p.peer_id for p in client.peers()}

    trio.run(main)


def test_bytes_are_bounded():
    async def main():
        limits = RelayLimits(circuit_bytes=1 << 20)
        async with relayed(limits) as (relay, hidden, client):
            await client.connect(hidden.addresses[0])
            assert await exchange(client, hidden.peer_id, 100_000)
            with pytest.raises(NotHere):  # at once, not at its deadline
                await exchange(client, hidden.peer_id, 2 << 20)
            await until(lambda: not relay.relay.ledger.circuits)
            await until(lambda: len(client.peers()) == 1)
            assert relay.relay.carried_bytes < 2 << 20
            await client.connect(hidden.addresses[0])  # a new one has its own bound

    trio.run(main)


@pytest.mark.parametrize("bound", ["circuit_s", "idle_s"])
def test_time_is_bounded(bound):
    async def main():
        async with relayed(RelayLimits(**{bound: 0.5})) as (relay, hidden, client):
            await client.connect(hidden.addresses[0])
            await until(lambda: not relay.relay.ledger.circuits)
            await until(lambda: len(client.peers()) == 1)
            await until(lambda: len(hidden.peers()) == 1)

    trio.run(main)


def test_places_and_circuits_are_counted_by_address():
    async def main():
        limits = RelayLimits(reservations_per_address=1, circuits_per_address=1)
        async with relayed(limits) as (relay, hidden, client):
            with pytest.raises(Busy, match="200"):
                await client.circuits.reserve(relay.peer_id)
            await hidden.circuits.reserve(relay.peer_id)  # its own, renewed
            await client.connect(hidden.addresses[0])
            async with hosts(settings(4)) as (other,):
                await link(other, relay)
                with pytest.raises(NoRoute, match="201"):
                    await other.connect(hidden.addresses[0])
            assert await exchange(client, hidden.peer_id)

    trio.run(main)


HOSTILE = {
    "nothing": b"\x00",
    "too long": b"\xff\xff\xff\x7f",
    "not protobuf": b"\x04\xff\xff\xff\xff",
    "cut off": b"\x20\x08",
    "a status": b"\x03\x08\x02\x28",
    "no target": b"\x02\x08\x01",
    "an odd target": b"\x06\x08\x01\x12\x02\x0a\x00",
    "half a length": b"\x80",
}


def test_broken_requests_cost_the_sender_a_stream():
    async def main():
        blamed = []
        limits = RelayLimits()
        async with relayed(limits, blame=lambda *fault: blamed.append(fault)) as (
            relay,
            hidden,
            client,
        ):
            for raw in HOSTILE.values():
                await send_raw(client, relay.peer_id, HOP, raw)
                await send_raw(relay, hidden.peer_id, STOP, raw)
            assert {peer for peer, _ in blamed} == {relay.peer_id}  # as its STOPs were
            await client.connect(hidden.addresses[0])
            assert await exchange(client, hidden.peer_id)

    trio.run(main)


async def send_raw(sender, peer, protocol, raw):
    """Send bytes that nobody asked for, and wait until the stream has ended."""
    stream = await raw_stream(sender, peer, protocol)
    try:
        await stream.write(raw)
        await stream.close_write()
        with trio.fail_after(8):
            while await stream.read(4096):
                pass
    except BaseLibp2pError:
        pass
    await circuit.reset(stream)


def test_only_a_chosen_relay_may_bring_circuits():
    async def main():
        async with hosts(settings(1), settings(2)) as (a, b):
            await link(b, a)
            with pytest.raises(NotHere):
                stream = await raw_stream(b, a.peer_id, STOP)
                request = StopMessage(type=StopMessage.CONNECT)
                request.peer.id = parse_peer_id(b.peer_id).to_bytes()
                await circuit.send(stream, request)
                await circuit.receive(stream, StopMessage)

    trio.run(main)


def test_silent_requests_are_few_and_end():
    async def main():
        async with relayed() as (relay, hidden, client):
            peer = relay.peer_id
            streams = [await raw_stream(client, peer, HOP) for _ in range(8)]
            with trio.fail_after(3):  # beyond the eighth: closed at once
                for _ in range(12):
                    with pytest.raises(NotHere):
                        stream = await raw_stream(client, peer, HOP)
                        streams.append(stream)
                        await circuit.receive(stream, HopMessage, 3)
            for stream in streams:
                await circuit.reset(stream)
            await until(lambda: not relay.relay._streams._serving)
            await client.connect(hidden.addresses[0])

    trio.run(main)


def test_no_circuit_over_a_circuit():
    async def main():
        async with relayed() as (relay, hidden, client):
            await client.connect(hidden.addresses[0])
            hidden.admit(client.peer_id)
            hidden.relay.serve(True)
            with pytest.raises(NotHere):
                await client.circuits.reserve(hidden.peer_id)
            stream = await raw_stream(client, hidden.peer_id, HOP)
            await circuit.send(stream, HopMessage(type=HopMessage.RESERVE))
            answer = await circuit.receive(stream, HopMessage)
            assert answer.status == 202

    trio.run(main)


def test_the_end_of_the_relay_ends_the_circuit():
    async def main():
        async with relayed() as (relay, hidden, client):
            await client.connect(hidden.addresses[0])
            await relay._connections.close_all()
            await until(lambda: not client.peers())
            await until(lambda: not hidden.peers())
            assert hidden.addresses == (f"{CLOSED}/p2p/{hidden.peer_id}",)

    trio.run(main)
