"""Rounds of partial learners in one process: held-out loss by round, time by part.

    python -m tests.bench.bench_rounds [--rounds 16] [--dense] [--seed 1]

Four learners hold half of the experts each, every expert is held twice; all real code
but the network: jobs, files, codec, error feedback, outer step. One torch thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from blyan_proto.block.model import Codec, CodecChoice, RateStep, Run, TensorClass
from blyan_proto.digest import Domain, digest
from blyan_proto.types import bitmap
from blyan_tile.baselines import baselines
from blyan_tile.batches import held_out_windows
from blyan_tile.corpus import Archive, ArchiveJob, build
from blyan_tile.create import initial_parameters, model_of, run_preset, write_tile
from blyan_tile.delta import next_tiles
from blyan_tile.layout import join, layout_of, split
from blyan_tile.learner import GroupFiles, LearnJob, LearnResult, learn
from blyan_tile.model.training import held_out_loss
from blyan_tile.residual import Settled
from blyan_tile.tblock import open_array

HELD = [range(0, 4), range(4, 8), range(0, 8, 2), range(1, 8, 2)]


class Network:
    """What chain, holders and learners know, without any of them."""

    def __init__(self, run: Run, preset: str, seed: int, directory: Path) -> None:
        self.run = run
        self.model = model_of(preset, "bench")
        self.layout = layout_of(self.model)
        self.directory = directory
        parameters = initial_parameters(self.model.architecture, seed)
        momentum = run.outer_momentum_ppm > 0
        self.state = {
            group.index: [
                (tile, np.zeros_like(tile) if momentum else None)
                for tile in split(group, parameters)
            ]
            for group in self.layout.groups
        }
        self.settled: list[tuple[Settled, ...]] = [()] * len(HELD)
        archive = directory / "archive"
        build(ArchiveJob("", str(archive), 16 << 20, run.held_out_ppm), lambda _: None)
        with archive.open("rb") as file:
            self.archive = Archive(open_array(file.fileno()))

    def base(self) -> tuple[GroupFiles, ...]:
        """Write the current weights, return their files."""
        return tuple(
            GroupFiles(
                index,
                tuple(
                    str(self.directory / write_tile(self.directory, w).hex())
                    for w, _ in tiles
                ),
            )
            for index, tiles in self.state.items()
        )

    def learn(
        self, learner: int, round_: int, base: tuple[GroupFiles, ...]
    ) -> LearnResult:
        held = {
            group.index
            for group in self.layout.expert_groups
            if group.expert in HELD[learner]
        }
        mine = held | {group.index for group in self.layout.shared_groups}
        return learn(
            LearnJob(
                model=self.model,
                run=self.run,
                run_id=bytes(32),
                round=round_,
                learner=bytes([learner]) * 20,
                beacon=digest(Domain.BEACON, round_.to_bytes(4, "little")),
                archives=(str(self.directory / "archive"),),
                base=tuple(files for files in base if files.group in mine),
                held=bitmap(held, len(self.layout.groups)),
                settled=self.settled[learner],
                residuals=str(self.directory / f"learner{learner}"),
                device="cpu",
                threads=1,
            ),
            lambda _: None,
        )

    def apply(self, results: list[LearnResult], round_: int) -> int:
        """Make the next version of every group; return the bytes of all deltas."""
        parts: dict[int, list[tuple[int, list[bytes]]]] = {}
        for learner, result in enumerate(results):
            self.settled[learner] = tuple(
                Settled(round_, delta.group, True, 1_000_000) for delta in result.deltas
            )
            for delta in result.deltas:
                parts.setdefault(delta.group, []).append((1_000_000, list(delta.tiles)))
        for group in self.layout.groups:
            self.state[group.index] = next_tiles(
                group, self.state[group.index], parts.get(group.index, []), self.run
            )
        return sum(
            len(tile)
            for result in results
            for delta in result.deltas
            for tile in delta.tiles
        )

    def judge(self) -> float:
        """Return the held-out loss of the current weights, nats per byte."""
        parameters = {
            name: torch.from_numpy(array)
            for group in self.layout.groups
            for name, array in join(
                self.layout, group, [w for w, _ in self.state[group.index]]
            ).items()
        }
        windows = torch.from_numpy(
            held_out_windows(self.archive.held_out, self.run.sequence)
        )  # (N, T + 1)
        return held_out_loss(self.model.architecture, parameters, windows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dense", action="store_true", help="float16, no codec")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--rate", type=float, nargs="*", help="at 0, at half, …")
    parser.add_argument("--outer", type=float, nargs=2, help="rate and momentum")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> Run:
    run = run_preset(
        options.preset, bytes(32), (bytes(32),), options.rounds, options.seed
    )
    if options.dense:
        run = replace(run, codecs=(CodecChoice(TensorClass.MATRIX, 0, Codec.DENSE, 0),))
    if options.batch:
        run = replace(run, batch=options.batch)
    if options.steps:
        run = replace(run, inner_steps=options.steps)
    if options.rank:
        codecs = (TensorClass.MATRIX, TensorClass.EMBEDDING)
        run = replace(
            run,
            codecs=tuple(CodecChoice(c, 0, Codec.LR4, options.rank) for c in codecs),
        )
    if options.rate:
        span = options.rounds / len(options.rate)
        run = replace(
            run,
            inner_rate=tuple(
                RateStep(round(index * span), round(rate * 1e9))
                for index, rate in enumerate(options.rate)
            ),
        )
    if options.outer:
        rate, momentum = (round(value * 1e6) for value in options.outer)
        run = replace(run, outer_rate_ppm=rate, outer_momentum_ppm=momentum)
    return run


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        network = Network(_run(options), options.preset, options.seed, Path(folder))
        print(baselines(network.archive))
        print(f"round  0  held-out {network.judge():.4f}")
        total = 0.0
        for round_ in range(options.rounds):
            began, cpu = time.perf_counter(), time.process_time()
            base = network.base()
            results = [network.learn(i, round_, base) for i in range(len(HELD))]
            learned = time.process_time() - cpu
            sent = network.apply(results, round_)
            spent = time.process_time() - cpu
            total += spent
            train = np.mean([result.loss_micro for result in results]) / 1e6
            print(
                f"round {round_ + 1:2}  held-out {network.judge():.4f}  train {train:.4f}"
                f"  sent {sent / 1e3:.0f} KB  learn {learned:.1f} s  apply"
                f" {spent - learned:.1f} s CPU  wall {time.perf_counter() - began:.1f} s"
                f"  total {total:.0f} s CPU",
                flush=True,
            )


if __name__ == "__main__":
    main()
