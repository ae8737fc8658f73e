"""Which experts the tokens of a sequence went to: noted at the router, read elsewhere.

Noting is on the way of every token, so it keeps what the router chose and counts nothing.
"""

from __future__ import annotations

from torch import Tensor

Choices = dict[int, list[Tensor]]  # layer: experts (T, k) int64, step by step


class Visits:
    """What was chosen since it was last taken; taken while no step is under way."""

    def __init__(self) -> None:
        self._choices: Choices = {}
        self.rows = 0  # kept, over all layers

    def add(self, layer: int, experts: Tensor) -> None:
        """Note the experts (T, k) int64 of the next T tokens in a layer."""
        self._choices.setdefault(layer, []).append(experts)
        self.rows += len(experts)

    def take(self) -> Choices:
        """Return what was noted and forget it."""
        taken, self._choices, self.rows = self._choices, {}, 0
        return taken
