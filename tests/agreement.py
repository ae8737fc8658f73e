"""When two greedy answers are the same (DEC-S1): the one place where that is decided.

Sums in another order differ in the last bits, and an argmax may hang on them. So where two
answers part, the first differing position is computed again in one process: they count as
the same only if the two likeliest tokens, or in some layer the last chosen expert and the
first one that was not, were closer there than GAP. What follows is not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from blyan_tile.model.families import read_config, tensor_names
from blyan_tile.model.transformer import LocalModel

GAP = 1e-3


def assert_same(
    model: LocalModel, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]
) -> None:
    """Fail where two answers to a prompt differ without a reason."""
    assert len(one) == len(other)
    for place, (a, b) in enumerate(zip(one, other)):
        if a != b:
            logits, router = gaps(model, [*prompt, *one[:place]])
            assert min(logits, router) < GAP, (
                f"token {place} is {a} and {b}, though the likeliest two logits are "
                f"{logits:.2g} apart, and the routers' {router:.2g}"
            )
            return


@torch.no_grad()
def gaps(model: LocalModel, tokens: Sequence[int]) -> tuple[float, float]:
    """Return how close the choice of the next token was, and that of its experts.

    Differences of logits: of the two likeliest tokens; and, the smallest of all layers,
    of the last chosen expert and the next one.
    """
    trunk = model.trunk
    shape = trunk.architecture
    cache = trunk.new_cache(len(tokens))
    hidden = trunk.embed(torch.tensor(tokens, dtype=torch.int64))  # (T, d)
    router = float("inf")
    for layer in range(shape.layers):
        hidden, x, routing = trunk.attend(layer, hidden, cache)
        if routing.experts.shape[1]:
            weight = trunk._parameters[f"layer{layer}.router.weight"]  # (E, d)
            ranked = (weight @ x[-1]).sort(descending=True).values  # (E,)
            count = shape.experts_per_token
            if count < len(ranked):
                router = min(router, float(ranked[count - 1] - ranked[count]))
        outputs = {
            expert: (rows, model._expert(layer, expert)(x[rows]))
            for expert, rows in routing.rows().items()
        }
        hidden = trunk.combine(hidden, routing, outputs)
    best = trunk.logits(hidden[-1:])[0].topk(2).values  # (2,)
    return float(best[0] - best[1]), router


def read_model(folder: Path) -> LocalModel:
    """Return a checkpoint of one file in this process."""
    import json

    from safetensors.torch import load_file

    family = read_config(json.loads((folder / "config.json").read_text()))
    stored = load_file(folder / "model.safetensors")
    parameters = {
        ours: stored[theirs].float() for ours, theirs in tensor_names(family).items()
    }
    return LocalModel(family.architecture, parameters)
