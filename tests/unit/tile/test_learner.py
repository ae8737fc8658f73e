"""A learner's round as a pure function, and its error feedback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blyan_proto.block import sending
from blyan_proto.block.model import (
    BiasKind,
    QueryKeyNorm,
    RateStep,
    RopeKind,
    RopeScaling,
)
from blyan_proto.codec import decode, encode
from blyan_proto.types import bitmap
from blyan_tile import tblock
from blyan_tile.adamw import AdamW
from blyan_tile.batches import held_out_windows
from blyan_tile.corpus import Archive, pack
from blyan_tile.create import initial_parameters, model_of, run_preset, write_tile
from blyan_tile.delta import check, decode_group, next_tiles
from blyan_tile.feedback import Feedback
from blyan_tile.inner import clip_gradients, rate_of
from blyan_tile.jobs import Progress
from blyan_tile.layout import join, layout_of, split
from blyan_tile.learner import (
    GroupFiles,
    LearnJob,
    LearnResult,
    digest_of,
    learn,
)
from blyan_tile.model.training import held_out_loss
from blyan_tile.residual import ResidualFiles, Settled

MODEL = model_of("tiny", "tiny")
LAYOUT = layout_of(MODEL)
RUN = run_preset("tiny", bytes(32), (bytes(32),), 4, 1)
EXPERT = LAYOUT.group_named("layer0.expert1")
HELD = {
    LAYOUT.group_named(name).index
    for name in ("layer0.expert1", "layer0.expert3", "layer1.expert0")
}
SHARED = {group.index for group in LAYOUT.shared_groups}
Tiles = dict[int, list[np.ndarray]]


def text() -> bytes:
    words = "def return self if else for in while None True import class pass".split()
    drawn = np.random.default_rng(0).choice(words, 8000)
    return " ".join(drawn).encode()


def first_tiles() -> Tiles:
    parameters = initial_parameters(MODEL.architecture, 1)
    return {group.index: split(group, parameters) for group in LAYOUT.groups}


def files_of(tiles: Tiles, directory: Path) -> tuple[GroupFiles, ...]:
    return tuple(
        GroupFiles(
            index, tuple(str(directory / write_tile(directory, t).hex()) for t in group)
        )
        for index, group in tiles.items()
    )


def job_of(tmp_path: Path, tiles: Tiles, **changes: object) -> LearnJob:
    raw = pack([("a.py", text(), False), ("b.py", text()[:3000], True)])
    archive = tmp_path / "archive"
    archive.write_bytes(tblock.to_bytes(tblock.bytes_array(raw)))
    mine = {index: tiles[index] for index in sorted(HELD | SHARED)}
    job = LearnJob(
        model=MODEL,
        run=RUN,
        run_id=bytes(32),
        round=0,
        learner=b"L" * 20,
        beacon=bytes(32),
        archives=(str(archive),),
        base=files_of(mine, tmp_path),
        held=bitmap(HELD, len(LAYOUT.groups)),
        settled=(),
        residuals=str(tmp_path / "residuals"),
        device="cpu",
        threads=1,
    )
    return replace(job, **changes)


def quiet(progress: Progress) -> None:
    pass


def test_a_round_is_a_pure_function(tmp_path: Path) -> None:
    heard: list[Progress] = []
    job = job_of(tmp_path, first_tiles())
    result = learn(decode(LearnJob, encode(job), 1 << 20), heard.append)
    assert decode(LearnResult, encode(result), 1 << 24) == result
    assert result.finite and result.steps == len(heard) == RUN.inner_steps
    assert heard[-1].note.startswith("loss ")
    assert result.tokens == RUN.inner_steps * RUN.batch * RUN.sequence
    assert {delta.group for delta in result.deltas} == HELD | SHARED
    for delta in result.deltas:
        check(LAYOUT.groups[delta.group], delta.tiles, RUN, 0)
    assert {share.group for share in result.shares} == HELD
    assert sum(share.tokens for share in result.shares) == 3 * result.tokens
    # the same round again, its residual files already written: the same bytes
    assert learn(job, quiet) == result
    other = learn(replace(job, learner=b"M" * 20), quiet)
    assert other.deltas[0].change != result.deltas[0].change


def test_a_round_on_weights_of_half_precision(tmp_path: Path) -> None:
    halved: Tiles = {
        index: [(t.view(np.uint32) >> np.uint32(16)).astype(np.uint16) for t in group]
        for index, group in first_tiles().items()
    }
    widened = {i: [tblock.widened(t) for t in group] for i, group in halved.items()}
    result = learn(job_of(tmp_path, halved), quiet)
    assert result.finite and len(result.deltas) == len(HELD | SHARED)
    assert learn(job_of(tmp_path, widened), quiet) == result


def test_a_round_of_a_decoder_with_every_option(tmp_path: Path) -> None:
    odd = replace(
        MODEL.architecture,
        kv_heads=1,
        query_key_norm=QueryKeyNorm.HEAD,
        clip_qkv_micro=2_000_000,
        attention_window=9,
        attention_bias=BiasKind.ALL,
        dense_layers=(0,),
        dense_width=48,
        shared_width=32,
        shared_gate=True,
        rope=RopeScaling(RopeKind.LINEAR, 2_000_000_000),
    )
    model = replace(MODEL, architecture=odd)
    layout = layout_of(model)
    parameters = initial_parameters(odd, 1)
    held = {layout.group_named(f"layer1.expert{n}").index for n in (0, 2)}
    shared = {group.index for group in layout.shared_groups}
    tiles = {
        group.index: split(group, parameters)
        for group in layout.groups
        if group.index in held | shared
    }
    job = replace(
        job_of(tmp_path, first_tiles()),
        model=model,
        base=files_of(tiles, tmp_path),
        held=bitmap(held, len(layout.groups)),
    )
    result = learn(job, quiet)
    assert result.finite and {delta.group for delta in result.deltas} == held | shared
    trunk = layout.group_named("layer0.trunk")
    (delta,) = [d for d in result.deltas if d.group == trunk.index]
    changes = decode_group(trunk, delta.tiles)
    for tile, change in zip(trunk.tiles, changes):
        for piece in tile.pieces:  # of the vectors, biases too
            assert change.any(), piece.parameter
    assert np.count_nonzero(changes[-1]) > 0.9 * changes[-1].size


def test_rows_of_experts_elsewhere_stay_out_of_the_router(tmp_path: Path) -> None:
    run = replace(RUN, decay_ppm=900_000)  # decay reaches rows without a gradient
    result = learn(job_of(tmp_path, first_tiles(), run=run), quiet)
    router = LAYOUT.group_named("layer0.router")
    (delta,) = [d for d in result.deltas if d.group == router.index]
    (rows,) = decode_group(router, delta.tiles)
    assert np.abs(rows).sum(axis=1).astype(bool).tolist() == [False, True, False, True]


def test_an_expert_that_saw_too_little_sends_nothing(tmp_path: Path) -> None:
    run = replace(RUN, min_tokens=10**6)
    result = learn(job_of(tmp_path, first_tiles(), run=run), quiet)
    assert {delta.group for delta in result.deltas} == SHARED


def test_a_blown_up_round_has_no_deltas(tmp_path: Path) -> None:
    tiles = first_tiles()
    tiles[0][0][:] = np.nan
    result = learn(job_of(tmp_path, tiles), quiet)
    assert not result.finite and result.deltas == () and result.steps == 0
    run = replace(RUN, inner_rate=(RateStep(0, 10**14),), clip_ppm=0)
    (tmp_path / "second").mkdir()
    result = learn(job_of(tmp_path / "second", first_tiles(), run=run), quiet)
    assert not result.finite and result.deltas == ()


def test_an_auditor_can_check_what_was_sent(tmp_path: Path) -> None:
    """The committed e and change lead to exactly the bytes on the wire (DEC-B12)."""
    tiles = first_tiles()
    result = learn(job_of(tmp_path, tiles), quiet)
    files = ResidualFiles(tmp_path / "residuals")
    feedback = Feedback(files, RUN, 0)
    record = feedback.settled(EXPERT, ()).record
    (delta,) = [d for d in result.deltas if d.group == EXPERT.index]
    assert record is not None and record.sent is not None
    assert digest_of(record.before) == delta.residual
    assert digest_of(record.sent) == delta.change  # e was zero
    assert record.encoded == list(delta.tiles)


def test_rounds_lower_the_held_out_loss(tmp_path: Path) -> None:
    tiles = first_tiles()
    everything = set(tiles)
    state = {
        index: [(t, np.zeros_like(t)) for t in group] for index, group in tiles.items()
    }
    losses, settled = [], ()
    for round_ in range(3):
        weights = {index: [w for w, _ in group] for index, group in state.items()}
        files = files_of(weights, tmp_path)
        job = job_of(
            tmp_path,
            weights,
            base=files,
            held=bitmap(everything - SHARED, len(LAYOUT.groups)),
            round=round_,
            settled=settled,
        )
        losses.append(loss_of(weights, job))
        result = learn(job, quiet)
        for delta in result.deltas:
            group = LAYOUT.groups[delta.group]
            state[group.index] = next_tiles(
                group, state[group.index], [(10**6, list(delta.tiles))], RUN
            )
        settled = tuple(Settled(round_, d.group, True, 10**6) for d in result.deltas)
    assert losses[0] > losses[1] + 0.5 and losses[1] > losses[2]


def loss_of(weights: dict[int, list[np.ndarray]], job: LearnJob) -> float:
    """Return the held-out loss of one version of every group."""
    arrays = {
        name: array
        for index, tiles in weights.items()
        for name, array in join(LAYOUT, LAYOUT.groups[index], tiles).items()
    }
    with open(job.archives[0], "rb") as file:
        archive = Archive(tblock.open_array(file.fileno()))
    windows = held_out_windows(archive.held_out, RUN.sequence, 2048)
    parameters = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return held_out_loss(MODEL.architecture, parameters, torch.from_numpy(windows))


def noise(seed: int, scale: float = 1.0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [
        generator.standard_normal(tile.shape).astype(np.float32) * np.float32(scale)
        for tile in EXPERT.tiles
    ]


@pytest.fixture
def files(tmp_path: Path) -> ResidualFiles:
    return ResidualFiles(tmp_path / "residuals")


def sent_in_round_0(files: ResidualFiles) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Send something with a residual; return x and its decoded encoding."""
    first = Feedback(files, RUN, 0)
    record = first.send(EXPERT, first.settled(EXPERT, ()), noise(1))
    return noise(1), decode_group(EXPERT, record.encoded)


