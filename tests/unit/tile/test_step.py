"""Sequences that pass the layers together: each gets what it would get alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blyan_proto.block.model import Architecture, QueryKeyNorm
from blyan_proto.errors import LimitExceeded
from blyan_tile.create import architecture_of
from blyan_tile.model.attention import attention, glances, look
from blyan_tile.model.cache import KeyValueCache, cache_bytes
from blyan_tile.model.transformer import LocalModel, Part
from tests.unit.tile.test_model import parameters_of

torch.set_num_threads(1)  # these tensors are tiny

TINY = replace(architecture_of("tiny"), context=512)
GROUPED = replace(TINY, kv_heads=2, normalise_top_k=False, tied_embeddings=True)
NORMED = replace(TINY, query_key_norm=QueryKeyNorm.HEAD, shared_width=48)
WINDOWED = replace(GROUPED, attention_window=100)
ARCHITECTURES = [TINY, GROUPED, NORMED, WINDOWED]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states(model: LocalModel, hidden: Tensor, sizes: list[int]) -> Tensor:
    """Run hidden (T, d) alone, in pieces of these sizes."""
    cache = model.trunk.new_cache(len(hidden))
    made = []
    for piece in torch.split(hidden, sizes):
        step = model.trunk.step([Part(cache, len(piece))], 0)
        layers = model.trunk.architecture.layers
        made.append(model.trunk.run(0, layers, piece, step, model._expert))
    return torch.cat(made)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pieces_do_not_matter(architecture: Architecture) -> None:
    model = LocalModel(architecture, parameters_of(architecture))
    hidden = model.trunk.embed(torch.arange(200) % 251)  # (T, d)
    whole = states(model, hidden, [200])
    for sizes in (
        [64, 64, 72],
        [50] * 4,
        [70, 60, 70],
        [1] * 70 + [130],
        [199, 1],
        [3, 97, 5, 95],
    ):
        assert torch.equal(states(model, hidden, sizes), whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_company_does_not_matter(architecture: Architecture) -> None:
    """Three sequences of different age in common steps, one of them 1000 times larger."""
    model = LocalModel(architecture, parameters_of(architecture))
    lengths = [150, 90, 40]
    hidden = [
        drawn(length, architecture.width, seed=i) for i, length in enumerate(lengths)
    ]
    hidden[1] *= 1000
    alone = [states(model, one, [len(one)]) for one in hidden]
    caches = [model.trunk.new_cache(length) for length in lengths]
    together: list[list[Tensor]] = [[], [], []]
    done = [0, 0, 0]
    turns = 0
    while any(at < length for at, length in zip(done, lengths)):
        wanted = [(7, 30), (64, 1), (1, 11)]  # tokens of each, by turns
        sizes = [min(w[turns % 2], n - at) for w, n, at in zip(wanted, lengths, done)]
        parts = [(i, size) for i, size in enumerate(sizes) if size]
        rows = torch.cat([hidden[i][done[i] : done[i] + size] for i, size in parts])
        step = model.trunk.step([Part(caches[i], size) for i, size in parts], 0)
        made = model.trunk.run(0, architecture.layers, rows, step, model._expert)
        for (i, size), piece in zip(parts, torch.split(made, [n for _, n in parts])):
            together[i].append(piece)
            done[i] += size
        turns += 1
    for one, pieces in zip(alone, together):
        assert torch.equal(torch.cat(pieces), one)


@pytest.mark.parametrize("window", [0, 1, 50, 64, 100])
def test_a_glance_sees_what_attention_sees(window: int) -> None:
    query, keys, values = (drawn(8 // n, 150, 16, seed=n) for n in (1, 2, 4))
    values = drawn(4, 150, 16, seed=9)
    keys = drawn(4, 150, 16, seed=8)
    wanted = attention(query[None], keys[None], values[None], window)[0]  # (T, H * w)
    stored = torch.zeros(2, 4, 192, 16)
    stored[0, :, :150], stored[1, :, :150] = keys, values
    looks = glances(0, 150, 2, window, torch.device("cpu"))
    got = torch.cat(
        [
            look(
                query[:, one.start : one.end].transpose(0, 1),
                stored[:, :, one.keys_start : one.keys_end],
                one.mask,
            )
            for one in looks
        ]
    )
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("architecture", [TINY, WINDOWED])
def test_a_sequence_goes_on_from_another_ones_beginning(
    architecture: Architecture,
) -> None:
    model = LocalModel(architecture, parameters_of(architecture))
    tokens = torch.arange(400) % 251
    before, after = model.trunk.new_cache(400), model.trunk.new_cache(400)
    model.forward(tokens, before)
    assert before.keeps(390) and not before.keeps(401)
    after.copy(before, 390)
    whole = model.forward(tokens[390:], after)
    assert after.tokens == 400
    before.rewind(390)
    assert torch.equal(whole, model.forward(tokens[390:], before))


def test_a_cache_grows_as_it_fills_and_keeps_its_layers() -> None:
    cache = KeyValueCache(TINY, 300, first=1)
    assert cache.bytes == 0 and cache.tokens == 0
    rows = drawn(2, TINY.kv_heads, 300, TINY.head_width)
    cache.append(1, rows[:, :, :1])
    assert cache.bytes == cache_bytes(TINY, 1, 1) == cache_bytes(TINY, 64, 1)
    cache.append(1, rows[:, :, 1:])
    assert cache.bytes == cache_bytes(TINY, 300, 1)
    seen = cache.seen(1, 0, 320)  # (2, G, S, w)
    assert torch.equal(seen[:, :, :300], rows)
    assert not seen[:, :, 300:].any()
    with pytest.raises(LimitExceeded):
        cache.append(1, rows[:, :, :1])
    cache.rewind(10)
    assert cache.length(1) == 10


def test_a_window_bounds_the_memory_and_how_far_one_can_go_back() -> None:
    shape = replace(WINDOWED, context=4096)
    cache = KeyValueCache(shape, 4096, first=1)
    rows = drawn(2, shape.kv_heads, 4096, shape.head_width)
    for piece in torch.split(rows, 61, dim=2):
        cache.append(1, piece)
        assert cache.bytes <= cache_bytes(shape, 4096, 1) < cache_bytes(TINY, 1024, 1)
    cache.rewind(4096 - 256)
    assert torch.equal(cache.seen(1, 3712, 3840), rows[:, :, 3712:3840])
    assert cache.keeps(3840) and not cache.keeps(1000)
    with pytest.raises(LimitExceeded, match="no longer kept"):
        cache.rewind(1000)


def test_a_window_that_drops_pages_changes_nothing() -> None:
    shape = replace(WINDOWED, attention_window=30, context=1100)
    model = LocalModel(shape, parameters_of(shape))
    hidden = model.trunk.embed(torch.arange(1100) % 251)  # (T, d)
    whole = states(model, hidden, [1100])
    assert torch.equal(states(model, hidden, [200, 250, 1, 256, 140, 13, 240]), whole)
    cache = model.trunk.new_cache(1100)
    assert cache_bytes(shape, 1100, 1) < cache_bytes(TINY, 1100, 1)
    for piece in torch.split(hidden, 190):
        step = model.trunk.step([Part(cache, len(piece))], 0)
        model.trunk.run(0, shape.layers, piece, step, model._expert)
    cache.rewind(900)  # as far as one can go back
    step = model.trunk.step([Part(cache, 200)], 0)
    again = model.trunk.run(0, shape.layers, hidden[900:], step, model._expert)
    assert torch.equal(again, whole[900:])
