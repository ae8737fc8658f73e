"""First weights in half precision: read, trained on and proven as their float32 values."""

from __future__ import annotations

import numpy as np
import pytest

from blyan_proto.block.model import TileRoots
from blyan_proto.errors import DecodeError
from blyan_tile import compress, tblock
from blyan_tile.create import initial_parameters, model_of, run_preset
from blyan_tile.delta import choice_of
from blyan_tile.layout import layout_of, split
from blyand.inference.weights import load_group
from blyand.store.blobs import BlobStore
from blyand.training import tiles

MODEL = model_of("tiny", "tiny")
LAYOUT = layout_of(MODEL)
GROUP = LAYOUT.group_named("layer0.expert1")
RUN = run_preset("tiny", bytes(32), (bytes(32),), 4, 1)


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


def halved(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return `array` cut to half precision, as it is stored."""
    if dtype == "f16":
        return array.astype(np.float16)
    return (array.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def delta() -> list[bytes]:
    noise = np.random.default_rng(3)
    return [
        compress.encode(
            *choice_of(RUN, tile.tensor_class, 0),
            noise.standard_normal(tile.shape, np.float32),
            None,
        )[0]
        for tile in GROUP.tiles
    ]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_the_first_update_widens_exactly(blobs, dtype):
    parameters = initial_parameters(MODEL.architecture, 1)
    stored = [halved(tile, dtype) for tile in split(GROUP, parameters)]
    roots = tuple(TileRoots(blobs.put_array(tile), None) for tile in stored)
    wide = [tblock.widened(tile) for tile in stored]
    wide_roots = tuple(TileRoots(blobs.put_array(tile), None) for tile in wide)
    assert roots != wide_roots
    parts = [tiles.Listed(1_000_000, 1_000_000, delta())]
    after = tiles.advance(blobs, GROUP, roots, parts, RUN)
    assert after == tiles.advance(blobs, GROUP, wide_roots, parts, RUN)
    assert blobs.open_array(after[0].weights).dtype == np.float32
    assert tiles.advance(blobs, GROUP, roots, [], RUN) == roots, "byte-identical"
    served = load_group(blobs, LAYOUT, GROUP, [r.weights for r in roots], "cpu")
    assert (served["layer0.expert1.up.weight"].numpy() == wide[1]).all()


def test_bytes_are_no_weights(blobs):
    wrong = tuple(
        TileRoots(blobs.put_array(np.zeros(tile.shape, np.uint8)), None)
        for tile in GROUP.tiles
    )
    with pytest.raises(DecodeError, match="layer0.expert1 tile 0"):
        tiles.load(blobs, GROUP, wrong)
