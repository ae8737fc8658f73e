"""AdamW written out. torch.optim imports the compiler on first use, seconds for nothing,
and an auditor who repeats a round needs the formula, not a version of a library."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_EPSILON = 1e-8


class AdamW:
    """Decoupled weight decay on matrices, none on vectors; the state starts at zero."""

    def __init__(
        self, parameters: Iterable[Tensor], beta1: float, beta2: float, decay: float
    ) -> None:
        self._parameters = list(parameters)
        self._betas = beta1, beta2
        self._decay = decay
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Use and drop the gradients; a parameter without one only decays."""
        self._steps += 1
        beta1, beta2 = self._betas
        size = rate / (1 - beta1**self._steps)
        correction = (1 - beta2**self._steps) ** 0.5
        for parameter, mean, square in zip(
            self._parameters, self._means, self._squares
        ):
            if parameter.dim() > 1:
                parameter.mul_(1 - rate * self._decay)
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = square.sqrt().div_(correction).add_(_EPSILON)
            parameter.addcdiv_(mean, root, value=-size)
