"""Muon: what an update is, and a round of a run that asks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.model import Inner
from blyan_tile import muon
from blyan_tile.adamw import AdamW
from blyan_tile.inner import optimizer_of
from blyan_tile.learner import learn
from blyan_tile.muon import MOMENTUM, QUINTIC, STRENGTH, Muon, orthogonal
from blyan_tile.reexecution import RepeatJob, repeat
from tests.unit.tile.test_learner import (
    HELD,
    LAYOUT,
    MODEL,
    RUN,
    SHARED,
    first_tiles,
    job_of,
    quiet,
)

MUON = replace(RUN, inner=Inner.MUON)
SHAPES = [(6, 9), (9, 6), (6, 9), (5, 5), (12, 3)]  # wide, tall, square
RATE, DECAY = 0.01, 0.5


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(gradient: np.ndarray) -> np.ndarray:
    """Return what `orthogonal` makes of one matrix, by the published formula."""
    is_tall = gradient.shape[0] > gradient.shape[1]
    x = (gradient.T if is_tall else gradient).astype(np.float64)
    x = x / np.linalg.norm(x)
    a, b, c = QUINTIC
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if is_tall else x


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.integers(-10, 30),
    st.floats(0.2, 1),
)
@settings(max_examples=60, deadline=None)
def test_an_update_is_nearly_orthogonal_and_has_no_size(
    short: int, more: int, seed: int, power: int, least: float
) -> None:
    """Of a matrix whose singular values lie within a factor of five."""
    u, _ = torch.linalg.qr(drawn(seed, short, short))
    v, _ = torch.linalg.qr(drawn(seed + 1, short + more, short))
    batch = (u * torch.linspace(least, 1, short) @ v.T)[None] * 2.0**power
    (made,) = orthogonal(batch)
    turned = u.T @ made @ v  # S of U S V^T
    lengths = turned.diagonal()
    assert 0.65 < lengths.min() and lengths.max() < 1.25
    assert (turned - torch.diag(lengths)).abs().max() < 1e-3
    assert torch.allclose(made, orthogonal(batch * 2.0**-power)[0], atol=1e-5)


def test_steps_are_those_of_each_matrix_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(muon, "_BATCH_ELEMENTS", 2 * 6 * 9)  # two of three at once
    start = [drawn(i, *shape) for i, shape in enumerate(SHAPES)]
    mine = [x.clone().requires_grad_() for x in start]
    vector = torch.ones(2, requires_grad=True)
    optimizer = Muon(mine, DECAY, AdamW([vector], 0.9, 0.95, DECAY))
    wanted = [x.numpy().astype(np.float64) for x in start]
    momenta = [np.zeros(shape) for shape in SHAPES]
    for step in range(3):
        vector.grad = torch.ones(2)
        for index, (matrix, shape) in enumerate(zip(mine, SHAPES)):
            gradient = drawn(100 * step + index, *shape)
            matrix.grad = gradient.clone()
            momenta[index] = MOMENTUM * momenta[index] + (1 - MOMENTUM) * (
                gradient.numpy()
            )
            ahead = (1 - MOMENTUM) * gradient.numpy() + MOMENTUM * momenta[index]
            size = 0.2 * STRENGTH * RATE * max(shape) ** 0.5
            wanted[index] *= 1 - RATE * DECAY
            wanted[index] -= size * plain(ahead)
        optimizer.step(RATE)
    for matrix, expected in zip(mine, wanted):
        assert matrix.grad is None
        assert np.allclose(matrix.detach(), expected, atol=1e-4)
    assert torch.allclose(vector, torch.tensor(1 - 3 * RATE), atol=1e-4)  # AdamW's


@pytest.mark.parametrize("none", [True, False])
def test_an_expert_that_no_token_saw_only_decays(none: bool) -> None:
    """Not even when it learned before: its momentum still points somewhere."""
    seen, unseen = drawn(1, 6, 9).requires_grad_(), drawn(2, 6, 9).requires_grad_()
    optimizer = Muon([seen, unseen], DECAY, AdamW([], 0.9, 0.95, DECAY))
    seen.grad, unseen.grad = drawn(3, 6, 9), drawn(4, 6, 9)
    optimizer.step(RATE)
    before = seen.detach().clone(), unseen.detach().clone()
    seen.grad, unseen.grad = drawn(5, 6, 9), None if none else torch.zeros(6, 9)
    optimizer.step(RATE)
    assert torch.allclose(unseen, before[1] * (1 - RATE * DECAY), atol=1e-7)
    assert (seen - before[0]).abs().max() > RATE


def test_embeddings_routers_and_vectors_are_moved_by_adamw() -> None:
    parameters = {
        name: torch.ones(shape, requires_grad=True)
        for name, shape in LAYOUT.parameters.items()
    }
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    run = replace(MUON, decay_ppm=0)
    optimizer_of(MODEL.architecture, run, parameters).step(RATE)
    by_adamw = {
        name
        for name, p in parameters.items()
        if torch.allclose(p, torch.full_like(p, 1 - RATE))
    }
    assert by_adamw == parameters.keys() - set(LAYOUT.matrices)
    assert {name.partition(".")[2] for name in by_adamw} == {
        *("weight", "router.weight", "attention_norm.weight", "expert_norm.weight"),
    }


def test_a_round_can_be_repeated_to_the_last_bit(tmp_path: Path) -> None:
    job = job_of(tmp_path, first_tiles(), run=MUON)
    made = learn(job, quiet)
    assert made.finite and {delta.group for delta in made.deltas} == HELD | SHARED
    again = repeat(RepeatJob(job, MUON.inner_steps), quiet)
    assert again.log == made.log and made.log[-1].state is not None
    changes = {one.group: one.change for one in again.changes}
    assert all(changes[delta.group] == delta.change for delta in made.deltas)
    by_adamw = learn(replace(job, run=RUN, residuals=str(tmp_path / "other")), quiet)
    assert by_adamw.log[0] != made.log[0]
