"""Recipes of experts: speed, size, and what they lose; streamed beside resident.

    python -m tests.bench.bench_recipes [--quick] [--threads 1]

One thread, medians of CPU time, every recipe in turns within one loop, so that all see
the same machine. "plain" is three float32 products without padding, as any program
would compute the expert. Quality: the demo model after some steps on the sources of
Python's library; once more with activations that a few columns dominate.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.block.model import Architecture
from blyan_proto.protocols.expert import Numerics
from blyan_tile.create import architecture_of, initial_parameters, model_of, run_preset
from blyan_tile.inner import train
from blyan_tile.layout import group_root, layout_of, split
from blyan_tile.model.expert import expert_of
from blyan_tile.model.transformer import Trunk
from blyan_tile.recipe import Gated, Recipe, derive
from blyan_tile.stream import expert_bytes, ready_expert, streamed_expert
from blyand.inference.experts import Experts
from blyand.inference.staging import Staging
from blyand.inference.weights import open_tiles
from blyand.metrics import Metrics
from blyand.store.blobs import BlobStore

SHAPES = (512, 1376), (1024, 2816)  # d, h
BATCHES = 1, 8, 64
LARGE = 2048, 5632  # 34.6 million parameters: 12 tiles a matrix

Matrices = tuple[Tensor, Tensor, Tensor]


def times_ms(calls: Mapping[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Return the median CPU time of each call, all called in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(count + 2):
        for name, call in calls.items():
            began = time.thread_time()
            call()
            if turn >= 2:
                taken[name].append(time.thread_time() - began)
    return {name: 1e3 * statistics.median(some) for name, some in taken.items()}


def matrices(width: int, hidden: int) -> Matrices:
    generator = torch.Generator().manual_seed(1)
    shapes = (hidden, width), (hidden, width), (width, hidden)
    gate, up, down = (
        torch.randn(*shape, generator=generator) / shape[1] ** 0.5 for shape in shapes
    )
    return gate, up, down


def plain(weights: Matrices, x: Tensor) -> Tensor:
    gate, up, down = weights
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def speed(count: int) -> None:
    print("## Speed: ms of one expert, one thread (times plain float32)")
    print("| d, h | batch | plain | f32 | bf16 | int8 | int4 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for width, hidden in SHAPES:
        weights = matrices(width, hidden)
        ready = {r: Gated(r, *(derive(r, m) for m in weights)) for r in Recipe}
        for batch in BATCHES:
            x = torch.randn(batch, width)
            calls: dict[str, Callable[[], object]] = {
                "plain": lambda: plain(weights, x)
            }
            for recipe, expert in ready.items():
                calls[recipe.label] = lambda expert=expert: expert(x)  # type: ignore[misc]
            made = times_ms(calls, count)
            cells = [f"{made['plain']:.3f}"]
            for recipe in Recipe:
                took = made[recipe.label]
                cells.append(f"{took:.3f} ({made['plain'] / took:.2f})")
            print(f"| {width}, {hidden} | {batch} | {' | '.join(cells)} |")


def trained(steps: int) -> tuple[Architecture, dict[str, Tensor], Tensor]:
    """Return the demo model after `steps` and (N, T + 1) windows it has not seen."""
    architecture = architecture_of("demo")
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(path.read_bytes() for path in sources)
    tokens = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    cut = len(tokens) - 16 * 129
    generator = torch.Generator().manual_seed(1)

    def batch() -> Tensor:
        starts = torch.randint(0, cut - 129, (8,), generator=generator).tolist()
        return torch.stack([tokens[start : start + 129] for start in starts])

    parameters = {
        name: torch.from_numpy(array).requires_grad_()
        for name, array in initial_parameters(architecture, 1).items()
    }
    run = run_preset("demo", b"\0" * 32, (), 16, 1)
    everyone = [range(architecture.experts)] * architecture.layers
    batches = (batch() for _ in range(steps))
    outcome = train(architecture, run, 0, parameters, everyone, batches, _silent)
    print(f"{steps} steps of 8 x 128 tokens, last loss {outcome.losses[-1]:.3f}")
    frozen = {name: tensor.detach() for name, tensor in parameters.items()}
    return architecture, frozen, tokens[cut:].view(16, 129)


def _silent(step: int, loss: float) -> None:
    """Nobody watches."""


@torch.no_grad()
def log_probabilities(
    architecture: Architecture,
    parameters: Mapping[str, Tensor],
    windows: Tensor,
    recipe: Recipe,
) -> tuple[Tensor, float]:
    """Return (n, V) log-probabilities; and how far the experts' outputs are off."""
    trunk = Trunk(architecture, parameters)
    hidden = trunk.embed(windows[:, :-1])  # (N, T, d)
    off: list[float] = []
    for layer in range(architecture.layers):
        hidden, x, routing = trunk.attend(layer, hidden)
        outputs = {}
        for number, rows in routing.rows().items():
            whole = expert_of(parameters, layer, number)
            made = (whole.gate, whole.up, whole.down)
            expert = Gated(recipe, *(derive(recipe, matrix) for matrix in made))
            exact, output = whole(x[rows]), expert(x[rows])
            off.append(float((output - exact).norm() / exact.norm()))
            outputs[number] = (rows, output)
        hidden = trunk.combine(hidden, routing, outputs)
    return trunk.logits(hidden).flatten(0, 1).log_softmax(-1), statistics.mean(off)


