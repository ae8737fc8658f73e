"""/blyan/expert/1, both ends: over a stream in memory, and between two hosts."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from libp2p.network.stream.exceptions import StreamEOF

from blyan_proto.errors import DecodeError, UnexpectedMessage
from blyan_proto.protocols import expert as wire
from blyan_proto.protocols.expert import ExpertRows, Forward, Numerics, Outputs, Refused
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import SigningKey
from blyand.errors import Busy, NotHere, StaleVersion, TooSlow, Unavailable
from blyand.net.host import HostSettings, open_host
from blyand.net.serving import serve_stream
from blyand.net.stream import MessageStream
from blyand.net.traffic import Traffic
from blyand.protocols import expert

CALL = Forward(
    call=0,
    model=b"\1" * 32,
    numerics=Numerics.REFERENCE,
    width=2,
    experts=(ExpertRows(3, b"\2" * 32, b"\0\0"), ExpertRows(4, b"\2" * 32, b"\0\0")),
    activations=bytes(8),
)
GOOD = (b"a" * 8, b"b" * 8)


class Transport:
    """One end of a stream, as libp2p would give it."""

    def __init__(self, stream):
        self.stream = stream

    async def read(self, size):
        try:
            received = await self.stream.receive_some(size)
        except trio.BrokenResourceError:
            received = b""
        if not received:
            raise StreamEOF("end")
        return received

    async def write(self, raw):
        await self.stream.send_all(bytes(raw))

    async def close_write(self):
        await self.stream.send_eof()

    async def close(self):
        await self.stream.aclose()

    reset = close


class Peers:
    """A host whose peers are functions that serve a stream."""

    def __init__(self, serve, nursery):
        self.serve, self.nursery = serve, nursery
        self.blamed, self.blamed_by_peer = [], []
        self.opened = []

    def blame(self, peer, error):
        self.blamed.append(error)

    async def open_stream(self, peer, protocol):
        if peer == "nobody":
            raise NotHere("not connected")
        ours, theirs = trio.testing.memory_stream_pair()
        traffic = Traffic()
        served = MessageStream(Transport(theirs), "us", protocol, traffic)

        async def run():
            with trio.CancelScope() as scope:
                self.opened.append(scope)
                await serve_stream(
                    served,
                    self.serve,
                    None,
                    lambda who, error: self.blamed_by_peer.append(error),
                )
            await served.reset()

        self.nursery.start_soon(run)
        return MessageStream(Transport(ours), peer, protocol, traffic)


@asynccontextmanager
async def talking(serve):
    async with trio.open_nursery() as nursery:
        host = Peers(serve, nursery)
        async with expert.open_client(host) as client:
            yield host, client
        nursery.cancel_scope.cancel()


def run(main, **clock):
    trio.run(main, **clock)


def jumping():
    return trio.testing.MockClock(autojump_threshold=0.0)


def answering(answer):
    return talking(expert.serve(answer))


async def good(peer, call):
    return GOOD


def test_answers_come_in_any_order():
    first = trio.Event()

    async def answer(peer, call):
        assert peer == "us"
        if call.model == CALL.model:
            await first.wait()
            return GOOD
        return GOOD[::-1]

    async def main():
        got = []
        async with answering(answer) as (host, client):

            async def slow():
                got.append(await client.forward("p", CALL))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow)
                await trio.testing.wait_all_tasks_blocked()
                got.append(await client.forward("p", replace(CALL, model=b"\5" * 32)))
                first.set()
            assert got == [GOOD[::-1], GOOD] and len(host.opened) == 1

    run(main)


def test_refusals_are_errors_and_the_stream_lives():
    refusals = [Busy("full"), StaleVersion("old"), NotHere("no"), Unavailable("so")]

    async def main():
        wanted = list(refusals)

        async def answer(peer, call):
            if wanted:
                raise wanted.pop(0)
            return GOOD

        async with answering(answer) as (host, client):
            for error in refusals:
                with pytest.raises(type(error), match=str(error)):
                    await client.forward("p", CALL)
            assert await client.forward("p", CALL) == GOOD
            assert len(host.opened) == 1 and not host.blamed

    run(main)


def test_a_dead_stream_fails_all_its_calls_and_the_next_call_opens_another():
    async def never(peer, call):
        await trio.sleep_forever()

    async def main():
        failed = []
        async with answering(never) as (host, client):

            async def one():
                with pytest.raises(NotHere):
                    await client.forward("p", CALL)
                failed.append(True)

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
                host.opened[0].cancel()
            assert len(failed) == 5
            host.serve = expert.serve(good)
            assert await client.forward("p", CALL) == GOOD
            with pytest.raises(NotHere):
                await client.forward("nobody", CALL)

    run(main)


def test_deadlines_and_cancellation_leave_the_stream_to_others():
    async def answer(peer, call):
        if call.model != CALL.model:
            await trio.sleep_forever()
        return GOOD

    async def main():
        async with answering(answer) as (host, client):
            slow = replace(CALL, model=b"\5" * 32)
            with trio.move_on_after(1):
                await client.forward("p", slow)
            began_s = trio.current_time()

            async def meanwhile():
                await trio.sleep(1)
                assert await client.forward("p", CALL) == GOOD

            async with trio.open_nursery() as nursery:
                nursery.start_soon(meanwhile)
                with pytest.raises(TooSlow):
                    await client.forward("p", slow, 3)
            assert trio.current_time() == began_s + 3
            assert len(host.opened) == 1
            # The server gives up by itself and says so.
            with pytest.raises(Unavailable, match="not computed in time"):
                await client.forward("p", slow, 100)
            # A peer that is silent altogether gets another stream next time.
            host.serve = silent
            await trio.sleep(expert.CLIENT_IDLE_S + 1)
            for _ in range(2):
                with pytest.raises(TooSlow):
                    await client.forward("p", CALL, 3)
            assert len(host.opened) == 3

    async def silent(stream):
        await trio.sleep_forever()

    run(main, clock=jumping())


def test_an_idle_stream_is_ended_by_the_client():
    async def main():
        async with answering(good) as (host, client):
            await client.forward("p", CALL)
            await trio.sleep(expert.CLIENT_IDLE_S - 1)
            await client.forward("p", CALL)
            await trio.sleep(expert.CLIENT_IDLE_S + 1)
            assert not client._links
            await client.forward("p", CALL)
            assert len(host.opened) == 2 and not host.blamed_by_peer

    run(main, clock=jumping())


def test_lies_are_blamed():
    async def main():
        async def lies(stream):
            await stream.send_result(ResultCode.OK)
            await stream.receive(wire.MAX_MESSAGE_BYTES, 5)
            await stream.send_message(host.lie, wire.ANSWER)
            await trio.sleep_forever()

        async with talking(lies) as (host, client):
            for host.lie in (
                Outputs(0, GOOD[:1]),
                Outputs(0, (GOOD[0], GOOD[1][:4])),
                Outputs(5, GOOD),
                Refused(0, ResultCode.OK, ""),
            ):
                with pytest.raises(Unavailable):
                    await client.forward("p", CALL)
                assert isinstance(host.blamed.pop(), UnexpectedMessage)

    run(main)


def test_a_malformed_call_ends_the_stream_and_is_blamed():
    async def answer(peer, call):
        raise DecodeError("rows are not ascending")

    async def main():
        async with answering(answer) as (host, client):
            with pytest.raises(Unavailable):
                await client.forward("p", CALL)
            (error,) = host.blamed_by_peer
            assert isinstance(error, DecodeError)

    run(main)


def test_the_server_bounds_what_is_in_flight(monkeypatch):
    monkeypatch.setattr(expert, "MAX_IN_FLIGHT_BYTES", 40_000)

    async def never(peer, call):
        await trio.sleep_forever()

    async def main():
        async with answering(never) as (host, client):
            stream = await host.open_stream("p", wire.PROTOCOL_ID)
            for number in range(wire.MAX_IN_FLIGHT + 1):
                await stream.send_message(replace(CALL, call=number), wire.REQUEST)
            assert await stream.receive(1, 5) == bytes([ResultCode.OK])
            refused = await stream.receive_message(wire.ANSWER, 1024, 5)
            assert refused.call == wire.MAX_IN_FLIGHT
            assert refused.code is ResultCode.BUSY
            await stream.send_message(replace(CALL, call=3), wire.REQUEST)
            with pytest.raises(NotHere):
                await stream.receive(1024, 5)
            assert isinstance(host.blamed_by_peer[0], UnexpectedMessage)

            stream = await host.open_stream("p", wire.PROTOCOL_ID)
            large = replace(CALL, activations=bytes(9_500))
            for number in range(4):
                await stream.send_message(replace(large, call=number), wire.REQUEST)
            await stream.send_message(replace(large, call=9), wire.REQUEST)
            await stream.receive(1, 5)
            refused = await stream.receive_message(wire.ANSWER, 1024, 5)
            assert (refused.call, refused.code) == (9, ResultCode.BUSY)

            async def one():
                with pytest.raises(TooSlow):
                    await client.forward("p", CALL, 0.5)

            async with trio.open_nursery() as nursery:
                for _ in range(wire.MAX_IN_FLIGHT):
                    nursery.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(Busy):
                    await client.forward("p", CALL)
                nursery.cancel_scope.cancel()

    run(main)


def test_between_two_hosts():
    def settings(number):
        return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32)

    async def answer(peer, call):
        return tuple(call.activations * (number + 1) for number in range(2))

    async def main():
        async with (
            open_host(settings(1)) as server,
            open_host(settings(2)) as host,
            expert.open_client(host) as client,
        ):
            server.handle(wire.PROTOCOL_ID, expert.serve(answer), deadline_s=None)
            peer = await host.connect(server.addresses[0])
            while not server.peers():
                await trio.sleep(0.001)
            server.admit(host.peer_id)
            rows = 300
            call = replace(
                CALL,
                width=256,
                activations=bytes(range(256)) * 4 * rows,
                experts=tuple(
                    ExpertRows(number, b"\2" * 32, bytes(2 * rows * (number + 1)))
                    for number in range(2)
                ),
            )
            outputs = []

            async def one():
                outputs.append(await client.forward(peer, call))

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(one)
            expected = (call.activations, call.activations * 2)
            assert outputs == [expected] * 4
            await server.disconnect(host.peer_id)
            with pytest.raises(Unavailable):
                await client.forward(peer, call)
            await host.connect(server.addresses[0])
            while not server.peers():
                await trio.sleep(0.001)
            server.admit(host.peer_id)
            assert await client.forward(peer, call) == expected

    trio.run(main)
