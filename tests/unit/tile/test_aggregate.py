"""The weighted sum: its definition, and the same bytes on every processor."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from blyan_tile.aggregate import check_arithmetic, fraction, weighted_sum

VECTORS = Path(__file__).parents[2] / "vectors"
make_tile = SimpleNamespace(**runpy.run_path(str(VECTORS / "make_tile.py")))
KERNELS = (  # of OpenBLAS, with what a processor must have to run them
    ("SkylakeX", "AVX512_SKX"),
    ("Haswell", "AVX2"),
    ("Sandybridge", "AVX"),
    ("Nehalem", "SSE42"),
)


def processors() -> list[tuple[str, int]]:
    """Return three (kernel, threads): the two newest that run here and the oldest."""
    features = np._core._multiarray_umath.__cpu_features__
    able = [kernel for kernel, needs in KERNELS if features.get(needs)]
    return list(zip((*able[:2], *(able[-1:] or ["plain"])), (1, 2, 4)))


def test_vectors_under_other_kernels_and_thread_counts():
    golden = {
        name: json.loads((VECTORS / f"tile_{name}.json").read_text())
        for name in ("delta", "update")
    }
    runs = [
        subprocess.Popen(
            [sys.executable, str(VECTORS / "make_tile.py"), "delta", "update"],
            stdout=subprocess.PIPE,
            env=os.environ
            | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": str(threads)},
        )
        for kernel, threads in processors()
    ]
    outputs = [run.communicate()[0] for run in runs]
    for processor, run, output in zip(processors(), runs, outputs):
        assert run.returncode == 0, processor
        assert json.loads(output) == golden, processor


def test_the_sum_is_its_definition():
    parts = [
        (ppm, make_tile.floats(f"part {ppm}", (5, 7), -20).astype(np.float64) / 3)
        for ppm in (1_000_000, 500_000, 3, 4_294_967_295)
    ]
    acc, total = np.zeros((5, 7), np.float32), np.float32(0)
    for ppm, values in parts:
        weight = np.float32(ppm) / np.float32(1_000_000)
        for at in np.ndindex(5, 7):
            acc[at] = acc[at] + np.float32(np.float32(values[at]) * weight)
        total = np.float32(total + weight)
    for at in np.ndindex(5, 7):
        acc[at] = acc[at] / total
    result = weighted_sum(parts)
    assert result.dtype == np.float32
    assert result.tobytes() == acc.tobytes()
    assert weighted_sum(iter(parts)).tobytes() == acc.tobytes()


def test_a_clip_shrinks_a_delta_and_not_the_divisor():
    parts = [(1_000_000, np.ones(4)), (1_000_000, np.full(4, 8.0))]
    assert (weighted_sum(parts, [1_000_000, 250_000]) == 1.5).all()
    assert (weighted_sum(parts[1:], [250_000]) == 2).all()
    plain = weighted_sum(parts, [1_000_000, 1_000_000])
    assert plain.tobytes() == weighted_sum(parts).tobytes()


def test_rows_alone_equal_rows_of_the_whole():
    parts = [
        (ppm, make_tile.floats(f"rows {ppm}", (33, 17), -22).astype(np.float64))
        for ppm in (700_000, 333_333)
    ]
    whole = weighted_sum(parts)
    for start, stop in ((0, 1), (1, 20), (20, 33)):
        alone = weighted_sum([(ppm, values[start:stop]) for ppm, values in parts])
        assert alone.tobytes() == whole[start:stop].tobytes()


def test_one_part_of_weight_one_comes_back():
    values = make_tile.floats("one", (9,), -20)
    assert (weighted_sum([(1_000_000, values.astype(np.float64))]) == values).all()


def test_a_sum_needs_weight_and_one_shape():
    part = np.ones(3)
    with pytest.raises(ValueError):
        weighted_sum([])
    with pytest.raises(ValueError):
        weighted_sum([(0, part)])
    with pytest.raises(ValueError):
        weighted_sum([(1, part), (1, np.ones(4))])


def test_arithmetic_of_this_machine():
    check_arithmetic()
    assert fraction(900_000) == np.float32(0.9)
