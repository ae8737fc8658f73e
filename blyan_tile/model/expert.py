"""One SwiGLU expert. Letters: n tokens, d width, h expert width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_tile.model.attention import linear


@dataclass(frozen=True)
class Expert:
    """The three matrices of one expert."""

    gate: Tensor  # (h, d)
    up: Tensor  # (h, d)
    down: Tensor  # (d, h)

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, d) -> (n, d)."""
        return expert_forward(self.gate, self.up, self.down, x)


def expert_of(parameters: Mapping[str, Tensor], layer: int, expert: int) -> Expert:
    """Return an expert whose parameters are in the flat dictionary."""
    return _named(parameters, f"layer{layer}.expert{expert}")


def shared_of(parameters: Mapping[str, Tensor], layer: int) -> Expert:
    """Return the expert that every token of a layer passes; it belongs to the trunk."""
    return _named(parameters, f"layer{layer}.shared")


LANES = 64  # elements: a multiple of what any CPU's loop takes at once
ONE_THREAD = 32_768  # elements that torch does not share between threads


def _named(parameters: Mapping[str, Tensor], prefix: str) -> Expert:
    return Expert(
        parameters[f"{prefix}.gate.weight"],
        parameters[f"{prefix}.up.weight"],
        parameters[f"{prefix}.down.weight"],
    )


def expert_forward(gate: Tensor, up: Tensor, down: Tensor, x: Tensor) -> Tensor:
    """Return down(silu(gate(x)) * up(x)); rows do not see their batch-mates (DEC-S1).

    gate and up (h, d), down (d, h), x (n, d) -> (n, d).
    """
    inner = silu(linear(x, gate)) * linear(x, up)  # (n, h)
    return linear(inner, down)  # (n, d)


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x); an element's bits do not depend on its place (DEC-S1).

    On a CPU, torch computes whole vectors with another exp than the remainder of each
    thread's share; so there is no remainder, and one thread.
    """
    has_rest = x.numel() % LANES or x.numel() > ONE_THREAD
    if x.device.type != "cpu" or not has_rest:
        return F.silu(x)
    flat = x.reshape(-1)
    whole = F.pad(flat, (0, -flat.numel() % LANES))
    parts = [F.silu(part) for part in torch.split(whole, ONE_THREAD)]
    return torch.cat(parts)[: flat.numel()].view_as(x)
