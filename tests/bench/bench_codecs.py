"""Delta codecs on one real delta: bytes, what is lost, and time.

    python -m tests.bench.bench_codecs [--quick] [--inner 15] [--steps 1000]

The demo model learns the sources of Python's library for a while, then two rounds of
inner steps from a fresh AdamW; the second round's change is measured, warm starts come
from the first. Expert matrices of one layer, scaled to 2^21 parameters (8,388,608 bytes
in float32). Nothing is fed back here. Peers of the same run: the best rank that a
singular value decomposition finds, and the white paper's pipeline. Times are medians of
wall time, in a process of its own for each number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blyan_proto.block import sending
from blyan_tile import compress
from blyan_tile.create import architecture_of, initial_parameters, run_preset
from blyan_tile.inner import train
from tests.bench import white_paper

FORMS = (
    *("LR4:4", "LR4:8", "LR4:16", "LR4:32"),
    *("LRC:4", "LRC:8", "LRC:16", "LRC:32"),
    *("SC:16/1", "SC:32/1", "SC:64/1", "SC:64/2", "SC:128/1", "SC:512/1"),
    *("Q:1", "Q:2", "Q:4", "Q:8", "DENSE"),
)
EMBEDDING = (
    *("LR4:16", "ROWS:LR4/16", "LRC:16", "ROWS:LRC/16"),
    *("Q:1", "ROWS:Q/1", "Q:2", "ROWS:Q/2", "DENSE"),
)
UNIT = 1 << 21
Tiles = list[np.ndarray]
Row = dict[str, float]  # kb, error, cosine, encode_ms, decode_ms


def deltas(steps: int, inner: int) -> tuple[dict[str, Tiles], dict[str, Tiles]]:
    """Return the changes of two rounds in a row: "experts" and "embedding"."""
    architecture, run = architecture_of("demo"), run_preset(
        "demo", bytes(32), (), 16, 1
    )
    parameters = {
        name: torch.from_numpy(array).requires_grad_()
        for name, array in initial_parameters(architecture, 1).items()
    }
    batches, everyone = _batches(), [range(architecture.experts)] * architecture.layers

    def learn(count: int) -> float:
        some = (next(batches) for _ in range(count))
        outcome = train(architecture, run, 0, parameters, everyone, some, _silent)
        return outcome.losses[-1]

    print(f"{steps} steps of 4 x 128 bytes, last loss {learn(steps):.3f} nats/byte")
    rounds = []
    for _ in range(2):
        before = {name: one.detach().clone() for name, one in parameters.items()}
        learn(inner)
        change = {
            n: (before[n] - one.detach()).numpy() for n, one in parameters.items()
        }
        experts = [x for n, x in change.items() if n.startswith("layer1.expert")]
        chosen = [x for x in experts if x.ndim == 2]
        rounds.append({"experts": chosen, "embedding": [change["embed.weight"]]})
    return rounds[0], rounds[1]


def _batches() -> Iterator[Tensor]:
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(path.read_bytes() for path in sources)
    tokens = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    generator = torch.Generator().manual_seed(1)
    while True:
        starts = torch.randint(0, len(tokens) - 129, (4,), generator=generator)
        yield torch.stack([tokens[start : start + 129] for start in starts.tolist()])


def _silent(step: int, loss: float) -> None:
    """Nobody watches."""


def measured(form: str, first: Tiles, second: Tiles, count: int) -> Row:
    """Return what one codec makes of the second round's tiles."""
    choice = sending.parse(form)
    warm = [compress.encode(*choice, x)[1] for x in first]

    def encode() -> list[bytes]:
        return [compress.encode(*choice, x, w)[0] for x, w in zip(second, warm)]

    def decode() -> Tiles:
        return [compress.decode(raw, x.shape) for raw, x in zip(encoded, second)]

    encoded = encode()
    row = quality(second, decode(), sum(map(len, encoded)))
    scale = UNIT / sum(prod(x.shape) for x in second)
    return row | {
        "encode_ms": scale * _median_ms(encode, count),
        "decode_ms": scale * _median_ms(decode, count),
    }


