"""Groups and tiles of a model: golden layouts, rules of cutting, round trips."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.model import QueryKeyNorm, RopeKind, RopeScaling, TensorClass
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile import layout

VECTORS = Path(__file__).parents[2] / "vectors"


make_tile = SimpleNamespace(**runpy.run_path(str(VECTORS / "make_tile.py")))


def layout_with(architecture, **changes):
    changed = dataclasses.replace(architecture, **changes)
    return layout.layout_of(make_tile.model_of(changed))


def test_vectors():
    golden = json.loads((VECTORS / "tile_layout.json").read_text())
    assert make_tile.build_layout() == golden


def test_groups_of_the_demo():
    demo = layout_with(make_tile.DEMO)
    names = [group.name for group in demo.groups]
    assert names[:4] == ["embed", "layer0.trunk", "layer0.router", "layer0.expert0"]
    assert names[10:13] == ["layer0.expert7", "layer1.trunk", "layer1.router"]
    assert [group.index for group in demo.groups] == list(range(21))
    assert len(demo.expert_groups) == 16 and len(demo.shared_groups) == 5
    assert demo.group_named("layer1.expert3").expert == 3
    assert demo.group_named("layer1.router").layer == 1
    assert demo.group_named("embed").parameters == (
        "embed.weight",
        "head.weight",
        "final_norm.weight",
    )
    assert demo.parameters["layer0.expert0.down.weight"] == (256, 384)
    with pytest.raises(KeyError):
        demo.group_named("layer2.trunk")


def test_tied_embeddings_have_no_head():
    assert "head.weight" not in layout_with(make_tile.LARGE).parameters


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_tiles_are_nearly_square_where_they_can_be(rows, columns):
    down, across = layout._grid((rows, columns))
    whole = rows * columns <= 1_048_576
    for row0, row1 in layout._bands(rows, down):
        for col0, col1 in layout._bands(columns, across):
            tall, wide = row1 - row0, col1 - col0
            assert 1 <= tall * wide <= 1_048_576
            if not whole and min(rows, columns) >= 256:
                assert max(tall, wide) <= 4 * min(tall, wide)
            if across * down > 3_000:
                return
    assert not whole or (down, across) == (1, 1)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 40),
    st.integers(1, 900),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_split_and_join(vocabulary, width, expert_width, tied, seed):
    made = layout_with(
        make_tile.DEMO,
        vocabulary=vocabulary,
        width=width,
        expert_width=expert_width,
        tied_embeddings=tied,
        layers=1,
        experts=2,
    )
    generator = np.random.default_rng(seed)
    parameters = {
        name: generator.standard_normal(shape, np.float32)
        for name, shape in made.parameters.items()
    }
    joined = {}
    for group in made.groups:
        tiles = layout.split(group, parameters)
        assert [tile.shape for tile in tiles] == [tile.shape for tile in group.tiles]
        assert all(t.flags.c_contiguous and t.dtype == np.float32 for t in tiles)
        assert sum(tile.size for tile in tiles) == group.elements
        joined.update(layout.join(made, group, tiles))
    assert joined.keys() == parameters.keys()
    for name, array in parameters.items():
        assert (joined[name] == array).all()


def test_split_and_join_of_cut_matrices():
    made = layout_with(make_tile.LARGE, vocabulary=3001, width=1000)
    group = made.group_named("embed")
    table = np.arange(3_001_000, dtype=np.float32).reshape(3001, 1000)
    norm = np.ones(1000, np.float32)
    tiles = layout.split(group, {"embed.weight": table, "final_norm.weight": norm})
    assert [tile.shape[0] for tile in tiles[:-1]] == [1000, 1000, 1001]
    joined = layout.join(made, group, tiles)
    assert (joined["embed.weight"] == table).all()
    tiles[0][0, 0] = -1
    assert table[0, 0] == 0, "tiles are copies"
    with pytest.raises(ValueError):
        layout.join(made, group, tiles[:-1])
    with pytest.raises(ValueError):
        layout.join(made, group, [*tiles[:-1], tiles[0]])


def test_vectors_of_a_layer_are_one_tile_behind_the_matrices():
    trunk = layout_with(make_tile.DEMO).group_named("layer0.trunk")
    last = trunk.tiles[-1]
    assert last.tensor_class is TensorClass.VECTOR and last.shape == (512,)
    assert [piece.parameter for piece in last.pieces] == [
        "layer0.attention_norm.weight",
        "layer0.expert_norm.weight",
    ]


def test_norms_of_queries_and_keys_and_the_shared_expert_are_trunk():
    def trunk(**changes):
        made = layout_with(make_tile.DEMO, kv_heads=2, **changes)
        return made, made.group_named("layer1.trunk")

    for norm, lengths in (
        (QueryKeyNorm.HEAD, (64, 64)),
        (QueryKeyNorm.WIDTH, (256, 128)),
    ):
        made, group = trunk(query_key_norm=norm)
        for name, length in zip("qk", lengths):
            full = f"layer1.attention.{name}_norm.weight"
            assert made.parameters[full] == (length,)
        assert group.tiles[-1].shape == (512 + sum(lengths),)
    made, group = trunk(shared_width=100)
    assert made.parameters["layer1.shared.down.weight"] == (256, 100)
    assert len(group.tiles) == 4 + 3 + 1
    assert not any("shared" in name for name in trunk()[0].parameters)


def test_senseless_and_oversized_models_are_refused():
    for changes in (
        dict(width=0),
        dict(layers=0),
        dict(kv_heads=3),
        dict(experts_per_token=9),
        dict(head_width=63),
        dict(shared_gate=True),
        dict(dense_layers=(0,)),
        dict(dense_width=64),
        dict(dense_layers=(1, 1), dense_width=64),
        dict(dense_layers=(1, 0), dense_width=64),
        dict(dense_layers=(2,), dense_width=64),
        dict(dense_layers=(0, 1), dense_width=64),
        dict(rope=RopeScaling(RopeKind.LINEAR, 0)),
        dict(rope=RopeScaling(RopeKind.LINEAR, 1, original_context=1)),
        dict(rope=RopeScaling(RopeKind.LLAMA3, 1, 1, 1, 2, attention_ppb=1)),
        dict(rope=RopeScaling(RopeKind.LLAMA3, 1, 0, 1, 2)),
        dict(rope=RopeScaling(RopeKind.YARN, 1, 1, 2, 2)),
        dict(rope=RopeScaling(RopeKind.YARN, 1, 1, 0, 2)),
        dict(rope=RopeScaling(RopeKind.LINEAR, 1), rope_base=1),
        dict(rope_base=0),
    ):
        with pytest.raises(DecodeError):
            layout_with(make_tile.DEMO, **changes)
    for changes in (
        dict(layers=65_535, experts=65_535),
        dict(vocabulary=2**32 - 1),
        dict(width=2**32 - 1),
        dict(expert_width=2**32 - 1),
        dict(width=2**21, vocabulary=8, heads=1, kv_heads=1, head_width=2),
    ):
        with pytest.raises(LimitExceeded):
            layout_with(make_tile.DEMO, **changes)


def test_a_dense_layer_has_neither_router_nor_experts():
    odd = layout_with(make_tile.ODD)
    assert [group.name for group in odd.groups] == [
        "embed",
        "layer0.trunk",
        "layer1.trunk",
        "layer1.router",
        "layer1.expert0",
        "layer1.expert1",
    ]
    assert odd.parameters["layer0.dense.down.weight"] == (96, 160)
    assert odd.parameters["layer1.shared_gate.weight"] == (1, 96)
    assert "layer0.shared.up.weight" not in odd.parameters
    assert odd.parameters["layer0.attention.o.bias"] == (96,)


def test_group_root_depends_on_every_tile_and_its_place():
    one, two = bytes(32), b"\1" * 32
    roots = {
        layout.group_root(tiles)
        for tiles in ([one], [two], [one, two], [two, one], [one, one])
    }
    assert len(roots) == 5
