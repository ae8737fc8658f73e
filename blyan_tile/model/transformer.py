"""The decoder as explicit stages, because between `attend` and `combine` the experts may
run on other machines.

    cache = trunk.new_cache(tokens)
    hidden = trunk.embed(prompt)
    for layer in range(layers):
        hidden, x, routing = trunk.attend(layer, hidden, cache)
        outputs = {e: (rows, expert(x[rows])) for e, rows in routing.rows().items()}
        hidden = trunk.combine(hidden, routing, outputs)
    logits = trunk.logits(hidden[-1])

Letters: T tokens, d width, H heads, G key-value heads, w head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture
from blyan_proto.errors import LimitExceeded
from blyan_tile.model.attention import (
    attention,
    linear,
    projected,
    rms_norm,
    rotate,
)
from blyan_tile.model.cache import KeyValueCache
from blyan_tile.model.expert import Expert, expert_of, unrouted
from blyan_tile.model.rope import rope_tables
from blyan_tile.model.router import Routing, nowhere, route
from blyan_tile.model.sampling import Sampling, choose_token

PREFILL_TOKENS = 256  # DEC-S4

Outputs = Mapping[int, tuple[Tensor, Tensor]]  # expert: (rows (m,), output (m, d))


class Trunk:
    """Everything of a model but its experts: embeddings, attention, routers, head."""

    def __init__(
        self, architecture: Architecture, parameters: Mapping[str, Tensor]
    ) -> None:
        """`parameters` must hold every name outside the experts; it may hold more."""
        self.architecture = architecture
        self._parameters = parameters
        self._embedding = parameters["embed.weight"]  # (V, d)
        self._head = parameters[
            "embed.weight" if architecture.tied_embeddings else "head.weight"
        ]  # (V, d)
        self._epsilon = architecture.rms_epsilon_ppb * 1e-9
        self._cosine, self._sine = rope_tables(architecture, self.device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; tokens and hidden states go there."""
        return self._embedding.device

    def new_cache(self, tokens: int | None = None) -> KeyValueCache:
        """Return an empty cache for `tokens`, by default the whole context."""
        if tokens is None:
            tokens = self.architecture.context
        return KeyValueCache(self.architecture, tokens, self.device)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (T,) or (B, T) int64 -> hidden (..., d)."""
        return self._embedding[tokens]  # (..., d)

    def attend(
        self, layer: int, hidden: Tensor, cache: KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor, Routing]:
        """Run a layer up to its experts.

        hidden (T, d), or (B, T, d) without a cache; n is T or B * T. Returns the
        hidden state after attention (same shape), the experts' input (n, d) and the
        routing of the n tokens. Without a cache the positions begin at 0.
        LimitExceeded when the cache is full.
        """
        width = self.architecture.width
        x = self._norm(layer, "attention_norm", hidden)  # (..., T, d)
        mixed = self._attention(layer, x.reshape(-1, *hidden.shape[-2:]), cache)
        output = self._projected(layer, "o", mixed.reshape(-1, mixed.shape[-1]))
        hidden = hidden + output.view(hidden.shape)  # (..., T, d)
        x = self._norm(layer, "expert_norm", hidden).reshape(-1, width)  # (n, d)
        always = unrouted(self.architecture, self._parameters, layer, x)  # (n, d)
        if always is not None:
            hidden = hidden + always.view(hidden.shape)  # (..., T, d)
        if layer in self.architecture.dense_layers:
            return hidden, x, nowhere(len(x), self.device)
        routing = route(
            x,
            self._weight(layer, "router"),
            self.architecture.experts_per_token,
            self.architecture.normalise_top_k,
        )
        return hidden, x, routing

    def combine(self, hidden: Tensor, routing: Routing, outputs: Outputs) -> Tensor:
        """Add the experts' weighted outputs, summed in ascending expert index (DEC-S1).

        hidden (..., d); each expert's output (m, d) belongs to its rows (m,) of the n
        tokens. Every chosen pair of token and expert must be there.
        """
        total = torch.zeros(
            routing.experts.shape[0], hidden.shape[-1], device=hidden.device
        )  # (n, d)
        for expert in sorted(outputs):
            rows, output = outputs[expert]  # (m,), (m, d)
            total[rows] += routing.weights_of(expert, rows) * output  # (m, d)
        return hidden + total.view(hidden.shape)  # (..., d)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., d) -> logits (..., V)."""
        x = rms_norm(hidden, self._parameters["final_norm.weight"], self._epsilon)
        flat = linear(x.reshape(-1, x.shape[-1]), self._head)  # (n, V)
        return flat.view(*hidden.shape[:-1], -1)  # (..., V)

    def _attention(self, layer: int, x: Tensor, cache: KeyValueCache | None) -> Tensor:
        heads, width = self.architecture.heads, self.architecture.head_width
        batch, length, _ = x.shape
        start = cache.length(layer) if cache is not None else 0
        room = cache.capacity if cache is not None else self.architecture.context
        if start + length > room:
            raise LimitExceeded(f"{start + length} tokens, there is room for {room}")
        flat = x.reshape(batch * length, -1)  # (n, d)
        query, keys, values = (
            self._projected(layer, name, flat)
            .view(batch, length, count, width)
            .transpose(1, 2)  # (B, H or G, T, w)
            for name, count in (
                ("q", heads),
                ("k", self.architecture.kv_heads),
                ("v", self.architecture.kv_heads),
            )
        )
        cosine = self._cosine[start : start + length]  # (T, w/2)
        sine = self._sine[start : start + length]  # (T, w/2)
        query, keys = rotate(query, cosine, sine), rotate(keys, cosine, sine)
        if cache is not None:
            keys, values = cache.append(layer, keys[0], values[0])  # (1, G, S, w)
        window = self.architecture.attention_window
        return attention(query, keys, values, window)  # (B, T, H * w)

    def _projected(self, layer: int, name: str, x: Tensor) -> Tensor:
        return projected(self.architecture, self._parameters, layer, name, x)

    def _weight(self, layer: int, name: str) -> Tensor:
        return self._parameters[f"layer{layer}.{name}.weight"]

    def _norm(self, layer: int, name: str, x: Tensor) -> Tensor:
        return rms_norm(x, self._weight(layer, name), self._epsilon)


