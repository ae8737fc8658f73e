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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture
from blyan_proto.errors import LimitExceeded
from blyan_tile.model.attention import (
    Glance,
    adjusted,
    attention,
    doubled,
    glances,
    look,
    rms_norm,
    rotate,
    turned,
)
from blyan_tile.model.cache import KeyValueCache
from blyan_tile.model.expert import Expert, expert_of, shared_share, unrouted_of
from blyan_tile.model.linear import linear, packed
from blyan_tile.model.rope import rope_tables
from blyan_tile.model.router import Routing, nowhere, route
from blyan_tile.model.sampling import Sampling, choose_token

PREFILL_TOKENS = 256  # DEC-S4

Outputs = Mapping[int, tuple[Tensor, Tensor]]  # expert: (rows (m,), output (m, d))
Experts = Callable[[int, int], Callable[[Tensor], Tensor]]  # by layer and number


@dataclass(frozen=True)
class Part:
    """The next tokens of one sequence in a step."""

    cache: KeyValueCache
    tokens: int


@dataclass(frozen=True)
class Step:
    """n tokens that pass the layers together, one sequence's after the other's."""

    parts: tuple[Part, ...]
    cosine: Tensor  # (n, 1, w), of each token's position, as `turned` takes it
    sine: Tensor  # (n, 1, w)
    glances: tuple[tuple[Glance, ...], ...]  # of each part


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
        self._ready: dict[str, Tensor] = {}  # matrices that were used, packed
        self._unrouted = [
            unrouted_of(architecture, parameters, layer)
            for layer in range(architecture.layers)
        ]
        self._cosine, self._sine = rope_tables(architecture, self.device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; tokens and hidden states go there."""
        return self._embedding.device

    def new_cache(
        self, tokens: int | None = None, first: int = 0, end: int | None = None
    ) -> KeyValueCache:
        """Return an empty cache for `tokens`, by default the whole context.

        It is for the layers `first` to `end` - 1, by default all.
        """
        if tokens is None:
            tokens = self.architecture.context
        return KeyValueCache(self.architecture, tokens, self.device, first, end)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (T,) or (B, T) int64 -> hidden (..., d)."""
        return self._embedding[tokens]  # (..., d)

    def step(self, parts: Sequence[Part], layer: int) -> Step:
        """Prepare to run tokens of several sequences through layers from `layer` on.

        LimitExceeded when a cache is too full for its tokens.
        """
        shape = self.architecture
        cosines: list[Tensor] = []
        sines: list[Tensor] = []
        looks: list[tuple[Glance, ...]] = []
        for part in parts:
            start = part.cache.length(layer)
            end = start + part.tokens
            if end > part.cache.capacity:
                raise LimitExceeded(
                    f"{end} tokens, there is room for {part.cache.capacity}"
                )
            cosines.append(self._cosine[start:end])  # (T, w/2)
            sines.append(self._sine[start:end])  # (T, w/2)
            repeats = shape.heads // shape.kv_heads
            window = shape.attention_window
            looks.append(glances(start, part.tokens, repeats, window, self.device))
        tables = doubled(torch.cat(cosines), torch.cat(sines))
        return Step(tuple(parts), *tables, tuple(looks))

    def run(
        self,
        first: int,
        end: int,
        hidden: Tensor,
        step: Step | None,
        experts: Experts,
    ) -> Tensor:
        """Run the layers `first` to `end` - 1 with all experts that they choose.

        hidden (n, d), the rows of `step`, or (B, T, d) without one, as in `attend`; the
        result has its shape. `experts(layer, expert)` gives what computes (m, d) ->
        (m, d); it may raise.
        """
        for layer in range(first, end):
            hidden, x, routing = self.attend(layer, hidden, step)
            if self._is_dense(layer):
                continue
            outputs = {
                expert: (rows, experts(layer, expert)(x[rows] if len(x) > 1 else x))
                for expert, rows in routing.rows().items()
            }
            hidden = self.combine(hidden, routing, outputs)  # (..., d)
        return hidden

    def attend(
        self, layer: int, hidden: Tensor, step: Step | KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor, Routing]:
        """Run a layer up to its experts.

        hidden (n, d): the rows of a step, or of one sequence with its cache; or
        (B, T, d), n = B * T, whose positions begin at 0, without any. Returns the hidden
        state after attention (same shape), the experts' input (n, d) and the routing of
        the n tokens. LimitExceeded when a cache is full.
        """
        width = self.architecture.width
        if isinstance(step, KeyValueCache):
            step = self.step([Part(step, len(hidden))], layer)
        x = self._norm(layer, "attention_norm", hidden)  # (..., d)
        if step is not None:
            mixed = self._attend_cached(layer, x, step)  # (n, H * w)
        else:
            mixed = self._attend_fresh(layer, x.view(-1, *hidden.shape[-2:]))
        output = linear(mixed, self._packed(layer, "o"))  # (n, d)
        output = adjusted(self.architecture, self._parameters, layer, "o", output)
        hidden = hidden + output.view(hidden.shape)  # (..., d)
        x = self._norm(layer, "expert_norm", hidden).view(-1, width)  # (n, d)
        always = self._unrouted[layer]
        if always is not None:
            made = always(x)  # (n, d)
            if self.architecture.shared_gate and not self._is_dense(layer):
                made = shared_share(self._parameters, layer, x) * made  # (n, d)
            hidden = hidden + made.view(hidden.shape)  # (..., d)
        if self._is_dense(layer):
            return hidden, x, nowhere(len(x), self.device)
        routing = route(
            x,
            self._weight(layer, "router"),
            self.architecture.experts_per_token,
            self.architecture.normalise_top_k,
        )
        if step is not None:
            start = 0
            for part in step.parts:
                end = start + part.tokens
                part.cache.visit(layer, routing.experts[start:end])
                start = end
        return hidden, x, routing

    def combine(self, hidden: Tensor, routing: Routing, outputs: Outputs) -> Tensor:
        """Add the experts' weighted outputs, summed in ascending expert index (DEC-S1).

        hidden (..., d); each expert's output (m, d) belongs to its rows (m,) of the n
        tokens. Every chosen pair of token and expert must be there.
        """
        flat = hidden.view(-1, hidden.shape[-1])  # (n, d)
        total: Tensor | None = None  # (n, d)
        for expert in sorted(outputs):
            rows, output = outputs[expert]  # (m,), (m, d)
            weighted = routing.shares[expert][1] * output  # (m, d)
            if len(rows) == len(flat):  # all of them, in order
                total = weighted if total is None else total + weighted
                continue
            if total is None:
                total = torch.zeros_like(flat)
            total.index_add_(0, rows, weighted)
        return hidden if total is None else hidden + total.view(hidden.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., d) -> logits (..., V)."""
        x = rms_norm(hidden, self._parameters["final_norm.weight"], self._epsilon)
        if "head" not in self._ready:
            self._ready["head"] = packed(self._head)
        flat = linear(x.reshape(-1, x.shape[-1]), self._ready["head"])  # (n, V)
        return flat.view(*hidden.shape[:-1], -1)  # (..., V)

    def _attend_cached(self, layer: int, x: Tensor, step: Step) -> Tensor:
        """x (n, d): one projection of all rows, attention sequence by sequence."""
        query, keys, values = self._split(layer, x)  # (n, H, w), (n, G, w) twice
        query = turned(query, step.cosine, step.sine)  # (n, H, w)
        keys = turned(keys, step.cosine, step.sine)  # (n, G, w)
        pairs = torch.stack((keys, values)).transpose(1, 2)  # (2, G, n, w)
        mixed: list[Tensor] = []
        start = 0
        for part, looks in zip(step.parts, step.glances):
            part.cache.append(layer, pairs.narrow(2, start, part.tokens))
            for one in looks:
                seen = part.cache.seen(layer, one.keys_start, one.keys_end)
                asked = query[start + one.start : start + one.end]  # (T, H, w)
                mixed.append(look(asked, seen, one.mask))  # (T, H * w)
            start += part.tokens
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)  # (n, H * w)

    def _attend_fresh(self, layer: int, x: Tensor) -> Tensor:
        """x (B, T, d): whole sequences, no cache -> (B * T, H * w)."""
        batch, length, _ = x.shape
        if length > self.architecture.context:
            raise LimitExceeded(
                f"{length} tokens, the model's context is {self.architecture.context}"
            )
        cosine, sine = self._cosine[:length], self._sine[:length]  # (T, w/2) each
        query, keys, values = (
            one.view(batch, length, *one.shape[1:]).transpose(1, 2)  # (B, H or G, T, w)
            for one in self._split(layer, x.flatten(0, 1))
        )
        query, keys = rotate(query, cosine, sine), rotate(keys, cosine, sine)
        window = self.architecture.attention_window
        return attention(query, keys, values, window).flatten(0, 1)  # (n, H * w)

    def _split(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, d) -> queries (n, H, w), keys and values (n, G, w), not yet rotated."""
        heads, width = self.architecture.heads, self.architecture.head_width
        groups = self.architecture.kv_heads
        made = linear(x, self._packed(layer, "qkv"))  # (n, (H + 2 G) * w)
        widths = [heads * width, groups * width, groups * width]
        parts = torch.split(made, widths, dim=1)
        query, keys, values = (
            adjusted(self.architecture, self._parameters, layer, name, part).view(
                len(x), -1, width
            )
            for name, part in zip("qkv", parts)
        )
        return query, keys, values

    def _packed(self, layer: int, names: str) -> Tensor:
        """Return matrices of a layer's attention, one below the other, to multiply."""
        key = f"layer{layer}.{names}"
        if key not in self._ready:
            parts = [self._weight(layer, f"attention.{name}") for name in names]
            self._ready[key] = packed(parts[0] if len(parts) == 1 else torch.cat(parts))
        return self._ready[key]

    def _is_dense(self, layer: int) -> bool:
        return layer in self.architecture.dense_layers

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
        step = None
        if cache is not None:
            step = self.trunk.step([Part(cache, len(tokens))], 0)
        layers = self.trunk.architecture.layers
        return self.trunk.run(0, layers, hidden, step, self._expert)  # (..., d)

    def prefill(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Run tokens (T,), T >= 1, in chunks; return the last one's logits (V,)."""
        for chunk in torch.split(tokens, PREFILL_TOKENS):
            hidden = self.forward(chunk, cache)  # (chunk, d)
        return self.trunk.logits(hidden[-1])  # (V,)

    def _expert(self, layer: int, expert: int) -> Expert:
        return self._experts[layer, expert]


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