def residual(
    files: ResidualFiles, round_: int, *outcomes: Settled
) -> list[np.ndarray] | None:
    waiting = Feedback(files, RUN, round_).settled(EXPERT, outcomes)
    return None if waiting.record is None else waiting.residual


def test_a_listed_delta_leaves_what_the_codec_lost(files: ResidualFiles) -> None:
    x, decoded = sent_in_round_0(files)
    listed = Settled(0, EXPERT.index, True, 10**6)
    for clip, outcome in (1.0, listed), (0.25, replace(listed, clip_ppm=250_000)):
        got = residual(files, 1, outcome)
        assert got is not None
        for e, whole, part in zip(got, x, decoded):
            assert np.array_equal(e, (whole - clip * part).astype(np.float32))


def test_who_is_clipped_every_round_does_not_gather_without_end(
    files: ResidualFiles,
) -> None:
    sent_in_round_0(files)
    clipped = Settled(0, EXPERT.index, True, 100_000)
    for round_ in range(1, 6):
        feedback = Feedback(files, RUN, round_)
        waiting = feedback.settled(EXPERT, (replace(clipped, round=round_ - 1),))
        feedback.send(EXPERT, waiting, noise(round_, 0.1))
    got = residual(files, 6, replace(clipped, round=5))
    assert got is not None
    for e, change in zip(got, noise(5, 0.1)):
        assert np.linalg.norm(e) == pytest.approx(2 * np.linalg.norm(change), rel=1e-4)


