"""What peers take from us in bulk: within the limits, fairly, counted; BUSY beyond."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from blyan_proto.constants import LEAF_BYTES
from blyand.errors import Busy
from blyand.metrics import Metrics
from blyand.protocols.blobs import FIRST_WORD_S, Client, Conversation
from blyand.protocols.uploads import Uploads
from blyand.rules.net.uploads import UploadLimits
from tests.unit.daemon.donor_world import LEAVES, World, running


def served(world: World, limits: UploadLimits) -> Metrics:
    metrics = Metrics()
    world.honest("donor", uploads=Uploads(limits, metrics))
    return metrics


async def take(asking: Conversation, first: int, count: int) -> None:
    room = memoryview(bytearray(LEAF_BYTES))
    await asking.ask(first, count)
    for index in range(first, first + count):
        await asking.leaf(index, room)


def test_a_rate_holds_and_is_shared_by_all_who_take(tmp_path: Path):
    async def act(world: World) -> None:
        metrics = served(world, UploadLimits(rate=4 * LEAF_BYTES))
        done = []

        async def client(name: str, streams: int) -> None:
            world.me = name
            for _ in range(streams):
                world.nursery.start_soon(one, name)
                await trio.testing.wait_all_tasks_blocked()

        async def one(name: str) -> None:
            async with Client(world).open("donor", world.blob) as asking:
                await take(asking, 0, 8)
                done.append((trio.current_time(), name))

        await client("many", 3)
        await client("one", 1)
        while len(done) < 4:
            await trio.sleep(0.1)
        assert 0.9 * 32 / 4 <= trio.current_time() <= 1.1 * 32 / 4 + 0.5
        assert done[0][1] == "one" and done[0][0] <= 0.6 * done[-1][0]
        sent = metrics.counter("blyan_blob_upload_bytes").value
        assert 32 * LEAF_BYTES < sent < 32 * (LEAF_BYTES + 16)
        assert metrics.gauge("blyan_blob_uploads").value == 0
        counts, seconds = metrics.histogram("blyan_blob_upload_wait_seconds").read()
        assert counts[-1] == 32 and seconds > 1

    running(tmp_path, act)


def test_beyond_its_places_a_peer_is_told_busy_and_small_things_pass(tmp_path: Path):
    async def act(world: World) -> None:
        metrics = served(world, UploadLimits(places=1, rate=LEAF_BYTES))

        async def hold() -> None:
            async with Client(world).open("donor", world.blob) as asking:
                await take(asking, 0, 4)

        world.nursery.start_soon(hold)
        await trio.sleep(1)
        with pytest.raises(Busy):
            async with Client(world).open("donor", world.blob) as asking:
                await take(asking, 0, 1)
        assert metrics.counter("blyan_blob_uploads_refused").value == 1
        await trio.sleep(10)
        async with Client(world).open("donor", world.blob) as asking:
            began_s = trio.current_time()
            for _ in range(5):
                await asking.outline()
            assert trio.current_time() == began_s
        assert metrics.gauge("blyan_blob_uploads").value == 0

    running(tmp_path, act)


def test_a_thin_line_is_not_taken_for_silence(tmp_path: Path):
    """OK comes at once though the leaf has to wait its turn for longer than OK may."""

    async def act(world: World) -> None:
        served(world, UploadLimits(rate=LEAF_BYTES // 10))
        async with Client(world).open("donor", world.blob) as asking:
            for index in range(3):
                began_s = trio.current_time()
                await take(asking, index, 1)
            assert trio.current_time() - began_s > FIRST_WORD_S

    running(tmp_path, act)


def test_a_refusal_after_answers_is_still_an_answer(tmp_path: Path):
    """The second request of a stream is refused in words, not by a reset."""

    async def act(world: World) -> None:
        full = Uploads(UploadLimits(places=1))
        world.honest("donor", uploads=full)
        async with Client(world).open("donor", world.blob) as asking:
            outline = await asking.outline()
            assert len(outline.leaves) == LEAVES
            with full.place("somebody"), pytest.raises(Busy):
                await take(asking, 0, 1)

    running(tmp_path, act)
