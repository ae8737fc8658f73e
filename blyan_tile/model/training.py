"""The forward pass of inner training: one batch, held experts only, with gradients.

The router is masked to the experts that this node holds (DEC-B13), so no call leaves
the process; nothing is padded, because here speed counts and not the last bit (DEC-B12).

Letters: B batch, T tokens, n = B * T, d width, E experts, k experts per token, V
vocabulary, H heads, G key-value heads, w head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from blyan_proto.block.model import Architecture
from blyan_tile.model.attention import attention, projected, rms_norm, rotate
from blyan_tile.model.expert import Expert, dense_of, expert_of, shared_of
from blyan_tile.model.mixture import mixture
from blyan_tile.model.rope import rope_tables


@dataclass(frozen=True)
class Pass:
    """What one batch gave."""

    loss: Tensor  # () mean cross-entropy, nats per token
    auxiliary: Tensor  # () load-balancing loss, 1.0 when balanced, mean over layers
    routed: Tensor  # (layers, E) int64, tokens that each expert saw


class Trainable:
    """A model with the experts a node holds; the parameters are leaves or plain."""

    def __init__(
        self,
        architecture: Architecture,
        parameters: Mapping[str, Tensor],
        held: Sequence[Sequence[int]],
        summed: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> None:
        """`held`: for each layer the experts that `parameters` contains, ascending.

        `summed` adds up the tokens per expert of all that share the batch.
        """
        self.architecture = architecture
        self._summed = summed
        self._parameters = parameters
        self._epsilon = architecture.rms_epsilon_ppb * 1e-9
        device = parameters["embed.weight"].device
        self._held = [
            torch.tensor(sorted(experts), dtype=torch.int64, device=device)
            for experts in held
        ]  # (held,) each
        self._cosine, self._sine = rope_tables(architecture, device)

    def run(self, tokens: Tensor) -> Pass:
        """tokens (B, T + 1) int64: each position predicts the next one."""
        parameters, architecture = self._parameters, self.architecture
        inputs, targets = tokens[:, :-1], tokens[:, 1:]  # (B, T) each
        batch, length = inputs.shape
        hidden = F.embedding(inputs, parameters["embed.weight"])  # (B, T, d)
        auxiliary = hidden.new_zeros(())  # ()
        routed = torch.zeros(
            architecture.layers,
            architecture.experts,
            dtype=torch.int64,
            device=tokens.device,
        )  # (layers, E)
        for layer in range(architecture.layers):
            hidden = hidden + self._attention(layer, hidden)  # (B, T, d)
            norm = parameters[f"layer{layer}.expert_norm.weight"]  # (d,)
            x = rms_norm(hidden, norm, self._epsilon).flatten(0, 1)  # (n, d)
            always = self._unrouted(layer, x)  # (n, d)
            if always is not None:
                hidden = hidden + always.view(batch, length, -1)  # (B, T, d)
            if len(self._held[layer]) == 0:
                continue  # this node trains the trunk alone here
            mixed, balance, counts = self._experts(layer, x)
            hidden = hidden + mixed.view(batch, length, -1)  # (B, T, d)
            auxiliary = auxiliary + balance / architecture.mixture_layers  # ()
            routed[layer, self._held[layer]] = counts  # (held,)
        x = rms_norm(hidden, parameters["final_norm.weight"], self._epsilon)
        head = "embed" if architecture.tied_embeddings else "head"
        logits = F.linear(x.flatten(0, 1), parameters[f"{head}.weight"])  # (n, V)
        loss = F.cross_entropy(logits.float(), targets.flatten())  # ()
        return Pass(loss, auxiliary, routed)

    def _attention(self, layer: int, hidden: Tensor) -> Tensor:
        architecture, width = self.architecture, self.architecture.head_width
        batch, length, _ = hidden.shape
        x = rms_norm(
            hidden,
            self._parameters[f"layer{layer}.attention_norm.weight"],
            self._epsilon,
        ).flatten(
            0, 1
        )  # (n, d)
        cosine, sine = self._cosine[:length], self._sine[:length]  # (T, w/2) each
        query, keys, values = (
            self._projected(layer, name, x)
            .view(batch, length, count, width)
            .transpose(1, 2)  # (B, H or G, T, w)
            for name, count in (
                ("q", architecture.heads),
                ("k", architecture.kv_heads),
                ("v", architecture.kv_heads),
            )
        )
        mixed = attention(
            rotate(query, cosine, sine),
            rotate(keys, cosine, sine),
            values,
            architecture.attention_window,
        )  # (B, T, H * w)
        output = self._projected(layer, "o", mixed.flatten(0, 1))  # (n, d)
        return output.view(batch, length, -1)  # (B, T, d)

    def _projected(self, layer: int, name: str, x: Tensor) -> Tensor:
        return projected(self.architecture, self._parameters, layer, name, x, F.linear)

    def _unrouted(self, layer: int, x: Tensor) -> Tensor | None:
        """The MLP of a dense layer; else the shared expert, times its gate."""
        if layer in self.architecture.dense_layers:
            return swiglu(dense_of(self._parameters, layer), x)  # (n, d)
        if not self.architecture.shared_width:
            return None
        shared = swiglu(shared_of(self._parameters, layer), x)  # (n, d)
        if not self.architecture.shared_gate:
            return shared
        gate = self._parameters[f"layer{layer}.shared_gate.weight"]  # (1, d)
        return F.linear(x, gate).sigmoid() * shared  # (n, d)

    def _experts(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prefix = f"layer{layer}"
        held = self._held[layer]  # (held,)
        router = self._parameters[f"{prefix}.router.weight"][held]  # (held, d)
        probabilities = F.linear(x, router).softmax(dim=-1)  # (n, held)
        per_token = min(self.architecture.experts_per_token, len(held))
        weights, chosen = probabilities.topk(per_token, dim=-1)  # (n, k) each
        if self.architecture.normalise_top_k:
            weights = weights / weights.sum(dim=-1, keepdim=True)  # (n, k)
        experts = [expert_of(self._parameters, layer, e) for e in held.tolist()]
        mixed = mixture(x, weights, chosen, experts)  # (n, d)
        counts = torch.bincount(chosen.flatten(), minlength=len(held))  # (held,)
        counts = self._summed(counts)
        share = counts / counts.sum()  # (held,) of the routed pairs
        balance = len(held) * (share * probabilities.mean(dim=0)).sum()  # ()
        return mixed, balance, counts


def swiglu(expert: Expert, x: Tensor) -> Tensor:
    """Return an expert's output for each row, nothing padded. x (n, d) -> (n, d)."""
    inner = F.silu(F.linear(x, expert.gate)) * F.linear(x, expert.up)  # (n, hidden)
    return F.linear(inner, expert.down)  # (n, d)


@torch.no_grad()
def held_out_loss(
    architecture: Architecture,
    parameters: Mapping[str, Tensor],
    windows: Tensor,
    batch: int = 8,
) -> float:
    """Return nats per token of a whole model on `windows` (N, T + 1), N >= 1.

    Every window starts with an empty context (DEC-B17).
    """
    everyone = [
        range(0 if layer in architecture.dense_layers else architecture.experts)
        for layer in range(architecture.layers)
    ]
    model = Trainable(architecture, parameters, everyone)
    total = 0.0
    for chunk in torch.split(windows, batch):  # (B, T + 1)
        total += float(model.run(chunk).loss) * len(chunk)
    return total / len(windows)
