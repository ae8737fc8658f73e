"""Recipes: rows that ignore each other, bounds of what is lost, bands equal to the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from blyan_proto.block.model import Model
from blyan_tile import quantised
from blyan_tile.create import architecture_of, initial_parameters, model_of
from blyan_tile.layout import Group, layout_of, split
from blyan_tile.model.expert import expert_of
from blyan_tile.quantised import GROUP, int4_of, int8_of, products
from blyan_tile.recipe import (
    Gated,
    Recipe,
    bytes_of,
    derive,
    recipe_called,
    recipe_for,
)
from blyan_tile.slice import WHOLE, Slice, slices, summed
from blyan_tile.stream import (
    bands_of,
    expert_bytes,
    hidden_units,
    ready_expert,
    streamed_expert,
)

OFF = {Recipe.F32: 0.0, Recipe.BF16: 0.01, Recipe.INT8: 0.04, Recipe.INT4: 0.2}


def here(tensor: Tensor) -> Tensor:
    return tensor


def drawn(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def expert(width: int, hidden: int, recipe: Recipe) -> Gated:
    shapes = (hidden, width), (hidden, width), (width, hidden)
    matrices = [drawn(*s, seed) / s[1] ** 0.5 for seed, s in enumerate(shapes)]
    return Gated(recipe, *(derive(recipe, matrix) for matrix in matrices))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("recipe", Recipe)
@pytest.mark.parametrize("width, hidden", [(256, 384), (40, 100)])
def test_a_row_ignores_its_batch_mates(
    recipe: Recipe, width: int, hidden: int, threads: int
) -> None:
    forward = expert(width, hidden, recipe)
    x = drawn(64, width, 9)
    alone = torch.cat([forward(x[row : row + 1]) for row in range(64)])
    for rows in (2, 3, 7, 8, 9, 31, 64):
        assert torch.equal(forward(x[:rows]), alone[:rows])
    x[5] *= 1000  # one scale for all rows would drown the others
    assert torch.equal(forward(x)[6:], alone[6:])
    assert torch.equal(forward(x)[:5], alone[:5])
    assert forward(x[:0]).shape == (0, width)


@pytest.mark.parametrize("recipe", Recipe)
def test_what_a_recipe_loses_is_bounded(recipe: Recipe) -> None:
    x = drawn(64, 256, 9)
    exact, made = expert(256, 384, Recipe.F32)(x), expert(256, 384, recipe)(x)
    assert (made - exact).norm() <= OFF[recipe] * exact.norm()
    for row in (0, 63):  # each row for itself, too
        assert (made - exact)[row].norm() <= 1.5 * OFF[recipe] * exact[row].norm()


def test_float32_is_the_expert_of_the_model() -> None:
    parameters = {
        name: torch.from_numpy(array)
        for name, array in initial_parameters(architecture_of("demo"), 3).items()
    }
    whole = expert_of(parameters, 1, 2)
    made = Gated(
        Recipe.F32,
        *(derive(Recipe.F32, m) for m in (whole.gate, whole.up, whole.down)),
    )
    x = drawn(33, 256, 4)
    assert torch.equal(made(x), whole(x))


def test_zeros_and_extremes_stay_finite() -> None:
    for recipe in (Recipe.INT8, Recipe.INT4):
        forward = expert(64, 96, recipe)
        assert torch.equal(forward(torch.zeros(2, 64)), torch.zeros(2, 64))
        x = drawn(3, 64, 5)
        x[0] *= 1e-42  # below the least normal number
        x[1] *= 1e15
        assert forward(x).isfinite().all()
        nothing = derive(recipe, torch.zeros(4, 64))
        tokens = quantised.quantised(x)
        assert torch.equal(nothing(tokens), torch.zeros(3, 4))


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 33), (8, 130), (17, 4097)])
def test_products_of_integers_are_exact(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    signs = torch.randint(0, 2, (rows + 5, columns), generator=generator) * 254 - 127
    x, weight = signs[:rows].to(torch.int8), signs[rows:].to(torch.int8)
    x[0], weight[0] = 127, -127  # the largest sum there is
    exact = (x.long() @ weight.long().t()).float()
    assert torch.equal(products(x, weight), exact)
    with monkeypatch.context() as parts:
        parts.setattr(quantised, "EXACT_COLUMNS", 1000)
        assert torch.allclose(products(x, weight), exact, rtol=1e-6)
    monkeypatch.setattr(quantised, "_is_exact", lambda: False)
    assert torch.equal(products(x, weight), exact)


def test_integers_are_as_documented() -> None:
    matrix = drawn(5, 100, 6)
    eight = int8_of(matrix)
    assert eight.values.abs().amax(1).tolist() == [127] * 5
    back = eight.values * eight.scale[:, None]
    assert (back - matrix).abs().amax() <= eight.scale.max() / 2 * 1.001
    four = int4_of(matrix)
    assert four.nibbles.shape == (5, 64) and four.factors.shape == (5, 128 // GROUP, 1)
    numbers = four.unpacked()
    assert numbers.shape == (5, 128) and not numbers[:, 100:].any()
    assert (numbers.view(5, 2, GROUP) % four.factors == 0).all()
    back = numbers[:, :100] * four.scale[:, None]
    assert (back - matrix).norm() < 0.12 * matrix.norm()


@pytest.mark.parametrize("recipe", Recipe)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_derivation_is_the_same_for_any_rows_of_a_matrix(
    recipe: Recipe, dtype: torch.dtype
) -> None:
    matrix = drawn(12, 70, 7).to(dtype)
    whole, some = (
        [one for one in vars(derive(recipe, rows)).values() if isinstance(one, Tensor)]
        for rows in (matrix, matrix[3:9])
    )
    assert all(torch.equal(one[3:9], other) for one, other in zip(whole, some))
    assert sum(one.nbytes for one in whole) == bytes_of(recipe, 12, 70)
    assert recipe_called(recipe.label) is recipe


def test_what_is_as_the_recipe_wants_it_is_not_copied() -> None:
    matrix = drawn(4, 4)
    assert vars(derive(Recipe.F32, matrix))["matrix"] is matrix
    half = matrix.bfloat16()
    assert vars(derive(Recipe.BF16, half))["matrix"] is half


def test_a_call_gets_no_worse_recipe_than_it_asks_for() -> None:
    assert [recipe_for(Recipe.INT8, n) for n in range(4)] == [0, 1, 2, 2]
    assert [recipe_for(Recipe.F32, n) for n in range(4)] == [0, 0, 0, 0]


def tiled(width: int, hidden: int) -> tuple[Group, list[Tensor]]:
    shape = replace(architecture_of("tiny"), width=width, expert_width=hidden, layers=1)
    model: Model = replace(model_of("tiny", "tiles"), architecture=shape)
    group = layout_of(model).group_named("layer0.expert0")
    parameters = {
        name: np.asarray(drawn(*size, seed=len(name)).numpy() / size[1] ** 0.5)
        for name, size in layout_of(model).parameters.items()
        if name in group.parameters
    }
    return group, [torch.from_numpy(tile) for tile in split(group, parameters)]


@pytest.mark.parametrize("recipe", Recipe)
@pytest.mark.parametrize("width, hidden", [(64, 96), (1100, 1030)])
def test_streamed_equals_resident_bit_for_bit(
    recipe: Recipe, width: int, hidden: int
) -> None:
    group, tiles = tiled(width, hidden)
    ready = ready_expert(group, tiles, recipe, here)
    passing = streamed_expert(group, tiles, recipe, here)
    x = drawn(9, width, 8)
    assert torch.equal(ready(x), passing(x))
    assert torch.equal(ready(x[:1]), passing(x[:1]))  # by now it may be packed
    assert torch.equal(ready(x)[:1], passing(x[:1]))


def test_bands_cover_a_matrix_with_all_columns() -> None:
    group, tiles = tiled(1100, 1030)
    bands = bands_of(group, "gate")
    assert [(band.rows, band.columns, len(band.cuts)) for band in bands] == [
        (515, 1100, 2),
        (515, 1100, 2),
    ]
    assert expert_bytes(group, Recipe.F32) == sum(tile.nbytes for tile in tiles)
    small, _ = tiled(64, 96)
    assert len(bands_of(small, "down")) == 1


@pytest.mark.parametrize(
    "width, hidden, count", [(64, 96, 2), (64, 96, 7), (1100, 1030, 3)]
)
def test_slices_add_up_to_the_expert(width: int, hidden: int, count: int) -> None:
    group, tiles = tiled(width, hidden)
    x = drawn(9, width, 8)
    whole = ready_expert(group, tiles, Recipe.F32, here)(x).numpy()
    parts = []
    for index in range(count):
        piece = Slice(index, count)
        part = ready_expert(group, tiles, Recipe.F32, here, piece)
        passing = streamed_expert(group, tiles, Recipe.F32, here, piece)
        assert torch.equal(part(x), passing(x))
        assert torch.equal(part(x)[3:4], part(x[3:4]))
        parts.append(part(x).numpy())
    assert np.abs(summed(parts) - whole).max() < 1e-5
    assert np.abs(summed(parts[1:]) - whole).max() > 1e-3  # one is missing
    sizes = [expert_bytes(group, Recipe.F32, Slice(i, count)) for i in range(count)]
    assert sum(sizes) == expert_bytes(group, Recipe.F32)
    assert max(sizes) - min(sizes) <= 3 * 4 * width  # one hidden unit


@pytest.mark.parametrize("recipe", Recipe)
def test_a_slice_in_any_recipe_loses_no_more_than_the_expert(recipe: Recipe) -> None:
    group, tiles = tiled(64, 96)
    x = drawn(16, 64, 8)
    exact = ready_expert(group, tiles, Recipe.F32, here)(x)
    parts = [ready_expert(group, tiles, recipe, here, Slice(i, 3)) for i in range(3)]
    made = torch.from_numpy(summed([part(x).numpy() for part in parts]))
    assert (made - exact).norm() <= max(1e-6, OFF[recipe]) * exact.norm()


def test_how_many_slices_and_what_they_are_called() -> None:
    assert slices(100, 0, 64) == slices(100, 100, 64) == (WHOLE,)
    assert slices(100, 30, 64) == tuple(Slice(i, 4) for i in range(4))
    assert len(slices(100, 1, 7)) == 7
    assert Slice(1, 4).name("layer0.expert0") == "layer0.expert0#1/4"
    assert WHOLE.name("layer0.expert0") == "layer0.expert0"
    units = [Slice(i, 3).units(100) for i in range(3)]
    assert units == [(0, 33), (33, 66), (66, 100)]
    assert hidden_units(tiled(1100, 1030)[0]) == 1030
    order = [np.float32([1e8]), np.float32([-1e8]), np.float32([1])]
    assert summed(order) == 1 and summed(order[::-1]) == 0  # the order is part of it
