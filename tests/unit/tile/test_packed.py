"""Packed weights: what is written, what comes back, and what is refused."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from blyan_proto.block.model import TensorClass
from blyan_proto.codec import encode
from blyan_proto.errors import ProtocolError
from blyan_tile import packed, tblock
from blyan_tile.create import CreateJob, create, model_of, write_tile
from blyan_tile.layout import group_root, layout_of, split
from blyan_tile.learner import GroupFiles
from blyan_tile.quantised import int8_of

MODEL = model_of("tiny", "tiny")
LAYOUT = layout_of(MODEL)
ROUNDS = 48  # of the run that made the seed
# Another number means that committed files are read or made otherwise.
ROOT = "15658d5304c55dc090d0f0f86e8bc5780b86ea8ef55e3acd612a8d4449d29b53"


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers in [-1/2, 1/2) that are the same everywhere."""
    drawn = np.arange(prod(shape), dtype=np.uint32) * np.uint32(2654435761)
    whole = (drawn >> np.uint32(8)).astype(np.float32)  # exact
    return (whole * np.float32(2**-24) - np.float32(0.5)).reshape(shape)


PARAMETERS = {name: numbers(shape) for name, shape in LAYOUT.parameters.items()}


def packed_tiny(folder: Path, name: str = "packed") -> tuple[Path, packed.PackResult]:
    (folder / "tiles").mkdir(exist_ok=True)
    roots = [
        [write_tile(folder / "tiles", tile) for tile in split(group, PARAMETERS)]
        for group in LAYOUT.groups
    ]
    index = packed.PackedIndex(
        1,
        "tiny",
        MODEL.architecture,
        bytes(32),
        bytes([1]) * 32,
        None,
        0,
        tuple(map(group_root, roots)),
    )
    files = tuple(
        GroupFiles(i, tuple(str(folder / "tiles" / root.hex()) for root in group))
        for i, group in enumerate(roots)
    )
    job = packed.PackJob(index, files, str(folder / name))
    return folder / name, packed.pack(job, lambda progress: None)


def test_a_model_comes_back_as_its_integers_times_their_scales(tmp_path: Path) -> None:
    path, result = packed_tiny(tmp_path)
    assert result.root.hex() == ROOT
    opened, root = packed.read(path)
    assert (root, opened.index.name) == (result.root, "tiny")
    for group, tiles in opened.groups():
        for tile, array, was in zip(group.tiles, tiles, split(group, PARAMETERS)):
            if tile.tensor_class in packed.EXACT:
                assert np.array_equal(array, was)
                continue
            whole = int8_of(torch.from_numpy(was))
            wanted = whole.values.float() * whole.scale[:, None]
            assert np.array_equal(array, wanted.numpy())
    classes = {tile.tensor_class for group in LAYOUT.groups for tile in group.tiles}
    assert TensorClass.MATRIX in classes and packed.EXACT < classes
    again, same = packed_tiny(tmp_path, "again")
    assert again.read_bytes() == path.read_bytes() and same == result


def test_a_model_begins_with_packed_weights(tmp_path: Path) -> None:
    path, _ = packed_tiny(tmp_path)
    target = tmp_path / "made"
    job = CreateJob(MODEL, 0, str(target), False, str(path))
    made = create(job, lambda progress: None)
    for (_, tiles), roots in zip(
        packed.read(path)[0].groups(), made.groups, strict=True
    ):
        assert [tblock.root_of(tile) for tile in tiles] == [r.weights for r in roots]
    other = CreateJob(model_of("demo", "demo"), 0, str(target), False, str(path))
    with pytest.raises(ProtocolError, match="architecture"):
        create(other, lambda progress: None)


def test_the_seed_of_the_demo_is_one() -> None:
    path = Path(__file__).parents[3] / "blyanctl" / "demo.weights"
    assert path.stat().st_size < 6_000_000
    seed, _ = packed.read(path)
    assert seed.index.architecture == model_of("demo", "demo").architecture
    assert seed.index.run is not None and seed.index.round == ROUNDS
    assert sum(len(tiles) for _, tiles in seed.groups()) == sum(
        len(group.tiles) for group in seed.layout.groups
    )


def test_other_files_are_refused(tmp_path: Path) -> None:
    path, _ = packed_tiny(tmp_path)
    raw = packed_raw(path)
    head = 4 + len(encode(packed.read(path)[0].index))
    endless = np.array(raw)
    endless[head : head + 64].view("<f4")[:] = np.nan
    for changed in (raw[:-1], raw[:3], raw[:head], np.append(raw, raw[:1])):
        with pytest.raises(ProtocolError):
            packed.read(rewritten(tmp_path, changed))
    with pytest.raises(ProtocolError, match="finite"):
        list(packed.read(rewritten(tmp_path, endless))[0].groups())
    with pytest.raises(ProtocolError, match="plain bytes"):
        packed.read(rewritten(tmp_path, np.zeros(8, np.float32)))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ProtocolError):
        packed.read(path)


def packed_raw(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.array(tblock.open_array(file.fileno()))


def rewritten(folder: Path, array: np.ndarray) -> Path:
    path = folder / "changed"
    path.write_bytes(tblock.to_bytes(array))
    return path
