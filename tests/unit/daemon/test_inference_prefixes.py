"""What is kept of earlier answers: whose, how much, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch
import trio

from blyan_tile.model.cache import KeyValueCache, cache_bytes
from blyand.compute import Threads
from blyand.errors import Busy
from blyand.inference.prefixes import MAX_OF_OWNER, Name, Prefixes
from blyand.inference.room import Room
from blyand.metrics import Metrics
from tests.unit.daemon.inference_world import (
    TINY,
    Net,
    Node,
    World,
    prompt,
    running,
)

ME, OTHER = Name(b"me", b"1", 0), Name(b"other", b"1", 0)


def filled(tokens):
    cache = KeyValueCache(TINY, TINY.context)
    for layer in range(TINY.layers):
        shape = 2, TINY.kv_heads, tokens, TINY.head_width
        cache.append(layer, torch.randn(shape))
    return cache


def made(budget_bytes=1 << 20):
    metrics = Metrics()
    room = Room(budget_bytes, metrics)
    return room, Prefixes(room, Threads("x", 1), metrics), metrics


def test_the_longest_beginning_of_the_same_owner_is_taken():
    async def main():
        room, prefixes, metrics = made()
        prefixes.keep(ME, range(20), filled(20))
        longer = filled(40)
        prefixes.keep(ME, range(40), longer)  # replaces what it begins with
        prefixes.keep(ME, [*range(30), 7, *range(31, 60)], filled(60))
        assert room.left == room.budget_bytes - longer.bytes - filled(60).bytes
        cache = KeyValueCache(TINY, TINY.context)
        assert await prefixes.recall(ME, list(range(50)), cache) == 40
        assert cache.tokens == 40
        assert torch.equal(
            cache.seen(1, 0, 64)[:, :, :40], longer.seen(1, 0, 64)[:, :, :40]
        )
        for stranger in (OTHER, Name(b"me", b"2", 0), Name(b"me", b"1", 1)):
            fresh = KeyValueCache(TINY, TINY.context)
            assert await prefixes.recall(stranger, list(range(50)), fresh) == 0
        assert metrics.snapshot()["inference_prefix_hits"] == 1
        assert metrics.snapshot()["inference_prefix_tokens"] == 40

    trio.run(main)


def test_what_is_kept_gives_way_to_what_is_needed():
    page = cache_bytes(TINY, 64, TINY.layers)
    room, prefixes, metrics = made(3 * page)
    prefixes.keep(ME, range(20), filled(20))
    prefixes.keep(OTHER, range(20), filled(20))
    assert room.left == page
    with room.take(2 * page):  # the older one goes
        assert metrics.snapshot()["inference_prefix_evictions"] == 1
        prefixes.keep(ME, range(100, 130), filled(30))
        assert metrics.snapshot()["inference_prefix_evictions"] == 2
        with pytest.raises(Busy, match="keys and values"):
            room.claim(2 * page)
        assert metrics.snapshot()["inference_prefix_bytes"] == 0  # in vain, but tried
    prefixes.keep(ME, range(10), filled(10))  # too short to be worth it
    assert room.left == room.budget_bytes


def test_an_owner_keeps_so_many():
    room, prefixes, metrics = made(1 << 30)
    for start in range(MAX_OF_OWNER + 5):
        prefixes.keep(ME, range(start, start + 20), filled(20))
    page = cache_bytes(TINY, 64, TINY.layers)
    assert room.budget_bytes - room.left == MAX_OF_OWNER * page


def test_a_conversation_goes_on_without_its_past():
    async def main():
        world = World()
        node = Node(world, Net(), "whole", world.all_experts())
        asked = prompt(40)
        async with running(node):
            tokens, _ = await node.generate(asked, 10, owner=b"me")
            said = asked + tokens + prompt(7, seed=3)
            for owner, hits in ((b"me", 1), (b"you", 1), (b"", 1), (b"me", 2)):
                more, _ = await node.generate(said, 10, owner=owner)
                assert more == world.locally(said, 10)
                assert node.metrics.snapshot()["inference_prefix_hits"] == hits
            assert node.metrics.snapshot()["inference_prefix_tokens"] == 49 + 56
            world.adopt(2)  # other weights: nothing of the old ones is used
            node.finalised()
            more, _ = await node.generate(said, 10, owner=b"me")
            assert more == world.locally(said, 10)
            assert node.metrics.snapshot()["inference_prefix_hits"] == 2

    trio.run(main)
