"""What a primary does with one delta, and that it decodes nothing before it may."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from blyan_proto.block.model import Codec, CodecChoice, TensorClass
from blyan_proto.constants import FORMAT_VERSION, PPM
from blyan_proto.protocols.delta import Delta, Verdict
from blyan_proto.types import Role
from blyan_tile import compress
from blyan_tile.delta import encode_group, norm
from blyan_tile.layout import layout_of
from blyand.rules.records import RunRecord, Schedule, Seat
from blyand.training import membership
from blyand.training.membership import Refused, Taken, listing, look_at
from tests.unit.daemon.chain_world import model, run_of

GROUP = layout_of(model()).expert_groups[0]
RUN = run_of(
    bytes(32),
    bytes(32),
    codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.LR4, 4),),
    delta_clip_ppm=3 * PPM,
)
SECRET = b"of this node"


def encoded(size: float = 1.0, seed: int = 1) -> tuple[bytes, ...]:
    source = np.random.default_rng(seed)
    change = [
        (size * source.standard_normal(tile.shape)).astype(np.float32)
        for tile in GROUP.tiles
    ]
    return tuple(encode_group(GROUP, change, RUN, 0, [None] * len(change))[0])


def delta(tiles=None, learner=1, tokens=100) -> Delta:
    base = (bytes(32),) * len(GROUP.tiles)
    account = bytes([learner]) * 20
    made = tiles or encoded(seed=learner)
    return Delta(
        FORMAT_VERSION, bytes(32), GROUP.index, 0, account, base, tokens, tuple(made)
    )


def verdict_of(bad: Delta, median: int = 0) -> Verdict:
    with pytest.raises(Refused) as caught:
        look_at(GROUP, RUN, median, bad, SECRET)
    return caught.value.verdict


def other_rank() -> tuple[bytes, ...]:
    run = replace(RUN, codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.LR4, 5),))
    change = [np.ones(tile.shape, np.float32) for tile in GROUP.tiles]
    return tuple(encode_group(GROUP, change, run, 0, [None] * len(change))[0])


@pytest.mark.parametrize(
    "bad, verdict",
    [
        (delta(tokens=129), Verdict.TOO_MANY_TOKENS),
        (delta(encoded()[:-1]), Verdict.SHAPE),
        (delta((*encoded()[:-1], b"\x02\x04")), Verdict.SHAPE),
        (delta((*encoded()[:-1], encoded()[-1] + b"\0")), Verdict.SHAPE),
        (delta((*encoded()[:-1], b"\xff" * 90)), Verdict.SHAPE),
        (delta(other_rank()), Verdict.SHAPE),
    ],
)
def test_nothing_is_decoded_that_is_not_the_runs(monkeypatch, bad, verdict):
    def decoded(*_):
        raise AssertionError("decoded before it was checked")

    monkeypatch.setattr(membership.deltas, "decode_group", decoded)
    monkeypatch.setattr(membership.deltas, "norm", decoded)
    assert verdict_of(bad) is verdict


def test_an_absurd_norm_is_refused_and_a_large_one_taken():
    usual = look_at(GROUP, RUN, 0, delta(), SECRET).norm
    assert usual == norm(GROUP, encoded())
    large = delta(encoded(900.0))
    assert look_at(GROUP, RUN, usual, large, SECRET).norm > 800 * usual
    assert verdict_of(delta(encoded(1100.0)), usual) is Verdict.TOO_LARGE
    assert look_at(GROUP, RUN, 0, delta(encoded(1100.0)), SECRET), "nothing is usual"
    assert verdict_of(delta(encoded(2.0**80))) is Verdict.TOO_LARGE


def test_what_is_not_finite_is_refused():
    dense = replace(RUN, codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.DENSE, 0),))
    change = [np.ones(tile.shape, np.float32) for tile in GROUP.tiles]
    good, _ = encode_group(GROUP, change, dense, 0, [None] * len(change))
    bad = good[0][:-2] + np.array([np.nan], "<f2").tobytes()
    assert compress.header_of(bad)[0] is Codec.DENSE
    with pytest.raises(Refused) as caught:
        look_at(GROUP, dense, 0, delta((bad, *good[1:])), SECRET)
    assert caught.value.verdict is Verdict.NOT_FINITE


def test_a_list_weighs_clips_and_goes_by_learner():
    seats = tuple(
        Seat(bytes([one]) * 20, bytes(33), int(Role.LEARN), 1, b"\xff", one > 2)
        for one in (1, 2, 3, 4)
    )
    schedule = Schedule(bytes(32), 0, 1, bytes(32), seats)
    record = RunRecord(bytes(32), RUN, bytes(20), 0, (), False, 0, 200_000)
    heard = {
        bytes([one])
        * 20: look_at(GROUP, RUN, 0, delta(encoded(size, one), one), SECRET)
        for one, size in ((3, 1.0), (1, 1.0), (4, 5.0), (2, 1.0))
    }
    made = listing(heard, record, schedule, 0)
    parts = made.contributions
    assert [part.learner[0] for part in parts] == [1, 2, 3, 4]
    assert [part.weight_ppm for part in parts] == [400_000, 400_000, 100_000, 100_000]
    assert [part.norm for part in parts] == [heard[p.learner].norm for p in parts]
    assert made.median == sorted(part.norm for part in parts)[1]
    assert parts[3].clip_ppm < 210_000
    assert made.raw[parts[1].offset :][: parts[1].bytes] != made.raw[: parts[0].bytes]
    plain = listing(
        heard, replace(record, run=replace(RUN, delta_clip_ppm=0)), schedule, 0
    )
    assert all((p.clip_ppm, p.norm) == (PPM, 0) for p in plain.contributions)
    assert plain.median == 0


def test_a_copy_is_of_the_one_it_is_like():
    heard: dict[bytes, Taken | None] = {
        bytes([one]) * 20: look_at(GROUP, RUN, 0, delta(learner=one), SECRET)
        for one in (1, 2, 3)
    }
    heard[bytes([4]) * 20] = None  # said that it has nothing
    stolen = delta(encoded(seed=2), learner=9)
    copy = look_at(GROUP, RUN, 0, stolen, SECRET)
    assert membership.original_of(copy, heard) == bytes([2]) * 20
    other = look_at(GROUP, RUN, 0, delta(learner=9), SECRET)
    assert membership.original_of(other, heard) is None
