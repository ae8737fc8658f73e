"""Muon: matrices move along U V^T of their momentum, by the same length in every
direction, whatever the size of the gradient.

Jordan 2024, https://kellerjordan.github.io/posts/muon/; the update has the size that
AdamW's usually has, 0.2 per element (arXiv 2502.16982), times STRENGTH.
docs/decisions/0036-muon.md says why this is not torch.optim.Muon.

Letters: k matrices, s their shorter side, l the longer one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from blyan_tile.adamw import AdamW
from blyan_tile.together import part, whole

STRENGTH = 8.0
MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # of an iteration, as published
ITERATIONS = 5
_TINY = 1e-12  # norms far below it are no directions
_BATCH_ELEMENTS = 1 << 21  # of matrices that are made orthogonal at once: 8 MiB


class Muon:
    """Steps of matrices; everything else is moved by AdamW. The state starts at zero."""

    def __init__(self, matrices: Iterable[Tensor], decay: float, others: AdamW) -> None:
        self._batches = list(_alike(matrices))
        self._momenta = [
            [torch.zeros_like(p) for p in batch] for batch in self._batches
        ]
        self._decay = decay
        self._others = others

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Use and drop the gradients; a matrix whose gradient is zero only decays.

        It is an expert that no token saw. A direction has no size, so without this it
        would go on by a whole step along what it once learned.
        """
        for matrices, momenta in zip(self._batches, self._momenta):
            moved, ahead, norms = list[Tensor](), list[Tensor](), list[Tensor]()
            for matrix, momentum in zip(matrices, momenta):
                matrix.mul_(1 - rate * self._decay)
                gradient, matrix.grad = matrix.grad, None
                if gradient is None:
                    continue
                momentum.lerp_(gradient, 1 - MOMENTUM)
                moved.append(matrix)
                ahead.append(whole(gradient.lerp(momentum, MOMENTUM)))  # Nesterov
                norms.append(whole(gradient.norm()))
            if not moved:
                continue
            seen = (torch.stack(norms) > 0).to(ahead[0].dtype)  # (k,)
            wide = [x if x.shape[0] <= x.shape[1] else x.mT for x in ahead]
            changes = orthogonal(torch.stack(wide)) * seen[:, None, None]  # (k, s, l)
            size = 0.2 * STRENGTH * math.sqrt(changes.shape[2]) * rate
            for matrix, change in zip(moved, changes):
                turned = change if matrix.shape[0] <= matrix.shape[1] else change.mT
                matrix.sub_(part(turned, matrix), alpha=size)
        self._others.step(rate)


def orthogonal(batch: Tensor) -> Tensor:
    """Return about U V^T of each matrix U S V^T of (k, s, l); of zeros, zeros.

    Newton-Schulz steps; accelerators make them in bfloat16, as published.
    """
    a, b, c = QUINTIC
    x: Tensor = batch / (batch.norm(dim=(1, 2), keepdim=True) + _TINY)
    x = x.to(torch.bfloat16 if batch.is_cuda else batch.dtype)
    for _ in range(ITERATIONS):
        square = x @ x.mT  # (k, s, s)
        x = a * x + (b * square + c * square @ square) @ x
    return x.to(batch.dtype)


def _alike(matrices: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the matrices by shape, turned or not, in batches of a bounded size."""
    alike: dict[tuple[int, ...], list[Tensor]] = {}
    for matrix in matrices:
        alike.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
    for shape, found in alike.items():
        count = max(1, _BATCH_ELEMENTS // math.prod(shape))
        yield from (found[i : i + count] for i in range(0, len(found), count))
