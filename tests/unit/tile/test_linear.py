"""A row's bits depend on nothing but the row and the matrix."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from blyan_tile.create import architecture_of
from blyan_tile.model import linear as place
from blyan_tile.model.expert import Expert
from blyan_tile.model.linear import is_packable, linear, packed

SHAPES = [(384, 512), (512, 1792), (1000, 96), (8, 512), (64, 96)]  # (out, in)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("out, width", SHAPES)
def test_rows_are_alone_in_any_company(out: int, width: int, threads: int) -> None:
    x, weight = drawn(300, width), drawn(out, width, seed=2)
    x[7] *= 1000  # an outlier is nobody else's business
    ready = packed(weight)
    wanted = torch.cat([linear(row[None], weight) for row in x])
    assert torch.allclose(wanted[8:], (x @ weight.T)[8:], atol=1e-3)
    for start, end in ((0, 1), (0, 2), (3, 6), (5, 14), (1, 66), (0, 257), (0, 300)):
        for matrix in (weight, ready):
            assert torch.equal(linear(x[start:end], matrix), wanted[start:end])


def test_only_what_pays_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = drawn(8, 512), drawn(384, 512)
    assert packed(small) is small
    assert is_packable(large) == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(place, "_has_onednn", lambda dtype: False)
    assert packed(large) is large
    x = drawn(65, 512, seed=3)
    alone = torch.cat([linear(row[None], large) for row in x])
    assert torch.equal(linear(x, large), alone)


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_an_expert_gives_the_same_bits_the_first_time_and_later(preset: str) -> None:
    shape = architecture_of(preset)
    matrices = [
        drawn(shape.expert_width, shape.width, seed=1),
        drawn(shape.expert_width, shape.width, seed=2),
        drawn(shape.width, shape.expert_width, seed=3),
    ]
    x = drawn(20, shape.width, seed=4)
    expert = Expert(*matrices)
    first = expert(x)
    assert torch.equal(expert(x), first) and torch.equal(expert(x[3:4]), first[3:4])
