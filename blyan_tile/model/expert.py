"""One SwiGLU expert. Letters: n tokens, d width, h expert width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.block.model import Architecture
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


def dense_of(parameters: Mapping[str, Tensor], layer: int) -> Expert:
    """Return the one MLP of a layer without experts; it belongs to the trunk."""
    return _named(parameters, f"layer{layer}.dense")


def unrouted(
    architecture: Architecture, parameters: Mapping[str, Tensor], layer: int, x: Tensor
) -> Tensor | None:
    """Return what every token of a layer gets whatever its routing, None for nothing.

    The MLP of a dense layer; else the shared expert, times its gate. x (n, d) -> (n, d).
    """
    if layer in architecture.dense_layers:
        return dense_of(parameters, layer)(x)
    if not architecture.shared_width:
        return None
    shared = shared_of(parameters, layer)(x)  # (n, d)
    if not architecture.shared_gate:
        return shared
    gate = linear(x, parameters[f"layer{layer}.shared_gate.weight"])  # (n, 1)
    return _placeless(torch.sigmoid, gate) * shared  # (n, d)


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
    """Return x * sigmoid(x); an element's bits do not depend on its place (DEC-S1)."""
    return _placeless(F.silu, x)


def _placeless(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise function so that an element's place does not matter.

    On a CPU, torch computes whole vectors with another exp than the remainder of each
    thread's share; so there is no remainder, and one thread.
    """
    has_rest = x.numel() % LANES or x.numel() > ONE_THREAD
    if x.device.type != "cpu" or not has_rest:
        return function(x)
    flat = x.reshape(-1)
    whole = F.pad(flat, (0, -flat.numel() % LANES))
    parts = [function(part) for part in torch.split(whole, ONE_THREAD)]
    return torch.cat(parts)[: flat.numel()].view_as(x)
