"""The bench's simulated learners do what the daemon's worker does; what its tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blyan_proto.types import bitmap
from blyan_tile import tblock
from blyan_tile.corpus import Archive, pack
from blyan_tile.create import initial_parameters, write_tile
from blyan_tile.layout import layout_of, split
from blyan_tile.learner import GroupFiles, LearnJob, learn
from blyan_tile.residual import Settled
from tests.bench.channels import Coded
from tests.bench.control_arms import FewBits, SharedMask, few_bits
from tests.bench.convergence import Network, Text, Trial, account_of, beacon_of
from tests.bench.pareto_plan import Arm, model, run_of
from tests.bench.pareto_table import extra_tokens, loss_at, round_of


@pytest.mark.parametrize("ahead", [False, True])
def test_a_simulated_learner_sends_what_a_worker_sends(
    tmp_path: Path, ahead: bool
) -> None:
    lines = b"def one(x):\n    return x + 1\n" * 200
    raw = pack([("a.py", lines, False), ("b.py", lines[:2000], True)])
    archive = tmp_path / "archive"
    archive.write_bytes(tblock.to_bytes(tblock.bytes_array(raw)))
    run = replace(
        run_of(Arm("x", ("LR4:4",), ahead=ahead), 2, 2), min_tokens=0, sequence=32
    )
    made = model("tiny")
    trial = Trial("x", "tiny", "scratch", 3, run, learners=1)
    text = Text(Archive(tblock.bytes_array(raw)))
    start = initial_parameters(made.architecture, 1)
    channel = Coded(run, 1)
    network = Network(made, trial, text, start, channel)
    layout = layout_of(made)
    for round_ in range(2):  # the second one has a residual
        base = tuple(
            GroupFiles(
                group.index,
                tuple(
                    str(tmp_path / write_tile(tmp_path, tile).hex())
                    for tile in split(group, network.parameters())
                ),
            )
            for group in layout.groups
        )
        experts = {group.index for group in layout.expert_groups}
        job = LearnJob(
            model=made,
            run=run,
            run_id=bytes(32),
            round=round_,
            learner=account_of(0),
            beacon=beacon_of(3, round_),
            archives=(str(archive),),
            base=base,
            held=bitmap(experts, len(layout.groups)),
            settled=tuple(
                Settled(round_ - 1, group.index, True, 1_000_000)
                for group in layout.groups
                if round_
            ),
            residuals=str(tmp_path / "residuals"),
            device="cpu",
            threads=1,
        )
        deltas = learn(job, lambda progress: None).deltas
        network.learn(round_)
        for delta in deltas:
            assert channel.sent[delta.group] == [list(delta.tiles)]
        for group in layout.groups:
            state = network.state[group.index]
            network.state[group.index] = channel.close(group, state)


def test_extra_tokens_count_to_the_dense_loss_or_from_the_loss_that_was_reached() -> (
    None
):
    dense = [(0, 6.0), (10, 3.0), (20, 2.0)]
    assert loss_at(dense, 15) == 2.5 and loss_at(dense, 21) is None
    assert round_of(dense, 2.5) == 15 and round_of(dense, 1.9) is None
    slower = [(0, 6.0), (20, 2.5), (24, 1.5)]
    assert extra_tokens(slower, dense, 20) == "+10 %"  # 2.0 in round 22
    assert extra_tokens([(0, 6.0), (18, 2.5)], dense, 20) == "~+20 %"  # dense: round 15
    assert extra_tokens([(0, 6.0), (20, 7.0)], dense, 20) == "-"


def test_control_arms_keep_what_they_claim() -> None:
    drawn = np.random.default_rng(0)
    x = (drawn.standard_normal((64, 8)) @ drawn.standard_normal((8, 96))).astype("f4")
    found, length = FewBits(16, 2).encode(0, 0, "x", x)
    assert length == 4 + 16 + 16 * (64 + 96) // 4
    assert np.linalg.norm(found - x) < 0.5 * np.linalg.norm(x)
    masks = [SharedMask(128).encode(learner, 3, "x", x)[0] != 0 for learner in (0, 1)]
    assert (masks[0] == masks[1]).all() and masks[0].sum() <= x.size * 128 // 4096
    low, high = few_bits(np.array([[1.0], [-3.0]]), 2)[:, 0]
    assert low > 0 and np.isclose(high, -3 * low)
