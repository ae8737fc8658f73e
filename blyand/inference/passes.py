"""Tokens through a run of layers: trunk in the lane, experts by scatter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from blyan_proto.protocols.expert import Numerics
from blyan_tile.model.cache import KeyValueCache
from blyan_tile.model.router import Routing
from blyan_tile.model.transformer import Trunk
from blyand.compute import Threads
from blyand.inference.pins import Heads
from blyand.inference.scatter import Layer, Outputs, Scatter, Tally
from blyand.rules.net.fair import OWN

R = TypeVar("R")


@dataclass(frozen=True)
class Pass:
    """What stays the same from layer to layer."""

    heads: Heads
    trunk: Trunk
    cache: KeyValueCache | None
    tally: Tally
    deadline_s: float  # trio time
    is_stale: Callable[[], bool]
    numerics: Numerics | None = None  # of calls to peers; None: the node's
    owner: str = OWN  # whose turn it takes among what is computed here


@dataclass
class _State:
    """A layer up to its experts."""

    hidden: Tensor  # (..., d)
    routing: Routing  # of the n tokens
    x: np.ndarray  # (n, d) float32
    rows: dict[int, np.ndarray]  # expert: its rows (m,)


async def run_pass(
    scatter: Scatter,
    lane: Threads,
    run: Pass,
    x: Tensor,
    finish: Callable[[Trunk, Tensor], R],
    first: int = 0,
    end: int | None = None,
) -> R:
    """Return finish(trunk, hidden), called in the lane with the last hidden states.

    x: ids (T,), or (B, T) without a cache, int64, to embed first; or hidden states
    (T, d). They pass the layers `first` to `end` - 1, by default all; hidden (..., d).
    Raises what `Scatter.outputs` raises; the cache is then good for nothing but a rewind.
    """
    state = await lane.run(_begin, run, x, first)
    last = (end or run.heads.architecture.layers) - 1
    for index in range(first, last):
        outputs = await scatter.outputs(_layer(run, state, index))
        state = await lane.run(_advance, run, state, outputs, index + 1)
    outputs = await scatter.outputs(_layer(run, state, last))
    return await lane.run(_end, run, state, outputs, finish)


def _layer(run: Pass, state: _State, index: int) -> Layer:
    return Layer(
        heads=run.heads,
        index=index,
        x=state.x,
        rows=state.rows,
        tally=run.tally,
        deadline_s=run.deadline_s,
        is_stale=run.is_stale,
        numerics=run.numerics,
        owner=run.owner,
    )


@torch.no_grad()
def _begin(run: Pass, x: Tensor, index: int) -> _State:
    x = x.to(run.trunk.device)
    return _attend(run, x if x.is_floating_point() else run.trunk.embed(x), index)


@torch.no_grad()
def _advance(run: Pass, state: _State, outputs: Outputs, index: int) -> _State:
    return _attend(run, _combine(run, state, outputs), index)


@torch.no_grad()
def _end(
    run: Pass, state: _State, outputs: Outputs, finish: Callable[[Trunk, Tensor], R]
) -> R:
    return finish(run.trunk, _combine(run, state, outputs))


def _attend(run: Pass, hidden: Tensor, index: int) -> _State:
    hidden, x, routing = run.trunk.attend(index, hidden, run.cache)
    rows = {expert: rows.cpu().numpy() for expert, rows in routing.rows().items()}
    return _State(hidden, routing, x.cpu().numpy(), rows)


def _combine(run: Pass, state: _State, outputs: Outputs) -> Tensor:
    device = run.trunk.device
    parts = {
        # a copy: an answer's bytes are read-only
        expert: (torch.from_numpy(rows).to(device), torch.tensor(made, device=device))
        for expert, (rows, made) in outputs.items()
    }
    return run.trunk.combine(state.hidden, state.routing, parts)  # (..., d)
