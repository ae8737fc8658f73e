"""Facts: typed, bounded, never blocking the publisher."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from blyand.events import Broadcast, FellBehind, PeerJoined, PeerLeft


def test_subscribers_get_their_types_in_order() -> None:
    async def main() -> None:
        events = Broadcast()
        events.publish(PeerJoined("before"))
        with events.subscribe(PeerJoined, PeerLeft) as both:
            with events.subscribe(PeerLeft) as left:
                for fact in (PeerJoined("a"), PeerLeft("a"), PeerJoined("b")):
                    events.publish(fact)
                assert [await both.receive() for _ in range(3)] == [
                    PeerJoined("a"),
                    PeerLeft("a"),
                    PeerJoined("b"),
                ]
                assert await left.receive() == PeerLeft("a")
            events.publish(PeerLeft("b"))
            with pytest.raises(trio.ClosedResourceError):
                await left.receive()

    trio.run(main)


def test_a_reader_waits_for_the_next_fact() -> None:
    async def main() -> None:
        events = Broadcast()
        seen: list[str] = []

        async def read() -> None:
            async with events.subscribe(PeerJoined) as facts:
                async for fact in facts:
                    seen.append(fact.peer)
                    if fact.peer == "last":
                        return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            for peer in ("a", "b"):
                events.publish(PeerJoined(peer))
                await trio.testing.wait_all_tasks_blocked()
            assert seen == ["a", "b"]
            events.publish(PeerJoined("last"))
        events.publish(PeerJoined("nobody listens"))

    trio.run(main)


def test_overflow_is_the_subscribers_choice() -> None:
    async def main() -> None:
        events = Broadcast()
        oldest = events.subscribe(PeerJoined, capacity=2)
        newest = events.subscribe(PeerJoined, capacity=2, overflow="drop_newest")
        strict = events.subscribe(PeerJoined, capacity=2, overflow="fail")
        for peer in "abc":
            events.publish(PeerJoined(peer))
        assert [(await oldest.receive()).peer for _ in range(2)] == ["b", "c"]
        assert [(await newest.receive()).peer for _ in range(2)] == ["a", "b"]
        assert (oldest.dropped, newest.dropped) == (1, 1)
        for _ in range(2):
            with pytest.raises(FellBehind):
                await strict.receive()
        with pytest.raises(ValueError):
            events.subscribe(capacity=1)

    trio.run(main)


def test_closing_wakes_the_reader() -> None:
    async def main() -> None:
        facts = Broadcast().subscribe(PeerJoined)

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await facts.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            facts.close()
            facts.close()

    trio.run(main)
