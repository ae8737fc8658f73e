"""How a learner's time and its experts are used, from the rounds it trained (DEC-B13)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from blyan_proto.block.model import Model
from blyan_proto.rpc import train as spec
from blyand.rules.model.model import layout_for
from blyand.store.rounds import Report

RECENT = 8  # rounds that utilisation looks back


def utilisation(reports: Sequence[Report]) -> float | None:
    """Return the share of the newest closed rounds' time spent in inner steps, 0 to 1.

    None before the first. A round is trained while older ones wait for finality, so
    the sums are compared and not each round.
    """
    recent = [report for report in reports if report.closed][-RECENT:]
    whole = sum(report.seconds for report in recent)
    if whole <= 0:
        return None
    return min(1.0, sum(report.learnt_ms for report in recent) / 1000 / whole)


def experts_used(model: Model, reports: Sequence[Report]) -> list[spec.ExpertUse]:
    """Return how many tokens each expert saw in the newest round trained here."""
    return [
        spec.ExpertUse(expert=name, tokens=tokens, share=tokens / max(1, sum(counts)))
        for _, names, counts in _layers(model, reports)
        for name, tokens in zip(names, counts)
    ]


def layers_used(model: Model, reports: Sequence[Report]) -> list[spec.LayerUse]:
    """Return how evenly each layer's experts were used in that round."""
    return [
        spec.LayerUse(layer=layer, experts=len(counts), entropy=evenness(counts))
        for layer, _, counts in _layers(model, reports)
    ]


def evenness(counts: Sequence[int]) -> float:
    """Return the entropy of counts over that of equal ones: 1 equal, 0 all in one."""
    if len(counts) < 2:
        return 1.0
    total = max(1, sum(counts))
    shares = [count / total for count in counts if count]
    bits = sum(share * math.log(1 / share) for share in shares)
    return bits / math.log(len(counts))


def _layers(
    model: Model, reports: Sequence[Report]
) -> Iterator[tuple[int, list[str], list[int]]]:
    """Yield each layer with its trained experts' names and tokens."""
    shares = next((report.shares for report in reversed(reports) if report.shares), ())
    groups = layout_for(model).groups
    layers: dict[int, list[tuple[str, int]]] = {}
    for share in shares:
        group = groups[share.group]
        assert group.layer is not None  # shares are of experts
        layers.setdefault(group.layer, []).append((group.name, share.tokens))
    for layer, used in sorted(layers.items()):
        yield layer, [name for name, _ in used], [tokens for _, tokens in used]