def test_an_unlisted_delta_comes_back_whole_but_bounded(files: ResidualFiles) -> None:
    lost = Settled(0, EXPERT.index, False, 0)
    x, _ = sent_in_round_0(files)
    got = residual(files, 1, lost)
    assert got is not None
    assert all(np.array_equal(e, whole) for e, whole in zip(got, x))
    second = Feedback(files, RUN, 1)
    second.send(EXPERT, second.settled(EXPERT, (lost,)), noise(2, 0.1))
    got = residual(files, 2, replace(lost, round=1))
    assert got is not None
    for e, change in zip(got, noise(2, 0.1)):
        assert np.linalg.norm(e) == pytest.approx(2 * np.linalg.norm(change), rel=1e-4)


def test_missed_rounds_halve_the_residual_and_then_end_it(files: ResidualFiles) -> None:
    x, _ = sent_in_round_0(files)
    lost = Settled(0, EXPERT.index, False, 0)
    for round_, factor in ((1, 1.0), (2, 0.5), (4, 0.125)):
        got = residual(files, round_, lost)
        assert got is not None and np.array_equal(got[0], x[0] * np.float32(factor))
    assert residual(files, 5, lost) is None


def test_an_unknown_outcome_or_a_lost_file_is_zero(files: ResidualFiles) -> None:
    sent_in_round_0(files)
    assert residual(files, 1) is None
    assert residual(files, 1, Settled(0, EXPERT.index + 1, True, 10**6)) is None
    lost = Settled(0, EXPERT.index, False, 0)
    assert residual(files, 1, lost) is not None
    path = files._path(EXPERT)
    raw = path.read_bytes()
    for broken in (b"", raw[:100], raw[:-30], b"PK" + raw[2:200]):
        path.write_bytes(broken)
        assert residual(files, 1, lost) is None
    path.unlink()
    assert residual(files, 1, lost) is None


