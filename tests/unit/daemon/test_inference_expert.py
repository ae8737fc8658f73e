"""/blyan/expert/1, both ends: over a stream in memory, and between two hosts."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from blyan_proto.errors import DecodeError, UnexpectedMessage
from blyan_proto.protocols import expert as wire
from blyan_proto.protocols.calls import Kind, head
from blyan_proto.protocols.expert import ExpertRows, Forward, Numerics, Outputs
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import SigningKey
from blyand.errors import Busy, Unavailable, WrongAnswer
from blyand.net.calls import open_calls
from blyand.net.host import HostSettings, open_host
from blyand.protocols import expert
from tests.unit.daemon.stream_world import Peers

CALL = Forward(
    model=b"\1" * 32,
    numerics=Numerics.REFERENCE,
    width=2,
    experts=(ExpertRows(3, b"\2" * 32, b"\0\0"), ExpertRows(4, b"\2" * 32, b"\0\0")),
    activations=bytes(8),
)
GOOD = Outputs(7, (b"a" * 8, b"b" * 8))


@asynccontextmanager
async def talking(serve):
    async with trio.open_nursery() as nursery:
        host = Peers(serve, nursery)
        async with open_calls(host) as calls:
            yield host, expert.Client(calls)
        nursery.cancel_scope.cancel()


def answering(answer):
    return talking(expert.serve(answer))


async def good(peer, call):
    return GOOD


def test_lies_are_blamed():
    async def main():
        async def lies(stream):
            await stream.send_result(ResultCode.OK)
            await stream.receive(wire.MAX_MESSAGE_BYTES, 5)
            await stream.send(wire.ANSWER.encode(host.lie), head=head(Kind.ANSWER, 0))
            await trio.sleep_forever()

        async with talking(lies) as (host, client):
            for host.lie in (
                Outputs(0, GOOD.outputs[:1]),
                Outputs(0, (GOOD.outputs[0], GOOD.outputs[1][:4])),
                Outputs(0, GOOD.outputs[::-1] + GOOD.outputs[:1]),
            ):
                with pytest.raises(WrongAnswer):
                    await client.forward("p", CALL)
                assert isinstance(host.blamed.pop(), UnexpectedMessage)

    trio.run(main)


def test_a_call_pays_for_its_outputs_before_they_are_computed():
    async def never(peer, call):
        await trio.sleep_forever()

    async def main():
        async with answering(never) as (host, client):
            rows = bytes(2 * 4096)
            wide = replace(
                CALL, width=1024, experts=(ExpertRows(1, bytes(32), rows),) * 3
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.forward, "p", wide)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(Busy):  # 48 MiB of 64 are taken
                    await client.forward("p", wide)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_malformed_call_ends_the_stream_and_is_blamed():
    async def answer(peer, call):
        raise DecodeError("rows are not ascending")

    async def main():
        async with answering(answer) as (host, client):
            with pytest.raises(Unavailable):
                await client.forward("p", CALL)
            (error,) = host.blamed_by_peer
            assert isinstance(error, DecodeError)

    trio.run(main)


def test_between_two_hosts():
    def settings(number):
        return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32)

    async def answer(peer, call):
        return Outputs(0, tuple(call.activations * (number + 1) for number in range(2)))

    async def main():
        async with (
            open_host(settings(1)) as server,
            open_host(settings(2)) as host,
            open_calls(host) as calls,
        ):
            client = expert.Client(calls)
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
            expected = Outputs(0, (call.activations, call.activations * 2))
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
