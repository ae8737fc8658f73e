"""Fetching blobs: one peer that stays silent costs its own blobs their time only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from blyan_tile import tblock
from blyan_tile.tblock import Outline
from blyand.compute import Threads
from blyand.errors import NotHere, Pruned, TooSlow
from blyand.protocols import fetch
from blyand.protocols.fetch import Fetcher
from blyand.store.blobs import BlobStore

SLOW_S = 6.0


class Peers:
    """Stands for the blobs client: `silent` never answers, the others have `bodies`."""

    def __init__(self, *bodies: bytes) -> None:
        arrays = [tblock.bytes_array(body) for body in bodies]
        self.bodies = {tblock.root_of(a): body for a, body in zip(arrays, bodies)}
        self.asked: list[tuple[str, bytes]] = []
        self.most_silent = self._silent = 0
        self.pruned = False

    @asynccontextmanager
    async def open(self, peer: str, blob: bytes) -> AsyncIterator[Peers.Talk]:
        self.asked.append((peer, blob))
        yield Peers.Talk(self, peer, blob)

    class Talk:
        def __init__(self, peers: Peers, peer: str, blob: bytes) -> None:
            self.peers, self.peer, self.blob = peers, peer, blob

        async def outline(self) -> Outline:
            if self.peer == "silent":
                await self.peers.say_nothing()
            if self.peers.pruned:
                raise Pruned("dropped")
            if self.blob not in self.peers.bodies:
                raise NotHere("never had it")
            return tblock.outline_of(tblock.bytes_array(self.peers.bodies[self.blob]))

        async def ask(self, first: int, count: int) -> None: ...

        async def leaf(self, index: int, room: memoryview) -> None:
            room[:] = self.peers.bodies[self.blob]

    async def say_nothing(self) -> None:
        self._silent += 1
        self.most_silent = max(self.most_silent, self._silent)
        try:
            await trio.sleep(SLOW_S)
        finally:
            self._silent -= 1
        raise TooSlow("nothing")


def running(tmp_path: Path, peers: Peers, act: Callable, *, serve: bool = True) -> None:
    async def main() -> None:
        store = BlobStore(tmp_path)
        lane = Threads("disk", 1)
        fetcher = Fetcher(peers, store, lane, lambda: ["silent", "honest"])
        async with trio.open_nursery() as nursery:
            if serve:
                await nursery.start(fetcher.run)
            await act(fetcher, store)
            nursery.cancel_scope.cancel()
        store.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.02))


def test_a_silent_peer_is_passed_over_and_goes_last_from_then_on(tmp_path: Path):
    peers = Peers(b"one", b"two")
    first, second = peers.bodies

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        await fetcher.get(first)
        assert [peer for peer, _ in peers.asked] == ["silent", "honest"]
        await fetcher.get(second, ["silent"])
        assert [peer for peer, _ in peers.asked[2:]] == ["honest"]
        with pytest.raises(NotHere):
            await fetcher.get(bytes(32))

    running(tmp_path, peers, act)


def test_wants_of_a_silent_author_leave_room_for_others(tmp_path: Path):
    peers = Peers(b"good")
    (good,) = peers.bodies

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        for number in range(100):
            fetcher.want(bytes([number]) * 32, ["silent"])
        fetcher.want(good, ["honest"])
        with trio.fail_after(SLOW_S / 2):
            while not store.has(good):
                await trio.sleep(0.05)
        assert peers.most_silent <= fetch.MAX_WANTED_PER_HINT

    running(tmp_path, peers, act)


def test_a_want_that_nobody_renews_is_given_up(tmp_path: Path):
    peers = Peers()
    renewed, forgotten = b"\1" * 32, b"\2" * 32

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        fetcher.want(forgotten)
        until = trio.current_time() + 3 * fetch.WANTED_S
        while trio.current_time() < until:
            fetcher.want(renewed)
            await trio.sleep(20)
        peers.asked.clear()
        for _ in range(4):
            fetcher.want(renewed)
            await trio.sleep(5)
        asked = {blob for _, blob in peers.asked}
        assert asked == {renewed}

    running(tmp_path, peers, act)


def test_a_fetch_goes_on_for_others_when_its_first_asker_is_cancelled(tmp_path: Path):
    peers = Peers(b"one")
    (blob,) = peers.bodies

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        async def first() -> None:
            with trio.move_on_after(SLOW_S / 2):  # while the silent peer is asked
                await fetcher.get(blob)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            await fetcher.get(blob, ["honest"])
        assert store.has(blob)
        assert [peer for peer, _ in peers.asked] == ["silent", "honest"]

    running(tmp_path, peers, act)


@pytest.mark.parametrize(("hints", "most"), [((), 2), (("another",), 5)])
def test_who_waited_in_vain_asks_again_only_if_it_knows_others(tmp_path, hints, most):
    peers = Peers()

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        async def get(*hints: str) -> None:
            with pytest.raises(NotHere):
                await fetcher.get(bytes(32), hints)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(get, *hints)
        assert len(peers.asked) == most

    running(tmp_path, peers, act)


def test_the_rarest_are_fetched_first_and_the_unknown_before_the_common(tmp_path):
    bodies = [bytes([number]) for number in range(5)]
    peers = Peers(*bodies)
    common, rare, unknown, tried, widespread = peers.bodies
    known = {common: 5, rare: 1, tried: 1, widespread: 9}

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        fetcher._providers = lambda blob: known.get(blob, 0)
        for blob in peers.bodies:
            fetcher.want(blob, [])
        fetcher._wanted[tried].tries = 1
        begun = [blob for blob, _ in fetcher._ripe(trio.current_time())]
        assert begun == [rare, unknown, common, widespread, tried]

    running(tmp_path, peers, act, serve=False)


def test_what_peers_pruned_is_asked_for_less_often(tmp_path: Path):
    peers = Peers()

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        until = trio.current_time() + 3 * fetch.PRUNED_AGAIN_S
        peers.pruned = True
        while trio.current_time() < until:
            fetcher.want(b"\1" * 32, ["honest"])
            await trio.sleep(5)
        assert 2 <= sum(peer == "honest" for peer, _ in peers.asked) <= 4

    running(tmp_path, peers, act)


def test_a_blob_of_more_bytes_than_was_said_is_not_fetched(tmp_path: Path):
    peers = Peers(b"a long one")
    (blob,) = peers.bodies

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        with pytest.raises(NotHere):
            await fetcher.get(blob, ["honest"], most_bytes=9)
        await fetcher.get(blob, ["honest"], most_bytes=10)

    running(tmp_path, peers, act)


def test_nobody_else_is_asked_where_only_some_are_to_be(tmp_path: Path):
    peers = Peers(b"one")
    (blob,) = peers.bodies

    async def act(fetcher: Fetcher, store: BlobStore) -> None:
        with pytest.raises(NotHere):
            await fetcher.get(blob, ["silent"], only=True)
        assert [peer for peer, _ in peers.asked] == ["silent"]
        await fetcher.get(blob, ["honest"], only=True)

    running(tmp_path, peers, act)