def with_outliers(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same function, its experts' inputs dominated by four columns.

    Columns of the norm before the experts are scaled up and those of their matrices
    and of the router down, as large models have it by training.
    """
    made = dict(parameters)
    for name, tensor in parameters.items():
        if name.endswith(".expert_norm.weight"):
            scale = torch.ones_like(tensor)
            scale[::64] = 30.0
            made[name] = tensor * scale
            layer = name.split(".", 1)[0]
            for other, matrix in parameters.items():
                reads = (".gate.weight", ".up.weight", ".router.weight")
                if other.startswith(f"{layer}.") and other.endswith(reads):
                    made[other] = matrix / scale
    return made


def quality(steps: int) -> None:
    print("## Quality: the demo model on 2,048 held-out bytes")
    architecture, parameters, windows = trained(steps)
    targets = windows[:, 1:].flatten()
    print("| activations | recipe | expert off by | KL | nats/byte | same argmax |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, some in (
        ("as trained", parameters),
        ("4 columns x 30", with_outliers(parameters)),
    ):
        exact, _ = log_probabilities(architecture, some, windows, Recipe.F32)
        for recipe in Recipe:
            made, off = log_probabilities(architecture, some, windows, recipe)
            divergence = (exact.exp() * (exact - made)).sum(-1).mean()
            loss = F.nll_loss(made, targets)
            same = (made.argmax(-1) == exact.argmax(-1)).float().mean()
            print(
                f"| {kind} | {recipe.label} | {off:.4f} | {divergence:.5f} "
                f"| {loss:.4f} | {same:.4f} |"
            )


def storage(count: int) -> None:
    width, hidden = LARGE
    shape = replace(architecture_of("tiny"), layers=1, experts=1, experts_per_token=1)
    shape = replace(shape, width=width, expert_width=hidden)
    model = replace(model_of("tiny", "bench"), architecture=shape)
    layout = layout_of(model)
    group = layout.group_named("layer0.expert0")
    names = [f"{group.name}.{part}.weight" for part in ("gate", "up", "down")]
    made = dict(zip(names, (m.numpy() for m in matrices(width, hidden))))
    print(f"## Storage: one expert of d {width}, h {hidden}, {len(group.tiles)} tiles")
    with tempfile.TemporaryDirectory() as directory:
        blobs = BlobStore(Path(directory))
        roots = [blobs.put_array(t, durable=False) for t in split(group, made)]
        opened = open_tiles(blobs, group, roots)
        print("| recipe | MiB | load ms | batch | resident ms | streamed ms | equal |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for recipe in Recipe:
            load = times_ms(
                {
                    "load": lambda: ready_expert(
                        group, opened, recipe, Staging(torch.device("cpu"))
                    )
                },
                3,
            )["load"]
            ready = ready_expert(group, opened, recipe, Staging(torch.device("cpu")))
            passing = streamed_expert(
                group, opened, recipe, Staging(torch.device("cpu"))
            )
            size = expert_bytes(group, recipe) / 2**20
            for batch in (1, 64):
                x = torch.randn(batch, width)
                took = times_ms({"r": lambda: ready(x), "s": lambda: passing(x)}, count)
                equal = torch.equal(ready(x), passing(x))
                print(
                    f"| {recipe.label} | {size:.1f} | {load:.1f} | {batch} "
                    f"| {took['r']:.2f} | {took['s']:.2f} | {equal} |"
                )
        experts = Experts(blobs, 1 << 30, Metrics())
        root = group_root(roots)
        numerics = Numerics.REFERENCE
        hit = times_ms(
            {"hit": lambda: experts.get(layout, group, root, roots, numerics)}, 200
        )
        print(f"an expert that is ready is found in {1e3 * hit['hit']:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer calls, less training"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speed(5 if options.quick else 40)
    storage(3 if options.quick else 15)
    quality(30 if options.quick else 400)


if __name__ == "__main__":
    main()