@pytest.mark.parametrize("form", ["LR4:3", "LR4:40", "SC:64/1", "Q:1", "DENSE"])
def test_a_residual_outlives_the_codec_it_comes_from(
    files: ResidualFiles, form: str
) -> None:
    x, decoded = sent_in_round_0(files)
    run = replace(RUN, codecs=sending.chosen([f"{form}@1"], RUN.codecs))
    second = Feedback(files, run, 1)
    waiting = second.settled(EXPERT, (Settled(0, EXPERT.index, True, 10**6),))
    record = second.send(EXPERT, waiting, noise(2))
    for e, whole, part in zip(waiting.residual, x, decoded):
        assert np.array_equal(e, (whole - part).astype(np.float32))
    check(EXPERT, record.encoded, run, 1)


def test_a_residual_can_wait_for_an_expert_to_be_used(files: ResidualFiles) -> None:
    x, _ = sent_in_round_0(files)
    lost = Settled(0, EXPERT.index, False, 0)
    for round_ in (1, 2):
        feedback = Feedback(files, RUN, round_)
        feedback.keep(EXPERT, feedback.settled(EXPERT, (lost,)))
    got = residual(files, 3)
    assert got is not None and np.array_equal(got[0], x[0] * np.float32(0.25))


def test_the_inner_rate_is_a_staircase() -> None:
    run = replace(RUN, inner_rate=(RateStep(0, 3_000), RateStep(5, 2_000)))
    assert [rate_of(run, round_) for round_ in (0, 4, 5, 9)] == [3e-6, 3e-6, 2e-6, 2e-6]


def test_adamw_follows_its_formula() -> None:
    start = torch.tensor([[0.5, -2.0], [1.0, 3.0]])
    mine = start.clone().requires_grad_()
    vector = torch.ones(2, requires_grad=True)
    optimizer = AdamW([mine, vector], 0.9, 0.95, 0.1)
    mean, square, wanted = torch.zeros(2, 2), torch.zeros(2, 2), start.clone()
    for step in range(1, 4):
        mine.grad = mine.detach() * step
        gradient = wanted * step
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        update = mean / (1 - 0.9**step) / ((square / (1 - 0.95**step)) ** 0.5 + 1e-8)
        wanted = wanted * (1 - 0.01 * 0.1) - 0.01 * update
        optimizer.step(0.01)
    assert torch.allclose(mine, wanted, atol=1e-6)
    assert vector.tolist() == [1.0, 1.0]  # no gradient, no decay
    mine.grad, vector.grad = torch.full((2, 2), 3.0), None
    assert clip_gradients([mine, vector], 1.5) == pytest.approx(6.0)
    assert torch.allclose(mine.grad, torch.full((2, 2), 0.75))
