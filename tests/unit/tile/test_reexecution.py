"""Repeating a round: equal bits on one device, and what differs where arithmetic does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from blyan_proto.codec import decode, encode
from blyan_tile.learner import learn
from blyan_tile.reexecution import Repeated, RepeatJob, repeat
from blyand.rules.model import audit as rules
from blyand.rules.model.audit import Finding
from tests.unit.tile.test_learner import RUN, first_tiles, job_of, quiet


def test_the_first_steps_of_a_round_can_be_repeated(tmp_path: Path) -> None:
    job = job_of(tmp_path, first_tiles())
    made = learn(job, quiet)
    assert len(made.log) == RUN.inner_steps and made.log[-1].state is not None
    whole = repeat(RepeatJob(job, RUN.inner_steps), quiet)
    assert decode(Repeated, encode(whole), 1 << 20) == whole
    assert (whole.log, whole.device) == (made.log, made.device)
    changes = {one.group: one.change for one in whole.changes}
    assert all(changes[delta.group] == delta.change for delta in made.deltas)
    first = repeat(RepeatJob(replace(job, residuals="-"), 2), quiet)
    assert first.log == made.log[:2] and not first.changes


def test_other_text_and_other_steps_show(tmp_path: Path) -> None:
    job = job_of(tmp_path, first_tiles())
    made = learn(job, quiet)
    other = repeat(RepeatJob(replace(job, beacon=b"x" * 32), 2), quiet)
    assert rules.compare(made.log, other.log, True)[0] is Finding.FALSE_BATCH
    slower = replace(RUN, beta1_ppm=800_000)
    other = repeat(RepeatJob(replace(job, run=slower), 2), quiet)
    assert rules.compare(made.log, other.log, True)[0] is Finding.FALSE_STATE
    # three times the rate is further away than any device
    faster = replace(RUN, inner_rate=(replace(RUN.inner_rate[0], rate_ppb=6_000_000),))
    other = repeat(RepeatJob(replace(job, run=faster), 5), quiet)
    finding, worst = rules.compare(made.log, other.log, False)
    assert finding is Finding.FAR and worst > rules.LOSS_TOLERANCE_MICRO


def test_a_last_bit_of_the_arithmetic_is_within_the_tolerance(tmp_path: Path) -> None:
    """A base off by one part in a million stands for another device's rounding."""
    tiles = first_tiles()
    made = learn(job_of(tmp_path, tiles), quiet)
    source = torch.Generator().manual_seed(1)
    off = {
        index: [
            t * (1 + 1e-6 * torch.randn(t.shape, generator=source).numpy()).astype("f4")
            for t in group
        ]
        for index, group in tiles.items()
    }
    other = repeat(RepeatJob(job_of(tmp_path, off), RUN.inner_steps), quiet)
    finding, worst = rules.compare(made.log, other.log, False)
    assert finding is Finding.SOUND and worst < rules.LOSS_TOLERANCE_MICRO // 20
