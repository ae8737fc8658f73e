"""One blob from several donors: work is shared, lies cost one leaf, silence little."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import trio

from blyan_proto.codec import encode
from blyan_proto.constants import LEAF_BYTES
from blyan_proto.framing import frame
from blyan_proto.protocols.blobs import LEAF_S, REQUEST, GetLeaves, Leaf
from blyand.errors import Busy, NotHere, Pruned, StorageFault
from blyand.net.stream import MessageStream
from blyand.protocols.uploads import Uploads
from blyand.rules.net.candidates import MAX_GUESSES
from blyand.rules.net.uploads import UploadLimits
from blyand.store.blobs import BlobStore
from tests.unit.daemon.donor_world import (
    CONTENT,
    LEAVES,
    World,
    answer,
    lying,
    running,
    truly,
)


async def fetched(world: World, *hints: str) -> float:
    """Fetch the blob, look at it, and return how long it took."""
    began_s = trio.current_time()
    await world.fetcher.get(world.blob, hints)
    assert np.array_equal(world.here.open_array(world.blob), CONTENT)
    return trio.current_time() - began_s


def test_several_donors_share_the_work(tmp_path: Path):
    async def act(world: World) -> None:
        rate = UploadLimits(rate=8 * LEAF_BYTES)
        for name in "abc":
            world.honest(name, uploads=Uploads(rate))
        seconds = await fetched(world)
        assert all(world.given[name] >= LEAVES // 6 for name in "abc")
        assert seconds < 0.6 * LEAVES / 8
        assert world.count("kept") == LEAVES and not world.blamed
        assert all(world.opened[name] == 1 for name in "abc")

    running(tmp_path, act)


def test_a_donor_at_the_end_of_a_long_road_is_asked_ahead(tmp_path: Path):
    """Every answer leaves a second after its question came: two are on the road."""

    async def act(world: World) -> None:
        async def far(stream: MessageStream) -> None:
            put, take = trio.open_memory_channel[tuple[float, GetLeaves]](100)

            async def listen() -> None:
                async with put:
                    while raw := await stream.receive_or_end(128, 60):
                        asked = REQUEST.decode(raw, 128)
                        await put.send((trio.current_time() + 1, asked))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                async for due_s, asked in take:
                    await trio.sleep_until(due_s)
                    await answer(world, stream, asked, truly)

        world.donors["far"] = far
        seconds = await fetched(world)
        assert 3 <= seconds <= 5  # one after the other it would be seven
        assert world.opened == {"far": 1} and not world.count("twice")

    running(tmp_path, act)


@pytest.mark.parametrize("at", [0, 7, LEAVES - 1])
def test_a_corrupt_leaf_costs_one_fetch_and_its_donor(tmp_path: Path, at: int):
    async def act(world: World) -> None:
        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            if index >= at:
                body = bytes([body[0] ^ 1]) + body[1:]
            await truly(stream, index, body)

        world.donors["liar"] = lying(world, leaf)
        world.found = ["honest"]
        world.honest("honest")
        await fetched(world)
        assert world.blamed == [("liar", "BadProof")]
        assert world.opened["liar"] == 1  # and never again for this blob
        assert world.count("false") == 1
        assert world.count("kept") == LEAVES

    running(tmp_path, act)


def other_leaf(index: int, body: bytes) -> Leaf:
    return Leaf(index + 1, body)


def short_leaf(index: int, body: bytes) -> Leaf:
    return Leaf(index, body[:-1])


@pytest.mark.parametrize("lie", [other_leaf, short_leaf])
def test_a_leaf_that_was_not_asked_for_costs_its_donor(tmp_path: Path, lie):
    async def act(world: World) -> None:
        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            await stream.send_message(lie(index, body))

        world.donors["liar"] = lying(world, leaf)
        world.honest("honest")
        await fetched(world, "liar")
        assert world.blamed == [("liar", "UnexpectedMessage")]
        assert world.given["honest"] == LEAVES and world.opened["liar"] == 1

    running(tmp_path, act)


def test_a_leaf_that_is_too_long_is_not_read(tmp_path: Path):
    async def act(world: World) -> None:
        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            await stream.send(bytes(LEAF_BYTES + 100))

        world.donors["liar"] = lying(world, leaf)
        world.honest("honest")
        await fetched(world, "liar")
        assert world.blamed == [("liar", "LimitExceeded")]

    running(tmp_path, act)


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (lambda o: dataclasses.replace(o, leaves=o.leaves[::-1]), "BadProof"),
        (lambda o: dataclasses.replace(o, leaves=o.leaves[:-1]), "DecodeError"),
        (lambda o: dataclasses.replace(o, header=bytes(128)), "DecodeError"),
        (lambda o: dataclasses.replace(o, quant=b"x"), "DecodeError"),
    ],
)
def test_an_outline_that_lies_costs_its_donor(tmp_path: Path, lie, error: str):
    async def act(world: World) -> None:
        world.donors["liar"] = lying(world, truly, lie)
        world.honest("honest")
        await fetched(world, "liar")
        assert world.blamed == [("liar", error)] and world.opened["liar"] == 1

    running(tmp_path, act)


@pytest.mark.parametrize("given", [0, 5])
def test_silence_in_the_middle_is_bridged_by_another(tmp_path: Path, given: int):
    async def act(world: World) -> None:
        left = given

        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            nonlocal left
            if not left:
                await trio.sleep_forever()
            left -= 1
            await truly(stream, index, body)

        world.donors["silent"] = lying(world, leaf)
        world.honest("honest")
        seconds = await fetched(world, "silent")
        assert seconds < 5 and not world.blamed
        assert world.given["honest"] >= LEAVES - given

    running(tmp_path, act)


def test_a_donor_that_trickles_is_replaced(tmp_path: Path):
    """Bytes come, so that it is not silent, but fewer than the floor."""

    async def act(world: World) -> None:
        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            await stream.flush()
            raw = frame(encode(Leaf(index, body)))
            for place in range(0, len(raw), 1024):
                await stream._transport.write(raw[place : place + 1024])
                await trio.sleep(1)

        world.donors["trickler"] = lying(world, leaf)
        with pytest.raises(NotHere):
            await world.fetcher.get(world.blob)
        assert trio.current_time() < 2 * LEAF_S
        world.honest("honest")
        assert await fetched(world, "trickler") < 5
        assert not world.blamed

    running(tmp_path, act)


@pytest.mark.parametrize("count", [4, 6])
def test_slow_donors_together_do_not_keep_a_quick_one_out(tmp_path: Path, count: int):
    """Each gives more than the floor; a quick one that nobody named is tried all the same."""

    async def act(world: World) -> None:
        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            await stream.flush()
            await trio.sleep(8)
            await truly(stream, index, body)

        slow = [f"slow{number}" for number in range(count)]
        world.donors = {name: lying(world, leaf) for name in slow}
        world.honest("honest")
        assert await fetched(world, *slow) < 20
        assert world.given["honest"] > LEAVES // 2
        assert not world.blamed

    running(tmp_path, act)


def test_slow_donors_are_good_enough_where_there_are_no_others(tmp_path: Path):
    async def act(world: World) -> None:
        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            await stream.flush()
            await trio.sleep(3)
            await truly(stream, index, body)

        for number in range(6):
            world.donors[f"slow{number}"] = lying(world, leaf)
        for number in range(12):
            world.honest(f"empty{number}", store=BlobStore(tmp_path / "empty"))
        assert await fetched(world) < 3 * LEAVES
        assert not world.blamed

    running(tmp_path, act)


def test_endless_busy_ends_and_another_is_used(tmp_path: Path):
    async def act(world: World) -> None:
        full = Uploads(UploadLimits(places=1))
        held = full.place("somebody")
        held.__enter__()
        world.honest("busy", uploads=full)
        with pytest.raises(Busy):
            await world.fetcher.get(world.blob)
        assert 5 < trio.current_time() < 60
        world.honest("honest")
        assert await fetched(world, "busy") < 1
        held.__exit__(None, None, None)

    running(tmp_path, act)


def test_who_is_busy_for_a_while_is_asked_again(tmp_path: Path):
    async def act(world: World) -> None:
        full = Uploads(UploadLimits(places=1))
        world.honest("busy", uploads=full)

        async def release() -> None:
            with full.place("somebody"):
                await trio.sleep(2)

        world.nursery.start_soon(release)
        await trio.testing.wait_all_tasks_blocked()
        assert await fetched(world) < 5

    running(tmp_path, act)


def test_pruned_is_another_answer_than_absent(tmp_path: Path):
    async def act(world: World) -> None:
        async def pruned(stream: MessageStream) -> None:
            await stream.receive(128, 5)
            raise Pruned("after its retention")

        world.honest("empty", store=BlobStore(tmp_path / "empty"))
        with pytest.raises(NotHere):
            await world.fetcher.get(world.blob)
        world.donors["pruned"] = pruned
        with pytest.raises(Pruned):
            await world.fetcher.get(world.blob)
        assert world.opened == {"empty": 2, "pruned": 1}
        world.honest("archive")
        await fetched(world)
        assert not world.blamed

    running(tmp_path, act)


def test_when_all_are_gone_others_are_found(tmp_path: Path):
    async def act(world: World) -> None:
        left = 9

        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            nonlocal left
            if not left:
                raise NotHere("it is lost here")
            left -= 1
            await truly(stream, index, body)

        world.donors["dying"] = lying(world, leaf)
        world.found = ["far"]
        world.honest("far")
        await fetched(world)
        assert world.sought == 1 and world.given["far"] == LEAVES - 9
        assert world.opened["dying"] == 2  # it had given some: once more

    running(tmp_path, act)


def test_what_came_is_kept_when_nobody_is_left(tmp_path: Path):
    async def act(world: World) -> None:
        left = 9

        async def leaf(stream: MessageStream, index: int, body: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise NotHere("it is lost here")
            await truly(stream, index, body)

        world.donors["dying"] = lying(world, leaf)
        with pytest.raises(NotHere):
            await world.fetcher.get(world.blob)
        del world.donors["dying"]
        world.honest("honest")
        await fetched(world)
        assert world.given["honest"] == LEAVES - 9

    running(tmp_path, act)


def test_not_every_connected_peer_is_bothered(tmp_path: Path):
    async def act(world: World) -> None:
        empty = BlobStore(tmp_path / "empty")
        world.honest("honest", uploads=Uploads(UploadLimits(rate=LEAF_BYTES)))
        for number in range(40):
            world.honest(f"empty{number}", store=empty)
        await fetched(world, "honest")
        assert len(world.opened) <= 1 + MAX_GUESSES

    running(tmp_path, act)


def test_a_full_disk_ends_the_fetch_as_it_is(tmp_path: Path, monkeypatch):
    async def act(world: World) -> None:
        world.honest("honest")

        def full(*_: object) -> None:
            raise StorageFault("cannot write: No space left on device")

        monkeypatch.setattr(world.here._medium, "write", full)
        with pytest.raises(StorageFault):
            await world.fetcher.get(world.blob)

    running(tmp_path, act)


def test_an_empty_blob_needs_no_leaf(tmp_path: Path):
    async def act(world: World) -> None:
        world.honest("honest")
        empty = world.source.put_bytes(b"")
        await world.fetcher.get(empty)
        assert world.here.has(empty)

    running(tmp_path, act)
