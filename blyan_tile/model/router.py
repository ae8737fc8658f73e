"""Which experts a token goes to, and with what weight.

Letters: n tokens, d width, E experts, k experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from blyan_tile.model.linear import linear


@dataclass(frozen=True)
class Routing:
    """The choice of n tokens, most probable expert first."""

    experts: Tensor  # (n, k) int64
    weights: Tensor  # (n, k) float32

    def rows(self) -> dict[int, Tensor]:
        """Return for each chosen expert, ascending, the rows (m,) that chose it."""
        return {expert: rows for expert, (rows, _) in self.shares.items()}

    @cached_property
    def shares(self) -> dict[int, tuple[Tensor, Tensor]]:
        """For each chosen expert, ascending: its rows (m,), ascending, and their weights
        (m, 1)."""
        rows, per_token = self.experts.shape
        if not per_token:
            return {}
        if rows == 1:  # one token decodes: no need to sort
            row = torch.zeros(1, dtype=torch.int64, device=self.experts.device)
            chosen = sorted(
                zip(self.experts[0].tolist(), torch.split(self.weights[0], 1))
            )
            return {expert: (row, weight[:, None]) for expert, weight in chosen}
        flat = self.experts.flatten()  # (n * k,)
        order = flat.argsort(stable=True)  # (n * k,) pairs sorted by expert, then row
        counts = torch.bincount(flat).tolist()
        tokens = order.div(per_token, rounding_mode="floor")  # (n * k,)
        weights = self.weights.flatten()[order, None]  # (n * k, 1)
        parts = zip(counts, torch.split(tokens, counts), torch.split(weights, counts))
        return {
            expert: (rows, weight)
            for expert, (count, rows, weight) in enumerate(parts)
            if count
        }


def nowhere(tokens: int, device: torch.device) -> Routing:
    """Return the routing of a layer without experts: k = 0."""
    return Routing(
        torch.empty(tokens, 0, dtype=torch.int64, device=device),
        torch.empty(tokens, 0, device=device),
    )


def choose(probabilities: Tensor, per_token: int, normalise: bool) -> Routing:
    """Take each row's `per_token` largest; among equals the lowest expert (DEC-S1).

    probabilities (n, E) -> Routing of (n, k).
    """
    ranked = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    weights = ranked.values[:, :per_token]  # (n, k)
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)  # (n, k)
    return Routing(ranked.indices[:, :per_token], weights)


def route(x: Tensor, weight: Tensor, per_token: int, normalise: bool) -> Routing:
    """Softmax over all experts, then the top k. x (n, d), weight (E, d)."""
    probabilities = linear(x, weight).softmax(dim=-1)  # (n, E)
    return choose(probabilities, per_token, normalise)