def _median_ms(call: Callable[[], object], count: int) -> float:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def quality(tiles: Tiles, received: Tiles, size: int) -> Row:
    x = np.concatenate([one.ravel() for one in tiles]).astype(np.float64)
    y = np.concatenate([one.ravel() for one in received]).astype(np.float64)
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    return {
        "kb": size / 1e3 * UNIT / len(x),
        "error": float(np.linalg.norm(x - y)) / norms[0],
        "cosine": float(x @ y) / (norms[0] * norms[1]),
    }


def peers(tiles: Tiles) -> None:
    encoded = [white_paper.encode(x) for x in tiles]
    received = [white_paper.decode(raw, x.shape) for raw, x in zip(encoded, tiles)]
    row = quality(tiles, received, sum(map(len, encoded)))
    line(
        "white paper",
        [f"{row['kb']:.1f}", f"{row['error']:.3f}", f"{row['cosine']:.3f}"],
    )
    values = [np.linalg.svd(x, compute_uv=False) for x in tiles]
    whole = sum(float(np.square(v).sum()) for v in values)
    for rank in (4, 8, 16, 32):
        lost = sum(float(np.square(v[rank:]).sum()) for v in values) / whole
        line(f"best rank {rank}", ["", f"{lost**0.5:.3f}", f"{(1 - lost)**0.5:.3f}"])


def line(name: str, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells + [''] * (5 - len(cells)))} |", flush=True)


def timed(path: Path, threads: int, count: int) -> dict[str, dict[str, Row]]:
    """Return the rows per part and form, from a process with so many threads."""
    command = [sys.executable, "-m", "tests.bench.bench_codecs", "--timed", str(path)]
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }
    ended = subprocess.run(
        [*command, "--count", str(count)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    rows: dict[str, dict[str, Row]] = json.loads(ended.stdout)
    return rows


def rows_of(path: Path, count: int) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    with np.load(path, allow_pickle=False) as file:
        for part, forms in (("experts", FORMS), ("embedding", EMBEDDING)):
            first, second = (
                [file[n] for n in file.files if n.startswith(f"{at} {part} ")]
                for at in (0, 1)
            )
            found[part] = {f: measured(f, first, second, count) for f in forms}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less training and calls")
    parser.add_argument("--steps", type=int, help="steps before the two rounds")
    parser.add_argument("--inner", type=int, default=15, help="inner steps of a round")
    parser.add_argument("--count", type=int, default=9, help="calls per time")
    parser.add_argument("--timed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.timed:
        print(json.dumps(rows_of(options.timed, options.count)))
        return
    torch.set_num_threads(1)
    steps = options.steps or (60 if options.quick else 1000)
    count = 3 if options.quick else options.count
    rounds = deltas(steps, options.inner)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "deltas.npz"
        arrays = {
            f"{at} {part} {index:03}": x
            for at, parts in enumerate(rounds)
            for part, tiles in parts.items()
            for index, x in enumerate(tiles)
        }
        np.savez(path, **arrays)  # type: ignore[arg-type]
        one, two = timed(path, 1, count), timed(path, 2, count)
    for part, rows in one.items():
        tiles = rounds[1][part]
        print(
            f"\n## {part}: {len(tiles)} tiles, {sum(x.size for x in tiles):,} parameters"
        )
        line(
            "codec",
            ["KB per 2^21", "rel L2", "cos", "encode ms, 1/2 threads", "decode ms"],
        )
        line("---", ["---"] * 5)
        for form, row in rows.items():
            other = two[part][form]
            cells = [f"{row['kb']:.1f}", f"{row['error']:.3f}", f"{row['cosine']:.3f}"]
            cells += [
                f"{row[k]:.1f} / {other[k]:.1f}" for k in ("encode_ms", "decode_ms")
            ]
            line(form, cells)
        if part == "experts":
            peers(tiles)


if __name__ == "__main__":
    main()
