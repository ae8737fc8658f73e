"""The inner steps of a round, from a fresh optimizer, on what one node holds.

A pure function of the base, the run, the round and the batches (DEC-B12), so an auditor
can repeat it within a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture, Inner, Run
from blyan_proto.constants import PPM
from blyan_tile.adamw import AdamW
from blyan_tile.layout import laid_out
from blyan_tile.model.training import Trainable
from blyan_tile.muon import Muon
from blyan_tile.together import Shared, Together

WARM_UP_STEPS = 5  # linear, at the start of every round
_PPB = 1_000_000_000


@dataclass(frozen=True)
class Outcome:
    """What the steps of a round gave."""

    losses: list[float]  # nats per token, one per step
    routed: Tensor  # (layers, E) int64, tokens that each expert saw
    finite: bool  # False: the loss or the gradient blew up, and the steps ended there


def rate_of(run: Run, round_: int) -> float:
    """Return the inner learning rate of a round: the last entry that has begun."""
    rate, since = 0, -1
    for step in run.inner_rate:
        if since < step.from_round <= round_:
            rate, since = step.rate_ppb, step.from_round
    return rate / _PPB


class Optimizer(Protocol):
    """What changes parameters by their gradients."""

    def step(self, rate: float) -> None:
        """Use and drop the gradients."""


def optimizer_of(
    architecture: Architecture, run: Run, parameters: Mapping[str, Tensor]
) -> Optimizer:
    """Return the run's optimizer of `parameters`, in its first state."""
    decay = run.decay_ppm / PPM
    inside = () if run.inner is Inner.ADAMW else laid_out(architecture).matrices
    matrices = {name: parameters[name] for name in inside if name in parameters}
    others = [p for name, p in parameters.items() if name not in matrices]
    adamw = AdamW(others, run.beta1_ppm / PPM, run.beta2_ppm / PPM, decay)
    return Muon(matrices.values(), decay, adamw) if matrices else adamw


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients to a norm of at most `limit`; return the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)
    return norm


def train(
    architecture: Architecture,
    run: Run,
    round_: int,
    parameters: Mapping[str, Tensor],
    held: Sequence[Sequence[int]],
    batches: Iterator[Tensor],
    report: Callable[[int, float], None],
    together: Together | None = None,
) -> Outcome:
    """Change `parameters` in place by one step of the run's optimizer per batch.

    `held`: per layer the experts among `parameters`. A batch is (B, T + 1) int64.
    `report` hears the steps done and the loss after each. `together`: with others, who
    do the same at the same time with other rows of the same batches.
    """
    if together is None:
        model, trained = Trainable(architecture, parameters, held), parameters
        step = _alone(model, run.auxiliary_ppm / PPM)
    else:
        shared = Shared(parameters, together, is_whole=all(map(len, held)))
        model = Trainable(architecture, shared, held, together.summed)
        trained = shared.leaves()
        step = _in_company(model, shared, together, run.auxiliary_ppm / PPM)
    optimizer = optimizer_of(architecture, run, trained)
    rate = rate_of(run, round_)
    losses: list[float] = []
    routed = torch.zeros(
        architecture.layers, architecture.experts, dtype=torch.int64
    )  # (layers, E)
    for index, batch in enumerate(batches):
        loss, counts = step(batch)
        norm = clip_gradients(
            trained.values(), run.clip_ppm / PPM if run.clip_ppm else math.inf
        )
        if not math.isfinite(loss) or not math.isfinite(norm):
            return Outcome(losses, routed, False)
        optimizer.step(rate * min(1.0, (index + 1) / WARM_UP_STEPS))
        losses.append(loss)
        routed += counts.cpu()
        report(len(losses), loss)
    if together is not None:
        shared.copy_to(parameters)
    finite = all(bool(p.detach().isfinite().all()) for p in parameters.values())
    return Outcome(losses, routed, finite)


Step = Callable[[Tensor], tuple[float, Tensor]]  # batch -> its loss, tokens by expert


def _alone(model: Trainable, balance: float) -> Step:
    """Return what leaves the gradients of a batch in the parameters."""

    def step(batch: Tensor) -> tuple[float, Tensor]:
        passed = model.run(batch)
        torch.autograd.backward(passed.loss + balance * passed.auxiliary)
        return float(passed.loss.detach()), passed.routed

    return step


def _in_company(
    model: Trainable, shared: Shared, together: Together, balance: float
) -> Step:
    """Return the same for a process that passes only its rows of the batch."""

    def run(tokens: Tensor) -> tuple[Tensor, ...]:
        passed = model.run(tokens)
        return passed.loss, passed.auxiliary, passed.routed

    def step(batch: Tensor) -> tuple[float, Tensor]:
        rows, weight = together.rows(batch)
        loss, auxiliary, routed = shared.passed(run, rows)
        torch.autograd.backward(weight * (loss + balance * auxiliary))
        mean = together.summed(weight / together.processes * loss)
        return float(mean), routed  # already of all

    return step
