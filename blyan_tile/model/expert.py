"""One SwiGLU expert. Letters: n tokens, d width, h expert width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.block.model import Architecture
from blyan_tile.model.linear import is_packable, linear, packed


@dataclass
class Expert:
    """The three matrices of one expert, and from the second use on a packed copy.

    Used once, an expert is not worth the copy; both give the same bits.
    """

    gate: Tensor  # (h, d)
    up: Tensor  # (h, d)
    down: Tensor  # (d, h)
    _uses: int = field(default=0, repr=False, compare=False)
    _packed: tuple[Tensor, Tensor] | None = field(
        default=None, repr=False, compare=False
    )  # gate above up, (2h, d); down

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, d) -> (n, d). In any thread."""
        if self._packed is None:
            self._uses += 1
            if self._uses == 1 or not self._is_packable:
                return expert_forward(self.gate, self.up, self.down, x)
            both = packed(torch.cat((self.gate, self.up)))
            self._packed = both, packed(self.down)
        both, down = self._packed
        gated, lifted = linear(x, both).chunk(2, dim=1)  # (n, h) each
        return linear(silu(gated.contiguous()) * lifted, down)  # (n, d)

    @property
    def _is_packable(self) -> bool:
        # Each alone: otherwise the kernel, and so the bits, would be another one.
        return is_packable(self.gate) and is_packable(self.down)


def expert_of(parameters: Mapping[str, Tensor], layer: int, expert: int) -> Expert:
    """Return an expert whose parameters are in the flat dictionary."""
    return _named(parameters, f"layer{layer}.expert{expert}")


def shared_of(parameters: Mapping[str, Tensor], layer: int) -> Expert:
    """Return the expert that every token of a layer passes; it belongs to the trunk."""
    return _named(parameters, f"layer{layer}.shared")


def dense_of(parameters: Mapping[str, Tensor], layer: int) -> Expert:
    """Return the one MLP of a layer without experts; it belongs to the trunk."""
    return _named(parameters, f"layer{layer}.dense")


def unrouted_of(
    architecture: Architecture, parameters: Mapping[str, Tensor], layer: int
) -> Expert | None:
    """Return what every token of a layer passes: its MLP, or its shared expert."""
    if layer in architecture.dense_layers:
        return dense_of(parameters, layer)
    return shared_of(parameters, layer) if architecture.shared_width else None


def shared_share(parameters: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    """Return the gate of the shared expert: x (n, d) -> (n, 1)."""
    gate = linear(x, parameters[f"layer{layer}.shared_gate.weight"])  # (n, 1)
    return _placeless(torch.sigmoid, gate)


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
