"""Calls and hops per token before and after copies of hot experts, with and without groups.

    python -m tests.bench.bench_groups [--quick]

No network: traces of routers with planted groups (a token stays in its group with the
probability of the first column), six peers that hold half of the experts each, and the
rules that choose copies and peers. "single" are the hottest experts alone, "groups" as
many bytes of the hottest with those they are used together with.
"""

from __future__ import annotations

import argparse

import numpy as np

from blyand.rules.model.couse import groups_of
from blyand.rules.model.demand import Room, additions, hottest
from blyand.rules.net.forecast import Layer, Near, by_experts

EXPERTS, PER_TOKEN, SIZE = 64, 4, 8
PEERS, TRIP_US, EXPERT_US = 6, 20_000, 300
COPIES = 4, 8, 16, 32
HOT_PPM = 250_000


def traced(rng: np.random.Generator, loyal: float, tokens: int) -> np.ndarray:
    """Return choices (n, k) of tokens that prefer one of the planted groups."""
    planted = rng.permutation(EXPERTS).reshape(-1, SIZE)
    heat = 1 / np.arange(1, len(planted) + 1)
    made = []
    for _ in range(tokens):
        home = planted[rng.choice(len(planted), p=heat / heat.sum())]
        pool = home if rng.random() < loyal else np.arange(EXPERTS)
        made.append(rng.choice(pool, PER_TOKEN, replace=False))
    return np.array(made)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    tokens = 1000 if parser.parse_args().quick else 5000
    print(
        "| loyal | copies | calls: none | single | groups | hops: none | single | groups |"
    )
    print("| --: | --: | --: | --: | --: | --: | --: | --: |")
    layer = [Layer(frozenset(range(EXPERTS)), 0, EXPERT_US, PER_TOKEN)]
    for loyal in (0.0, 0.6, 0.9):
        rng = np.random.default_rng(0)
        choices = traced(rng, loyal, tokens)
        hot = np.zeros((tokens, EXPERTS))
        np.put_along_axis(hot, choices, 1.0, axis=1)
        pairs, visits = hot.T @ hot, hot.sum(axis=0)
        np.fill_diagonal(pairs, 0)
        mates = {
            expert: [other for other in one.experts if other != expert]
            for one in groups_of(pairs, visits, float(tokens))
            for expert in one.experts
        }
        peers = [
            Near(
                str(n),
                frozenset(rng.permutation(EXPERTS)[: EXPERTS // 2].tolist()),
                TRIP_US,
            )
            for n in range(PEERS)
        ]
        heat = {expert: int(count) for expert, count in enumerate(visits)}
        sizes = dict.fromkeys(range(EXPERTS), 1)
        asked = [[tuple(map(int, token))] for token in choices[-tokens // 5 :]]
        held = frozenset.union(*(peer.held for peer in peers))
        mine = frozenset(range(EXPERTS)) - held  # what nobody else has
        for copies in COPIES:
            row = []
            for known in (None, {}, mates):
                chosen = mine
                if known is not None:
                    room = Room(copies, copies)
                    chosen |= additions(
                        hottest(heat, HOT_PPM),
                        known,
                        mine,
                        heat,
                        {},
                        sizes,
                        room,
                        b"me",
                    )
                row.append(by_experts(layer, chosen, peers, asked))
            calls = " | ".join(f"{one.calls:.2f}" for one in row)
            hops = " | ".join(f"{one.hops:.2f}" for one in row)
            print(f"| {loyal:.0%} | {copies} | {calls} | {hops} |")


if __name__ == "__main__":
    main()
