"""A group from version to version, as an update block defines it."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from blyan_proto.block import sending
from blyan_proto.block.model import Codec, CodecChoice, RateStep, Run, TensorClass
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile import compress, delta, layout, outer
from blyan_tile.aggregate import weighted_sum

VECTORS = Path(__file__).parents[2] / "vectors"
make_tile = SimpleNamespace(**runpy.run_path(str(VECTORS / "make_tile.py")))

RUN = Run(
    version=1,
    model=bytes(32),
    datasets=(bytes(32),),
    held_out_ppm=50_000,
    rounds=10,
    inner_steps=20,
    batch=4,
    sequence=128,
    inner_rate=(RateStep(0, 1_500_000),),
    beta1_ppm=900_000,
    beta2_ppm=950_000,
    decay_ppm=50_000,
    clip_ppm=1_000_000,
    auxiliary_ppm=10_000,
    codecs=(
        CodecChoice(TensorClass.MATRIX, 0, Codec.LR4, 8),
        CodecChoice(TensorClass.ROUTER, 0, Codec.LR4, 16),
        CodecChoice(TensorClass.MATRIX, 5, Codec.LR4, 4),
    ),
    feedback_ppm=1_000_000,
    outer_rate_ppm=900_000,
    outer_momentum_ppm=500_000,
    delta_clip_ppm=0,
    quorum_ppm=500_000,
    deadline_ms=1000,
    grace_ms=100,
    min_tokens=64,
    rotation=0,
    adopt_every=1,
    snapshot_every=10,
    rounds_ahead=1,
    seed=1,
)
LAYOUT = layout.layout_of(
    make_tile.model_of(
        dataclasses.replace(make_tile.DEMO, width=32, expert_width=48, head_width=8)
    )
)
TRUNK = LAYOUT.group_named("layer0.trunk")


def tiles_of(group, label, exponent):
    return [
        make_tile.floats(f"{label} {tile.index}", tile.shape, exponent)
        for tile in group.tiles
    ]


def encoded(group, label, round_=0):
    nothing = [None] * len(group.tiles)
    changes = tiles_of(group, label, -31)
    return delta.encode_group(group, changes, RUN, round_, nothing)[0]


BASE = [(weights, None) for weights in tiles_of(TRUNK, "base", -24)]


def test_choice_is_the_last_that_has_begun():
    assert delta.choice_of(RUN, TensorClass.MATRIX, 0) == (Codec.LR4, 8)
    assert delta.choice_of(RUN, TensorClass.MATRIX, 4) == (Codec.LR4, 8)
    assert delta.choice_of(RUN, TensorClass.MATRIX, 5) == (Codec.LR4, 4)
    assert delta.choice_of(RUN, TensorClass.EMBEDDING, 5) == (Codec.DENSE, 0)


def test_without_parts_the_base_stands():
    after = delta.next_tiles(TRUNK, BASE, [], RUN)
    assert all(one[0] is two[0] for one, two in zip(after, BASE))


def test_next_tiles_is_decode_sum_step():
    parts = [(1_000_000, encoded(TRUNK, "a")), (250_000, encoded(TRUNK, "b"))]
    first = delta.next_tiles(TRUNK, BASE, parts, RUN)
    second = delta.next_tiles(TRUNK, first, parts, RUN)
    for tile, (base, _), one, two in zip(TRUNK.tiles, BASE, first, second):
        gradient = weighted_sum(
            [(ppm, compress.decode(raw[tile.index], tile.shape)) for ppm, raw in parts]
        )
        state = outer.step(base, None, gradient, 900_000, 500_000)
        assert one[0].tobytes() == state[0].tobytes()
        assert one[1].tobytes() == state[1].tobytes()
        state = outer.step(*state, gradient, 900_000, 500_000)
        assert two[0].tobytes() == state[0].tobytes()
        assert not (one[0] == base).all()


def test_order_is_the_callers():
    parts = [(ppm, encoded(TRUNK, f"order {ppm}")) for ppm in (1_000_000, 7, 333_333)]
    one = delta.next_tiles(TRUNK, BASE, parts, RUN)
    two = delta.next_tiles(TRUNK, BASE, parts[::-1], RUN)
    assert any(a[0].tobytes() != b[0].tobytes() for a, b in zip(one, two))


def test_a_run_without_momentum_keeps_none():
    run = dataclasses.replace(RUN, outer_momentum_ppm=0)
    after = delta.next_tiles(TRUNK, BASE, [(1, encoded(TRUNK, "a"))], run)
    assert all(momentum is None for _, momentum in after)


def test_check_holds_a_delta_to_the_run():
    good = encoded(TRUNK, "a")
    delta.check(TRUNK, good, RUN, 0)
    router = LAYOUT.group_named("layer0.router")
    delta.check(router, encoded(router, "a"), RUN, 0)  # rank 16 of 8 rows is 8
    for bad in (
        good[:-1],
        [*good, b""],
        [*good[:-1], good[0]],
        [compress.encode(Codec.DENSE, 0, BASE[0][0])[0], *good[1:]],
        [good[0] + b"\0", *good[1:]],
        [b"", *good[1:]],
    ):
        with pytest.raises(DecodeError):
            delta.check(TRUNK, bad, RUN, 0)
    with pytest.raises(DecodeError):
        delta.check(TRUNK, good, RUN, 5)
    delta.check(TRUNK, encoded(TRUNK, "a", 5), RUN, 5)


@pytest.mark.parametrize("form", ["SC:64/1", "Q:2", "ROWS:LR4/4", "ROWS:Q/8"])
def test_a_run_may_send_by_any_codec(form):
    chosen = sending.chosen([f"matrix={form}@3"], RUN.codecs)
    run = dataclasses.replace(RUN, codecs=chosen)
    tiles = [state[0] for state in BASE]
    raw, _ = delta.encode_group(TRUNK, tiles, run, 3, [None] * len(tiles))
    delta.check(TRUNK, raw, run, 3)
    with pytest.raises(DecodeError):
        delta.check(TRUNK, raw, run, 0)
    with pytest.raises(DecodeError):  # above the bound
        delta.check(TRUNK, [raw[0] + bytes(4096), *raw[1:]], run, 3)
    values = delta.decode_group(TRUNK, raw)
    total = sum(float(np.square(v).sum()) for v in values)
    assert delta.norm(TRUNK, raw) == int(np.sqrt(total) * 2**24)


def test_bad_updates_are_the_senders_fault():
    good = encoded(TRUNK, "a")
    for parts in (
        [(0, good)],
        [(1, good[:-1])],
        [(1, good), (1, [*good[:-1], b"\1\0"])],
        [(1, [good[0][:2] + b"\xff\x7f" + good[0][4:], *good[1:]])],
    ):
        with pytest.raises(DecodeError):
            delta.next_tiles(TRUNK, BASE, parts, RUN)
    with pytest.raises(ValueError):
        delta.next_tiles(TRUNK, BASE[:-1], [(1, good)], RUN)


def test_clips_are_one_per_delta():
    parts = [(1_000_000, encoded(TRUNK, "a")), (1_000_000, encoded(TRUNK, "b"))]
    plain = delta.next_tiles(TRUNK, BASE, parts, RUN)
    same = delta.next_tiles(TRUNK, BASE, parts, RUN, [1_000_000] * 2)
    less = delta.next_tiles(TRUNK, BASE, parts, RUN, [1_000_000, 500_000])
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(plain, same))
    assert all(a[0].tobytes() != b[0].tobytes() for a, b in zip(plain, less))
    with pytest.raises(ValueError):
        delta.next_tiles(TRUNK, BASE, parts, RUN, [1_000_000])


def test_norm_of_a_group_is_an_exact_integer():
    raw = encoded(TRUNK, "a")
    squares = sum(float(np.square(x).sum()) for x in delta.decode_group(TRUNK, raw))
    assert abs(delta.norm(TRUNK, raw) - squares**0.5 * 2**24) < 1 + squares**0.5
    huge = make_tile.lr4(96, np.full(8, 255), np.full((32, 8), 7), np.full((32, 8), 7))
    with pytest.raises(LimitExceeded):
        delta.norm(TRUNK, [huge, *raw[1:]])


def test_an_update_that_overflows_is_refused():
    raw = make_tile.lr4(96, np.full(8, 255), np.full((32, 8), 7), np.full((32, 8), 7))
    whole = [raw] * 4 + [encoded(TRUNK, "a")[4]]
    huge = dataclasses.replace(RUN, outer_rate_ppm=2**32 - 1)
    with pytest.raises(DecodeError, match="finite"):
        delta.next_tiles(TRUNK, BASE, [(2**32 - 1, whole)] * 200, huge)


def test_decode_group_gives_back_what_was_encoded():
    changes = tiles_of(TRUNK, "a", -31)
    for tile, x, values in zip(
        TRUNK.tiles, changes, delta.decode_group(TRUNK, encoded(TRUNK, "a"))
    ):
        assert values.shape == tile.shape
        assert np.linalg.norm(values - x) < np.linalg.norm(x)
    with pytest.raises(DecodeError):
        delta.decode_group(TRUNK, [])
