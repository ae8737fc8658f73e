"""Regenerates rules.json: placement, ranks, contribution weights and draws before a gate,
which every node must compute alike.

    python -m tests.vectors.make_rules           writes the file beside this one
    python -m tests.vectors.make_rules rules     prints it

Accounts, models and beacons are blake3 of a name. A changed file is a changed consensus:
docs/consensus.md comes first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from blyan_proto.block.gate import Gate
from blyan_proto.block.model import Architecture, Dtype, Model
from blyan_proto.types import bitmap
from blyan_tile.batches import drawn_windows
from blyan_tile.layout import layout_of
from blyand.rules.model import clip
from blyand.rules.model.election import ranks
from blyand.rules.model.gate import Scored, committee, passes
from blyand.rules.model.placement import place
from blyand.rules.model.update import contribution_weights
from blyand.rules.records import Schedule, Seat
from blyand.training.scorer import seed_for

HERE = Path(__file__).parent
MODEL = blake3(b"vector model").digest()
RUN = blake3(b"vector run").digest()
BEACON = blake3(b"vector beacon").digest()


def account(index: int) -> bytes:
    """Return the account of a made-up node."""
    return blake3(f"vector account {index}".encode()).digest()[:20]


def shape_of(layers: int, experts: int) -> Architecture:
    """Return an architecture with that many layers and experts, otherwise the least."""
    return Architecture(
        vocabulary=256,
        layers=layers,
        width=16,
        heads=1,
        kv_heads=1,
        head_width=16,
        experts=experts,
        experts_per_token=1,
        expert_width=16,
        rope_base=10_000,
        rms_epsilon_ppb=1_000,
        normalise_top_k=True,
        tied_embeddings=True,
        context=64,
    )


def placement(nodes: int, replication: int, layers: int, experts: int) -> Any:
    """Return one placement: who is to hold which groups of the layout."""
    model = Model(
        1, "vector", shape_of(layers, experts), "bytes", Dtype.F32, replication, ""
    )
    accounts = [account(index) for index in range(nodes)]
    held = place(MODEL, layout_of(model), accounts, replication)
    return {
        "model": MODEL.hex(),
        "layers": layers,
        "experts": experts,
        "replication": replication,
        "held": {one.hex(): sorted(held[one]) for one in accounts},
    }


def election(weights: list[int], round: int, group: int) -> Any:
    """Return the ranks of one group: seats with these weights, who all hold it."""
    held = bitmap({group}, group + 1)
    seats = tuple(
        Seat(account(index), bytes(33), 1, weight, held)
        for index, weight in enumerate(weights)
    )
    schedule = Schedule(RUN, round, 1, BEACON, seats)
    return {
        "run": RUN.hex(),
        "beacon": BEACON.hex(),
        "round": round,
        "group": group,
        "seats": {seat.account.hex(): seat.weight for seat in seats},
        "ranks": [seat.account.hex() for seat in ranks(schedule, group)],
    }


def before_a_gate(weights: list[int], round: int, draws: int, count: int) -> Any:
    """Return who is drawn before a run's gate, and of 40 windows those that are drawn."""
    voters = {account(index): weight for index, weight in enumerate(weights)}
    drawn = committee(voters, (), count, BEACON, RUN, round, draws)
    seed = seed_for(BEACON, RUN, round)
    text = np.arange(40 * 5 + 3, dtype=np.uint8)
    windows = drawn_windows([text], 5, 7, seed)  # (7, 6)
    return {
        "beacon": BEACON.hex(),
        "run": RUN.hex(),
        "round": round,
        "draws": draws,
        "weights": {one.hex(): weight for one, weight in voters.items()},
        "count": count,
        "drawn": [one.hex() for one in drawn],
        "windows": [int(first) // 5 for first in windows[:, 0]],
    }


def passing(rise: list[int], bound_milli: int, margin_micro: int) -> Any:
    """Return whether a version passes whose windows' losses rise so."""
    squares = sum(one * one for one in rise)
    scored = Scored(bytes(20), len(rise), 10**8, 10**8 + sum(rise), squares)
    return {
        "rise": rise,
        "bound_milli": bound_milli,
        "margin_micro": margin_micro,
        "passes": passes(Gate(1, len(rise), bound_milli, margin_micro), scored),
    }


NEWCOMERS = (
    ([100] * 6, [False, False, True, True, True, True], 200_000),
    ([100, 900, 50], [True, False, True], 200_000),
    ([100, 100], [True, True], 200_000),
    ([5, 5, 5], [False, True, False], 0),
    ([0, 0, 7], [False, True, True], 333_333),
)
CLIPPED = (
    ([], 0, 3_000_000),
    ([100, 400], 0, 3_000_000),
    ([100, 400], 200, 3_000_000),
    ([1_000], 100, 3_000_000),
    ([0, 7, 0, 9, 11], 8, 2_000_000),
    ([2**64 - 1, 2**63, 5], 2**62, 1_000_000),
    ([900, 900, 900], 100, 3_000_000),
    ([1, 1, 1], 2, 1_000_000_000),
)


def newcomers(tokens: list[int], new: list[bool], share: int) -> dict:
    ppm = contribution_weights(tokens, new, share)
    return {"tokens": tokens, "new": new, "share_ppm": share, "ppm": ppm}


def clipped(norms: list[int], running: int, most: int) -> dict:
    return {
        "norms": norms,
        "running": running,
        "most_ppm": most,
        "ppm": clip.factors(norms, running, most),
        "median": clip.running_after(norms, running, most),
    }


def build() -> dict[str, Any]:
    """Return the whole file."""
    tokens = [[], [7], [100, 300], [1, 2, 900], [4, 4, 4, 4_000_000_000], [0, 0, 5]]
    return {
        "placement": [
            placement(1, 2, 1, 3),
            placement(3, 2, 2, 4),
            placement(4, 2, 4, 8),
            placement(7, 3, 2, 10),
        ],
        "election": [
            election([64, 64, 64, 64], round, group)
            for round in range(3)
            for group in (0, 1, 65_534)
        ]
        + [
            election(weights, 4, 5)
            for weights in ([1, 2, 3, 63], [64, 64], [], [0, 8, 0, 2], [0, 0, 0])
        ],
        "weights": [
            {"tokens": one, "ppm": contribution_weights(list(one))} for one in tokens
        ],
        "gate": [
            before_a_gate([1, 1, 1, 1, 1], 0, 0, 3),
            before_a_gate([16, 4, 0, 1, 2, 80], 7, 2, 2),
            before_a_gate([1, 2], 70_000, 0, 5),
        ],
        "passes": [
            passing(rise, bound, margin)
            for rise in ([0, 0], [-900, -1_100, -1_000], [-3_000, 1_000, 500, 900])
            for bound, margin in ((0, 0), (1645, 0), (1645, 2_000))
        ],
        "newcomers": [newcomers(*case) for case in NEWCOMERS],
        "clip": [clipped(*case) for case in CLIPPED],
    }


def main(names: list[str]) -> None:
    text = json.dumps(build(), indent=1) + "\n"
    if names:
        print(text, end="")
    else:
        (HERE / "rules.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
