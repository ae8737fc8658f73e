"""The mux on a connection: cancellation anywhere, silence, priority, odd connections."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from blyan_proto.errors import LimitExceeded
from blyand.net.mux.driver import MuxConnection
from blyand.net.mux.frames import Kind, control, data_head
from blyand.net.mux.machine import MAX_STREAMS
from blyand.net.mux.window import COMMON_BYTES

PEER = ID(b"\x00\x01x")


class Plain:
    """A session without secrets on a memory stream: what a stock one looks like."""

    def __init__(self, stream, is_initiator):
        self.stream, self.is_initiator = stream, is_initiator

    async def read(self, n=None):
        try:
            return await self.stream.receive_some(n)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise ConnectionClosedError("gone") from error

    async def write(self, data):
        try:
            await self.stream.send_all(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise ConnectionClosedError("gone") from error

    async def close(self):
        await self.stream.aclose()

    def get_remote_address(self):
        return None


@asynccontextmanager
async def connected(**more):
    one, other = (
        MuxConnection(Plain(stream, bool(side)), PEER, **more)
        for side, stream in enumerate(memory_stream_pair())
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.start)
        nursery.start_soon(other.start)
        yield one, other
        with trio.fail_after(5):
            await one.close()
            await other.close()


@asynccontextmanager
async def facing_a_stranger(**more):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        side = MuxConnection(Plain(ours, True), PEER, **more)
        nursery.start_soon(side.start)
        yield side, theirs
        await side.close()


async def read_all(stream):
    body = b""
    try:
        while True:
            body += await stream.read(100_000)
    except MuxedStreamEOF:
        return body


def test_both_ways_and_the_ends():
    async def main():
        async with connected() as (one, other):
            question = random.Random(1).randbytes(3_000_000)
            ours = await one.open_stream()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def answer():
                    theirs = await other.accept_stream()
                    body = await read_all(theirs)
                    await theirs.write(body[::-1])
                    await theirs.close()

                await ours.write(question)
                await ours.close_write()
                with pytest.raises(MuxedStreamClosed):
                    await ours.write(b"more")
                assert await read_all(ours) == question[::-1]
            assert ours.is_closed and not one._streams and not other._streams
            assert await ours.read(0) == b""

    trio.run(main)


def test_a_reset_wakes_both_sides():
    async def main():
        async with connected() as (one, other):
            ours = await one.open_stream()
            await ours.write(b"x")
            theirs = await other.accept_stream()
            assert await theirs.read(5) == b"x"
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def reading():
                    with pytest.raises(MuxedStreamReset):
                        await theirs.read(1)

                @nursery.start_soon
                async def writing():
                    with pytest.raises(MuxedStreamReset):
                        await theirs.write(bytes(9_000_000))

                await wait_all_tasks_blocked()
                await ours.reset()
            with pytest.raises(MuxedStreamReset):
                await theirs.write(b"y")
            await wait_all_tasks_blocked()
            assert not one._streams and not other._streams and not one.machine.opened

    trio.run(main)


def test_cancelled_anywhere_the_connection_goes_on():
    """Seeded: users are cancelled at any await; a stream of its own stays exact."""

    async def main(seed):
        chance = random.Random(seed)
        async with connected() as (one, other):
            async with trio.open_nursery() as nursery:

                async def serve(stream):
                    try:
                        while True:
                            body = await stream.read(chance.choice([1, 700, 80_000]))
                            if chance.random() < 0.1:
                                await stream.reset()
                                return
                            await stream.write(body)
                    except MuxedStreamEOF:
                        await stream.close()
                    except (MuxedStreamReset, MuxedStreamClosed):
                        pass

                @nursery.start_soon
                async def accept():
                    while True:
                        try:
                            stream = await other.accept_stream()
                        except MuxedConnUnavailable:
                            return
                        if stream.identity != steady.identity:
                            nursery.start_soon(serve, stream)
                        else:
                            nursery.start_soon(copy, stream)

                async def copy(stream):
                    while True:
                        try:
                            body = await stream.read(10_000)
                        except MuxedStreamEOF:
                            return await stream.close()
                        await stream.write(body)

                async def disturb():
                    stream = None
                    with trio.CancelScope() as scope:
                        nursery.start_soon(cancel_later, scope)
                        stream = await one.open_stream()
                        for _ in range(3):
                            await stream.write(bytes(chance.choice([3, 90_000])))
                            await stream.read(chance.choice([2, 50_000]))
                        await stream.close()
                    if stream is not None and not stream.is_closed:
                        await stream.reset()

                async def cancel_later(scope):
                    for _ in range(chance.randrange(12)):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                async def disturb_ignoring_resets():
                    try:
                        await disturb()
                    except (MuxedStreamReset, MuxedStreamEOF):
                        pass

                steady = await one.open_stream()
                sent, got = bytearray(), bytearray()
                for _ in range(30):
                    nursery.start_soon(disturb_ignoring_resets)
                    piece = chance.randbytes(chance.choice([1, 5_000, 70_000]))
                    await steady.write(piece)
                    sent += piece
                    while len(got) < len(sent):
                        with trio.CancelScope() as scope:
                            nursery.start_soon(cancel_later, scope)
                            got += await steady.read(chance.choice([10, 40_000]))
                assert got == sent
                await steady.close()
                assert await read_all(steady) == b""
                await one.close()
        assert not one._streams and not other._streams

    for seed in range(6):
        with_deadline(main, seed)


def with_deadline(main, *args):
    async def bounded():
        with trio.fail_after(20):
            await main(*args)

    trio.run(bounded)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancelled_close_still_closes(turns):
    async def main():
        told = []
        async with connected() as (one, other):

            async def on_close():
                told.append(True)

            one.on_close = on_close
            stream = await one.open_stream()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def cancel():
                        for _ in range(turns):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    await one.close()
            with trio.fail_after(5):
                await one.event_closed.wait()
                await other.event_closed.wait()
            with pytest.raises(MuxedStreamReset):
                await stream.read()
            with pytest.raises(MuxedConnUnavailable):
                await one.open_stream()
            with pytest.raises(MuxedConnUnavailable):
                await other.accept_stream()
        assert told == [True]

    trio.run(main)


def test_a_writer_that_waits_learns_that_the_connection_ended():
    async def main():
        async with connected() as (one, other):
            stream = await one.open_stream()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def write():
                    with pytest.raises(MuxedStreamReset):
                        await stream.write(bytes(9_000_000))

                await wait_all_tasks_blocked()
                await other.close()

    with_deadline(main)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_an_answer_outlives_whoever_gave_it(finished, gone):
    """A server that answers and resets, or hangs up, has answered."""

    async def main():
        async with connected() as (one, other):
            ours = await one.open_stream()
            await ours.write(b"question that nobody reads")
            theirs = await other.accept_stream()
            await theirs.write(b"answer")
            if finished:
                await theirs.close_write()
            await wait_all_tasks_blocked()
            await (other.close() if gone else theirs.reset())
            await wait_all_tasks_blocked()
            assert await ours.read(3) == b"ans"
            assert await ours.read() == b"wer"
            with pytest.raises(MuxedStreamEOF if finished else MuxedStreamReset):
                await ours.read()
            with pytest.raises(MuxedStreamReset):
                await ours.write(b"more")

    with_deadline(main)


def test_a_question_does_not_outlive_who_asked():
    async def main():
        async with connected() as (one, other):
            ours = await one.open_stream()
            await ours.write(bytes(1000))
            theirs = await other.accept_stream()
            await wait_all_tasks_blocked()
            await ours.reset()
            await wait_all_tasks_blocked()
            assert not theirs._chunks
            with pytest.raises(MuxedStreamReset):
                await theirs.read()

    with_deadline(main)


def test_a_cancelled_start_closes():
    async def main():
        ours, theirs = memory_stream_pair()
        side = MuxConnection(Plain(ours, True), PEER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.start)
            await side.event_started.wait()
            nursery.cancel_scope.cancel()
        assert side.is_closed

    trio.run(main)


def test_a_violation_is_blamed_and_ends_the_connection():
    blamed = []

    async def main():
        def blame(peer, error):
            blamed.append((peer, type(error)))

        async with facing_a_stranger(blame=blame) as (side, stranger):
            await stranger.send_all(control(Kind.OPEN, 2, 0))
            (await side.accept_stream()).set_priority(True)
            await stranger.send_all(
                (data_head(2, 1 << 16) + bytes(1 << 16)) * (COMMON_BYTES >> 16)
            )
            await wait_all_tasks_blocked()
            assert not side.is_closed
            await stranger.send_all(data_head(2, 1) + b"x")
            with trio.fail_after(5):
                await side.event_closed.wait()
        assert blamed == [(str(PEER), LimitExceeded)]

    trio.run(main)


def test_silence_is_noticed_and_distance_measured():
    async def main():
        async with facing_a_stranger() as (side, stranger):
            await trio.sleep(0.25)
            ping = await stranger.receive_some()
            assert ping[:8] == control(Kind.PING, 0, 0)[:8]
            await stranger.send_all(control(Kind.PONG, 0, 1))
            await trio.sleep(16)
            assert side.rtt_s == pytest.approx(0.25)
            await stranger.send_all(control(Kind.PING, 0, 5))  # alive, if rude
            await trio.sleep(14)
            assert not side.is_closed
            started = trio.current_time()
            await side.event_closed.wait()
            assert trio.current_time() - started < 25

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_too_many_streams_wait_for_their_turn():
    async def main():
        async with connected() as (one, other):
            streams = [await one.open_stream() for _ in range(MAX_STREAMS)]
            with trio.move_on_after(0.01) as scope:
                await one.open_stream()
            assert scope.cancelled_caught
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.open_stream)
                await wait_all_tasks_blocked()
                await streams[7].reset()

    trio.run(main)


def test_small_pieces_do_not_cost_an_object_each():
    async def main():
        async with facing_a_stranger() as (side, stranger):
            await stranger.send_all(control(Kind.OPEN, 2, 0))
            stream = await side.accept_stream()
            for _ in range(20):
                await stranger.send_all((data_head(2, 2) + b"ab") * 1000)
            await wait_all_tasks_blocked()
            assert len(stream._chunks) < 4
            body = b""
            while len(body) < 40_000:
                body += await stream.read(999)
            assert body == b"ab" * 20_000

    trio.run(main)


def test_one_read_takes_what_fits_of_many_pieces():
    async def main():
        async with facing_a_stranger() as (side, stranger):
            await stranger.send_all(control(Kind.OPEN, 2, 0))
            stream = await side.accept_stream()
            pieces = [bytes([number]) * 10_000 for number in range(9)]
            for piece in pieces:
                await stranger.send_all(data_head(2, len(piece)) + piece)
            await wait_all_tasks_blocked()
            whole = b"".join(pieces)
            for start, end in ((0, 4_000), (4_000, 31_000), (31_000, 90_000)):
                assert await stream.read(end - start) == whole[start:end]
            assert not stream._chunks

    trio.run(main)


def test_what_was_written_may_be_changed_at_once():
    async def main():
        async with connected() as (one, other):
            ours = await one.open_stream()
            body = bytearray(b"a" * 50_000)
            await ours.write(body)
            body[:] = bytes(50_000)
            body.clear()
            await ours.close_write()
            assert await read_all(await other.accept_stream()) == b"a" * 50_000

    trio.run(main)


def test_a_write_cancelled_under_a_finish_ends_the_stream():
    """The peer must not take what came for all; nor may the stream stay open."""

    async def main():
        async with connected() as (one, other):
            ours = await one.open_stream()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ours.write, bytes(9_000_000))
                    await wait_all_tasks_blocked()
                    await ours.close_write()
                    scope.cancel()
            theirs = await other.accept_stream()
            with trio.fail_after(5), pytest.raises(MuxedStreamReset):
                await read_all(theirs)
            assert not one._streams

    trio.run(main)


def test_unconfirmed_resets_end_the_connection_not_the_caller():
    blamed = []

    async def main():
        async with facing_a_stranger(blame=lambda *told: blamed.append(told)) as (
            side,
            stranger,
        ):
            with pytest.raises(MuxedConnUnavailable):
                for number in range(1, 5000):
                    frame = control(Kind.OPEN, 2 * number, 0)
                    with suppress(trio.BrokenResourceError):
                        await stranger.send_all(frame)
                    await (await side.accept_stream()).reset()
            assert 1000 < number < 1100
        assert [type(error) for _, error in blamed] == [LimitExceeded]

    trio.run(main)


def test_streams_opened_and_reset_leave_nothing_and_are_dear():
    """The flood of CVE-2023-44487: no handler is started, the sender is blamed."""
    blamed = []

    async def main():
        async with facing_a_stranger(blame=lambda *told: blamed.append(told)) as (
            side,
            stranger,
        ):
            flood = b"".join(
                control(Kind.OPEN, 2 * number, 0) + control(Kind.RESET, 2 * number, 0)
                for number in range(1, 1 + 500)
            )
            await stranger.send_all(flood + control(Kind.OPEN, 1002, 0))
            assert (await side.accept_stream()).identity == 1002
            with pytest.raises(trio.BrokenResourceError):
                for start in range(1004, 40_000, 2):
                    await stranger.send_all(
                        control(Kind.OPEN, start, 0) + control(Kind.RESET, start, 0)
                    )
                    await trio.lowlevel.checkpoint()
            assert start < 10_000
        assert [type(error) for _, error in blamed] == [LimitExceeded]

    trio.run(main, clock=MockClock())


def test_a_flood_of_pings_ends_the_connection():
    blamed = []

    async def main():
        async with facing_a_stranger(blame=lambda *told: blamed.append(told)) as (
            side,
            stranger,
        ):
            with pytest.raises(trio.BrokenResourceError):
                for _ in range(80):
                    await stranger.send_all(control(Kind.PING, 0, 1) * 1500)
                    await wait_all_tasks_blocked()
            await side.event_closed.wait()
        assert [type(error) for _, error in blamed] == [LimitExceeded]

    trio.run(main, clock=MockClock())
