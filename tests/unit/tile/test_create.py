"""First parameters and the files they are written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blyan_proto.block.model import Run
from blyan_proto.codec import decode, encode
from blyan_tile import tblock
from blyan_tile.create import (
    CreateJob,
    CreateResult,
    architecture_of,
    create,
    initial_parameters,
    model_of,
    run_preset,
)
from blyan_tile.layout import join, layout_of


def test_parameters_depend_on_seed_and_name() -> None:
    first = initial_parameters(architecture_of("tiny"), 1)
    again = initial_parameters(architecture_of("tiny"), 1)
    other = initial_parameters(architecture_of("tiny"), 2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    name = "layer0.attention.q.weight"
    assert not np.array_equal(first[name], other[name])
    assert not np.array_equal(first[name], first["layer1.attention.q.weight"])
    assert first[name].dtype == np.float32
    assert first[name].std() == pytest.approx(64**-0.5, rel=0.05)
    assert (first["layer0.expert_norm.weight"] == 1).all()


def test_the_demo_model_has_the_announced_size() -> None:
    layout = layout_of(model_of("demo", "demo"))
    assert 5_000_000 < sum(group.elements for group in layout.groups) < 6_000_000


@pytest.mark.parametrize("momentum", [False, True])
def test_every_tile_is_a_file_named_by_its_root(tmp_path: Path, momentum: bool) -> None:
    model = model_of("tiny", "tiny")
    notes: list[str] = []
    job = CreateJob(model, 5, str(tmp_path / "tiles"), momentum)
    result = create(job, lambda progress: notes.append(progress.note))
    layout = layout_of(model)
    assert notes == [group.name for group in layout.groups]
    wanted = initial_parameters(model.architecture, 5)
    for group, roots in zip(layout.groups, result.groups, strict=True):
        tiles = []
        for tile in roots:
            with (tmp_path / "tiles" / tile.weights.hex()).open("rb") as file:
                tblock.verify_file(file.fileno(), tile.weights)
                tiles.append(tblock.open_array(file.fileno()))
            assert (tile.momentum is not None) == momentum
            if tile.momentum is not None:
                with (tmp_path / "tiles" / tile.momentum.hex()).open("rb") as file:
                    assert not tblock.open_array(file.fileno()).any()
        for name, array in join(layout, group, tiles).items():
            assert np.array_equal(array, wanted[name])
    assert decode(CreateResult, encode(result), 1 << 20) == result
    assert create(job, lambda _: None) == result


@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_run_presets_are_messages(preset: str) -> None:
    run = run_preset(preset, bytes(32), (bytes(32),), 16, 3)
    assert decode(Run, encode(run), 1 << 16) == run
