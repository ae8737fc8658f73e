"""Inner steps by Muon for tests.bench.bench_pareto: matrices move along U V^T of their
momentum (Jordan 2024); embeddings, routers and norms keep AdamW.

The update has the size that AdamW's usually has, 0.2 per element (arXiv 2502.16982),
times STRENGTH. State is fresh in every round, as DEC-B12 wants it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture, Run
from blyan_proto.constants import PPM
from blyan_tile.adamw import AdamW
from blyan_tile.inner import WARM_UP_STEPS, Outcome, rate_of
from blyan_tile.model.training import Trainable

STRENGTH = 8.0
_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)  # of the iteration, as published
_ITERATIONS = 5
_NOT_MATRICES = ("embed.weight", "head.weight", "router.weight", "shared_gate.weight")


def is_hidden(name: str, parameter: Tensor) -> bool:
    """True for the matrices inside the layers, which Muon moves."""
    return parameter.dim() == 2 and not name.endswith(_NOT_MATRICES)


def orthogonal(batch: Tensor) -> Tensor:
    """Return about U V^T of each matrix of (k, m, n), m <= n, by Newton-Schulz steps."""
    a, b, c = _QUINTIC
    x: Tensor = batch / (batch.norm(dim=(1, 2), keepdim=True) + 1e-12)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Muon:
    """Momentum and orthogonal updates of matrices, all of one shape at a time."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        self._stacks = list(shapes.values())
        self._momenta = [torch.zeros(len(s), *s[0].shape) for s in self._stacks]
        self._decay = decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Use and drop the gradients; a matrix without one counts as zeros."""
        for stack, momentum in zip(self._stacks, self._momenta):
            gradients = torch.stack(
                [torch.zeros_like(p) if p.grad is None else p.grad for p in stack]
            )  # (k, m, n)
            momentum.lerp_(gradients, 1 - _MOMENTUM)
            ahead = gradients.lerp(momentum, _MOMENTUM)
            tall = ahead.shape[1] > ahead.shape[2]
            moved = orthogonal(ahead.mT if tall else ahead)
            size = 0.2 * STRENGTH * math.sqrt(max(ahead.shape[1:])) * rate
            for parameter, change in zip(stack, moved.mT if tall else moved):
                parameter.mul_(1 - rate * self._decay).sub_(change, alpha=size)
                parameter.grad = None


def train(
    architecture: Architecture,
    run: Run,
    round_: int,
    parameters: Mapping[str, Tensor],
    held: Sequence[Sequence[int]],
    batches: Iterator[Tensor],
    report: Callable[[int, float], None],
) -> Outcome:
    """Take the place of `inner.train`."""
    model = Trainable(architecture, parameters, held)
    hidden = [p for name, p in parameters.items() if is_hidden(name, p)]
    others = [p for name, p in parameters.items() if not is_hidden(name, p)]
    decay = run.decay_ppm / PPM
    muon = Muon(hidden, decay)
    adamw = AdamW(others, run.beta1_ppm / PPM, run.beta2_ppm / PPM, decay)
    rate = rate_of(run, round_)
    losses: list[float] = []
    routed = torch.zeros(architecture.layers, architecture.experts, dtype=torch.int64)
    for index, batch in enumerate(batches):
        passed = model.run(batch)
        torch.autograd.backward(
            passed.loss + run.auxiliary_ppm / PPM * passed.auxiliary
        )
        adamw.clip(run.clip_ppm / PPM)
        loss = float(passed.loss.detach())
        if not math.isfinite(loss):
            return Outcome(losses, routed, False)
        warming = rate * min(1.0, (index + 1) / WARM_UP_STEPS)
        muon.step(warming)
        adamw.step(warming)
        losses.append(loss)
        routed += passed.routed
        report(len(losses), loss)
    return Outcome(losses, routed, True)
