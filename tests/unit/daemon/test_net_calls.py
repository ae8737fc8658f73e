"""Calls on long streams: over streams in memory, with a clock that jumps."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.errors import DecodeError, UnexpectedMessage
from blyan_proto.protocols import calls as wire
from blyan_proto.protocols.calls import Kind, head
from blyan_proto.protocols.result import ResultCode
from blyand.errors import Busy, NotHere, Pruned, StaleVersion, TooSlow, Unavailable
from blyand.net.answers import serve_calls
from blyand.net.calls import CallProtocol, open_calls
from tests.unit.daemon.stream_world import Peers, jumping

ASK = CallProtocol("/blyan/ask/1", max_bytes=1 << 16, deadline_s=20.0)
SMALL = CallProtocol(
    "/blyan/ask/1", 1 << 16, deadline_s=20.0, in_flight=4, in_flight_bytes=100_000
)


class World:
    """One client, and a peer whose handler is `answer(peer, body)`."""

    def __init__(self, host, calls, protocol):
        self.host, self.calls, self.protocol = host, calls, protocol

    async def ask(self, body=b"x", deadline_s=None, peer="p", read=bytes):
        return await self.calls.call(peer, self.protocol, body, read, deadline_s)

    async def raw(self):
        """Return a stream to the peer, past its first result."""
        return await self.host.open_stream("p", self.protocol.id)

    def count(self, name, **labels):
        return self.host.metrics.counter(
            name, protocol=self.protocol.id, **labels
        ).value


@asynccontextmanager
async def world(answer=None, protocol=ASK, serve=None, cost=len, lockstep=False):
    async with trio.open_nursery() as nursery:
        serve = serve or serve_calls(protocol, bytes, answer, cost)
        host = Peers(serve, nursery, lockstep)
        async with open_calls(host) as calls:
            yield World(host, calls, protocol)
        nursery.cancel_scope.cancel()


async def echo(peer, body):
    return body


async def never(peer, body):
    await trio.sleep_forever()


def test_answers_come_in_any_order_on_one_stream():
    first = trio.Event()

    async def answer(peer, body):
        assert peer == "us"
        if body == b"slow":
            await first.wait()
        return body[::-1]

    async def main():
        got = []
        async with world(answer) as w:

            async def slow():
                got.append(await w.ask(b"slow"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow)
                await trio.testing.wait_all_tasks_blocked()
                got.append(await w.ask(b"fast"))
                first.set()
            assert got == [b"tsaf", b"wols"] and len(w.host.opened) == 1
            assert w.count("blyan_net_call_streams", used="opened") == 1
            assert w.count("blyan_net_call_streams", used="reused") == 1
            assert w.count("blyan_net_calls", outcome="ok") == 2

    trio.run(main)


def test_refusals_are_errors_and_the_stream_lives():
    refusals = [
        Busy("full"),
        StaleVersion("old"),
        NotHere("no"),
        Pruned("gone"),
        Unavailable("ü" * 300),
    ]

    async def main():
        wanted = list(refusals)

        async def answer(peer, body):
            if wanted:
                raise wanted.pop(0)
            return body

        async with world(answer) as w:
            for error in refusals:
                with pytest.raises(type(error), match=str(error)[:100]):
                    await w.ask()
            assert await w.ask(b"") == b""
            assert len(w.host.opened) == 1 and not w.host.blamed

    trio.run(main)


def test_a_dead_stream_fails_all_its_calls_and_the_next_call_opens_another():
    async def main():
        failed = []
        async with world(never) as w:

            async def one():
                with pytest.raises(NotHere):
                    await w.ask()
                failed.append(True)

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
                w.host.opened[0].cancel()
            assert len(failed) == 5
            w.host.serve = serve_calls(ASK, bytes, echo)
            assert await w.ask() == b"x"
            with pytest.raises(NotHere):
                await w.ask(peer="nobody")

    trio.run(main)


def test_giving_up_stops_the_server_and_leaves_the_stream_to_others():
    stopped = []

    async def answer(peer, body):
        try:
            if body == b"slow":
                await trio.sleep_forever()
        finally:
            if body == b"slow":
                stopped.append(trio.current_time())
        return body

    async def main():
        async with world(answer) as w:
            with trio.move_on_after(1):
                await w.ask(b"slow")
            await trio.testing.wait_all_tasks_blocked()
            assert stopped == [trio.current_time()]  # at once, not at its own deadline
            began_s = trio.current_time()

            async def meanwhile():
                await trio.sleep(1)
                assert await w.ask() == b"x"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(meanwhile)
                with pytest.raises(TooSlow):
                    await w.ask(b"slow", 3)
            await trio.testing.wait_all_tasks_blocked()
            assert stopped[1:] == [began_s + 3] and len(w.host.opened) == 1
            # The server gives up by itself and says so.
            with pytest.raises(Unavailable, match="not computed in time"):
                await w.ask(b"slow", 100)
            assert w.count("blyan_net_calls", outcome="cancelled") == 1

    trio.run(main, clock=jumping())


def test_a_peer_that_is_silent_gets_another_stream_next_time():
    async def silent(stream):
        await trio.sleep_forever()

    async def main():
        async with world(serve=silent) as w:
            for number in (1, 2):
                with pytest.raises(TooSlow):
                    await w.ask(deadline_s=3)
                assert len(w.host.opened) == number and trio.current_time() < 10

    trio.run(main, clock=jumping())


def test_an_idle_stream_is_ended_by_the_client():
    async def main():
        async with world(echo) as w:
            await w.ask()
            await trio.sleep(wire.IDLE_S - 1)
            await w.ask()
            assert len(w.host.opened) == 1
            await trio.sleep(wire.IDLE_S + 1)
            assert not w.calls.streams
            await w.ask()
            assert len(w.host.opened) == 2 and not w.host.blamed_by_peer

    trio.run(main, clock=jumping())


def test_a_server_ends_a_stream_that_nobody_uses():
    async def main():
        async with world(echo) as w:
            stream = await w.raw()
            assert await stream.receive(1, 100) == bytes([ResultCode.OK])
            assert await stream.receive_or_end(1, 100) is None
            assert trio.current_time() == wire.SERVER_IDLE_S

    trio.run(main, clock=jumping())


def test_what_the_client_has_under_way_is_bounded():
    async def main():
        async with world(never, SMALL) as w:

            async def one(size):
                with pytest.raises(TooSlow):
                    await w.ask(bytes(size), 5)

            async with trio.open_nursery() as nursery:
                for _ in range(SMALL.in_flight):
                    nursery.start_soon(one, 1)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(Busy):
                    await w.ask()
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, 60_000)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(Busy):
                    await w.ask(bytes(50_000))
            assert not w.calls.in_flight()

    trio.run(main, clock=jumping())


def test_what_a_peer_has_under_way_is_bounded_over_all_its_streams():
    async def main():
        async with world(never, SMALL, cost=lambda body: 9 * len(body)) as w:
            first, second = await w.raw(), await w.raw()
            await first.send(head(Kind.CALL, 0) + b"x")
            await first.send(head(Kind.CALL, 7) + b"x")
            for number in range(3):
                await second.send(head(Kind.CALL, number) + b"x")
            assert await refused(second) == (2, ResultCode.BUSY)  # the fifth
            for number in (0, 1):
                await second.send(head(Kind.CANCEL, number))
            await second.send(head(Kind.CALL, 3) + bytes(9_999))  # costs ten times that
            assert await refused(second) == (3, ResultCode.BUSY)
            await second.send(head(Kind.CALL, 4) + bytes(9_000))
            await first.reset()  # frees what was under way on it
            await trio.testing.wait_all_tasks_blocked()
            await second.send(head(Kind.CALL, 5) + bytes(999))
            await second.send(head(Kind.CALL, 6) + bytes(999))
            assert await refused(second) == (6, ResultCode.BUSY)

    async def refused(stream):
        if not stream.__dict__.setdefault("told", False):
            assert await stream.receive(1, 5) == bytes([ResultCode.OK])
            stream.told = True
        raw, body = await stream.receive_parts(wire.HEAD_BYTES, 300, 5)
        kind, number = wire.read_head(raw, from_client=False)
        assert kind is Kind.REFUSAL
        return number, wire.read_refusal(body)[0]

    trio.run(main)


def test_a_slow_reader_slows_the_writer():
    """What waits for a reader is what was admitted, and no answer is begun behind it."""
    computed = []

    async def answer(peer, body):
        computed.append(body)
        return bytes(1000)

    async def main():
        async with world(answer, SMALL, lockstep=True) as w:
            stream = await w.raw()

            async def pour():
                for number in range(100):
                    await stream.send(head(Kind.CALL, number) + b"x", 1e9)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour)
                await trio.testing.wait_all_tasks_blocked()
                assert len(computed) <= SMALL.in_flight
                assert await stream.receive(1, 5) == bytes([ResultCode.OK])
                nursery.cancel_scope.cancel()
            # and one that takes nothing at all loses the stream at the deadline
            await trio.sleep(ASK.deadline_s + 1)
            with pytest.raises(NotHere):
                while True:
                    await stream.receive(1 << 16, 5)

    trio.run(main, clock=jumping())


def test_an_answer_that_is_being_written_is_not_cut_off_by_a_cancellation():
    async def answer(peer, body):
        return bytes(1000)

    async def main():
        async with world(answer, lockstep=True) as w:
            stream = await w.raw()
            await stream.send(head(Kind.CALL, 0))
            await trio.testing.wait_all_tasks_blocked()  # half of it is out
            await stream.send(head(Kind.CANCEL, 0))
            assert await stream.receive(1, 5) == bytes([ResultCode.OK])
            assert len(await stream.receive(1 << 16, 5)) == 1005
            await stream.send(head(Kind.CALL, 1))
            assert len(await stream.receive(1 << 16, 5)) == 1005

    trio.run(main, clock=jumping())


def test_a_server_that_drains_finishes_its_calls_and_ends():
    go = trio.Event()

    async def answer(peer, body):
        if body == b"slow":
            await go.wait()
        return body

    async def main():
        async with world(answer) as w:
            await w.ask()
            async with trio.open_nursery() as nursery:

                async def slow():
                    assert await w.ask(b"slow") == b"slow"

                nursery.start_soon(slow)
                await trio.testing.wait_all_tasks_blocked()
                w.host.served[0].draining.set()
                with pytest.raises(Unavailable, match="stopping"):
                    await w.ask(b"late")
                go.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not w.calls.streams and not w.host.blamed

    trio.run(main)


LIES = {
    "a call never made": head(Kind.ANSWER, 5),
    "a kind of the client": head(Kind.CALL, 0),
    "no kind": b"\x09\0\0\0\0",
    "too short": b"\x03\0",
    "a refusal that says OK": head(Kind.REFUSAL, 0) + b"\0",
    "a refusal without a code": head(Kind.REFUSAL, 0),
    "an unknown code": head(Kind.REFUSAL, 0) + b"\x63",
    "no text": head(Kind.REFUSAL, 0) + b"\x03\xff",
    "a long reason": head(Kind.REFUSAL, 0) + b"\x03" + b"a" * 257,
    "what the reader refuses": head(Kind.ANSWER, 0) + b"lie",
    "too long": head(Kind.ANSWER, 0) + bytes(ASK.max_bytes + 1),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_lies_of_a_server_are_blamed(lie):
    def read(body):
        raise DecodeError("a lie")

    async def lies(stream):
        await stream.send_result(ResultCode.OK)
        await stream.receive(64, 5)
        await stream.send(lie)
        await trio.sleep_forever()

    async def main():
        async with world(serve=lies) as w:
            with pytest.raises(Unavailable):
                await w.ask(read=read)
            assert len(w.host.blamed) == 1 and not w.calls.streams

    trio.run(main)


@pytest.mark.parametrize(
    "frames, error",
    [
        ([head(Kind.CALL, 3), head(Kind.CALL, 3)], UnexpectedMessage),
        ([head(Kind.CALL, 3), head(Kind.CALL, 2)], UnexpectedMessage),
        ([head(Kind.CANCEL, 0)], UnexpectedMessage),
        ([head(Kind.CALL, 0), head(Kind.CANCEL, 0) + b"x"], UnexpectedMessage),
        ([head(Kind.ANSWER, 0)], DecodeError),
        ([b"\x01"], DecodeError),
        ([head(Kind.CALL, 0) + b"bad"], DecodeError),
    ],
)
def test_lies_of_a_client_are_blamed(frames, error):
    async def answer(peer, body):
        if body == b"bad":
            raise DecodeError("refused by the handler")
        await trio.sleep_forever()

    async def main():
        async with world(answer) as w:
            stream = await w.raw()
            for one in frames:
                await stream.send(one)
            with pytest.raises(NotHere):
                while True:
                    await stream.receive(300, 5)
            assert [type(e) for e in w.host.blamed_by_peer] == [error]

    trio.run(main)


@settings(max_examples=50)
@given(st.sampled_from(Kind), st.integers(0, wire.MAX_NUMBER))
def test_heads_round_trip(kind, number):
    side = kind in wire.FROM_CLIENT
    assert wire.read_head(head(kind, number), side) == (kind, number)
    with pytest.raises(DecodeError):
        wire.read_head(head(kind, number), not side)


@settings(max_examples=50)
@given(st.sampled_from([c for c in ResultCode if c]), st.text(max_size=300))
def test_refusals_round_trip_and_are_bounded(code, reason):
    body = wire.refusal(code, reason)
    assert len(body) <= wire.MAX_REFUSAL_BYTES
    read, text = wire.read_refusal(body)
    assert read is code and reason.startswith(text)
    assert text == reason or len(reason.encode()) > wire.MAX_REASON_BYTES


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_any_mix_of_calls_and_cancellations_keeps_the_accounts(moves):
    """0–5: a call that is answered after so long; 6–9: one that is given up."""

    async def answer(peer, body):
        await trio.sleep(body[0])
        return body

    async def main():
        got = []
        async with world(answer) as w:

            async def one(number, move):
                body = bytes([move, number])
                await trio.sleep(number / 10)
                with trio.move_on_after(3 if move > 5 else 100):
                    assert await w.ask(body) == body
                    got.append(number)

            async with trio.open_nursery() as nursery:
                for number, move in enumerate(moves):
                    nursery.start_soon(one, number, move)
            assert sorted(got) == [n for n, move in enumerate(moves) if move <= 5]
            assert not w.calls.in_flight() and not w.host.blamed
            assert await w.ask(b"\0") == b"\0" and len(w.host.opened) == 1

    trio.run(main, clock=jumping())
