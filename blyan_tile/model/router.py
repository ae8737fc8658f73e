"""Which experts a token goes to, and with what weight.

Letters: n tokens, d width, E experts, k experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blyan_tile.model.attention import linear


@dataclass(frozen=True)
class Routing:
    """The choice of n tokens, most probable expert first."""

    experts: Tensor  # (n, k) int64
    weights: Tensor  # (n, k) float32

    def rows(self) -> dict[int, Tensor]:
        """Return for each chosen expert, ascending, the rows (m,) that chose it."""
        return {
            expert: (self.experts == expert).any(dim=1).nonzero()[:, 0]  # (m,)
            for expert in torch.unique(self.experts).tolist()
        }

    def weights_of(self, expert: int, rows: Tensor) -> Tensor:
        """Return the weights (m, 1) with which `rows` (m,) chose `expert`."""
        chosen = self.experts[rows] == expert  # (m, k)
        return (self.weights[rows] * chosen).sum(dim=1, keepdim=True)  # (m, 1)


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
