"""Loading a group: from a snapshot and the updates since, against from the snapshot alone.

    python -m tests.bench.bench_compaction [--quick]

An expert of the demo model and one of 1024 x 1024, outer momentum, LR4 of rank 16 and
four contributors a round; the blobs lie on this machine's disk, read once before.
Loading is what a holder does whose derived tiles are gone: tiles opened, each update's
deltas decoded, summed exactly, the outer step made. Medians; the paper's trigger is a
load of 50 ms.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from blyan_proto.block.model import Codec, CodecChoice, TensorClass, TileRoots
from blyan_tile.create import model_of, run_preset
from blyan_tile.delta import encode_group, next_tiles
from blyan_tile.layout import Group, layout_of
from blyand.store.blobs import BlobStore
from blyand.training import tiles

CHAINS = (0, 1, 2, 5, 10, 11, 20, 40)
LEARNERS = 4


def groups() -> dict[str, Group]:
    """Return an expert of the demo model, and one of 1024 x 1024."""
    small = model_of("demo", "bench")
    wide = replace(small.architecture, width=1024, expert_width=1024, layers=1)
    large = replace(small, architecture=wide)
    return {
        "demo": layout_of(small).group_named("layer0.expert0"),
        "1024 wide": layout_of(large).group_named("layer0.expert0"),
    }


def measure(name: str, group: Group, repeats: int, chains: tuple[int, ...]) -> None:
    """Print one table row per length of chain."""
    run = run_preset("demo", bytes(32), (bytes(32),), 64, 0)
    codecs = (CodecChoice(TensorClass.MATRIX, 0, Codec.LR4, 16),)
    run = replace(run, codecs=codecs)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        blobs = BlobStore(Path(folder) / "blobs")

        def made(scale: float) -> list[np.ndarray]:
            return [
                scale * random.standard_normal(tile.shape, dtype=np.float32)
                for tile in group.tiles
            ]

        roots = tuple(
            TileRoots(blobs.put_array(one), blobs.put_array(np.zeros_like(one)))
            for one in made(0.02)
        )
        warm: list[np.ndarray | None] = [None] * len(group.tiles)
        parts = [
            (250_000, tuple(encode_group(group, made(1e-3), run, 0, warm)[0]))
            for _ in range(LEARNERS)
        ]
        delta_bytes = sum(len(tile) for _, coded in parts for tile in coded)
        whole = 4 * group.elements
        print(f"\nexpert, {name}: {whole / 1024:.0f} KiB of weights, ", end="")
        print(f"{delta_bytes / 1024:.1f} KiB of deltas a round")
        print(f"{'updates':>8} {'load ms':>9} {'over the snapshot':>18} {'deltas':>9}")
        alone = 0.0
        for chain in chains:
            took = []
            for _ in range(repeats):
                began = time.perf_counter()
                state = tiles.load(blobs, group, roots)
                for _ in range(chain):
                    state = next_tiles(group, state, parts, run)
                for pair in state:  # what is mapped is read now
                    _ = [np.copy(one) for one in pair if one is not None]
                took.append((time.perf_counter() - began) * 1000)
            median = statistics.median(took)
            alone = alone or median
            share = chain * delta_bytes / whole
            print(f"{chain:>8} {median:>9.2f} {median / alone:>17.0f}x {share:>8.0%}")
        blobs.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and chains")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    for name, group in groups().items():
        measure(name, group, 3 if quick else 9, CHAINS[:5] if quick else CHAINS)


if __name__ == "__main__":
    main()