class LocalModel:
    """A trunk with all its experts in this process."""

    def __init__(
        self, architecture: Architecture, parameters: Mapping[str, Tensor]
    ) -> None:
        self.trunk = Trunk(architecture, parameters)
        self._experts: dict[tuple[int, int], Expert] = {
            (layer, expert): expert_of(parameters, layer, expert)
            for layer in range(architecture.layers)
            if layer not in architecture.dense_layers
            for expert in range(architecture.experts)
        }

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """tokens (T,), or (B, T) without a cache -> hidden states (..., d)."""
        hidden = self.trunk.embed(tokens)  # (..., d)
        for layer in range(self.trunk.architecture.layers):
            hidden, x, routing = self.trunk.attend(layer, hidden, cache)
            outputs = {
                expert: (rows, self._experts[layer, expert](x[rows]))
                for expert, rows in routing.rows().items()
            }
            hidden = self.trunk.combine(hidden, routing, outputs)  # (..., d)
        return hidden

    def prefill(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Run tokens (T,), T >= 1, in chunks; return the last one's logits (V,)."""
        for chunk in torch.split(tokens, PREFILL_TOKENS):
            hidden = self.forward(chunk, cache)  # (chunk, d)
        return self.trunk.logits(hidden[-1])  # (V,)


@torch.no_grad()
def generate_local(
    parameters: Mapping[str, Tensor],
    architecture: Architecture,
    tokens: Sequence[int],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield up to `max_tokens` ids after the prompt, all experts in this process.

    Stops where the context ends. LimitExceeded when the prompt alone does not fit.
    """
    model = LocalModel(architecture, parameters)
    sampling = Sampling(temperature, seed)
    device = model.trunk.device
    position = len(tokens)
    cache = model.trunk.new_cache(
        max(position, min(position + max_tokens, architecture.context))
    )
    chunk = torch.tensor(tokens, dtype=torch.int64, device=device)  # (T,)
    for _ in range(min(max_tokens, architecture.context - position)):
        logits = model.prefill(chunk, cache)  # (V,)
        token = choose_token(logits.float().cpu().numpy(), sampling, position)
        yield token
        position += 1
        chunk = torch.tensor([token], dtype=torch.int64, device=device)  # (1,)
