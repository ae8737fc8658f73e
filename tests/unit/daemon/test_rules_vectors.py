"""The rules give the published numbers, here and from their own text a second time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from blake3 import blake3

from tests.vectors import make_rules as made

GOLDEN = json.loads((made.HERE / "rules.json").read_text())


def test_the_vectors_are_as_published():
    assert made.build() == GOLDEN


def digest(context: str, *parts: bytes) -> bytes:
    hasher = blake3(derive_key_context=context)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.digest()


@pytest.mark.parametrize("case", GOLDEN["election"])
def test_ranks_follow_from_the_text_of_the_rule(case):
    """Of each seat's `weight` numbers (8 bytes, big-endian) the best; then the account."""
    best = []
    leading = {one: weight for one, weight in case["seats"].items() if weight}
    for account, weight in (leading or dict.fromkeys(case["seats"], 1)).items():
        numbers = b"".join(
            digest(
                "blyan 1 election",
                bytes.fromhex(case["beacon"]),
                bytes.fromhex(case["run"]),
                case["round"].to_bytes(4, "little"),
                case["group"].to_bytes(2, "little"),
                bytes.fromhex(account),
                bytes([start]),
            )
            for start in range(0, weight, 4)
        )
        drawn = [numbers[8 * i : 8 * i + 8] for i in range(weight)]
        best.append((max(drawn), account))
    assert [account for _, account in sorted(best, reverse=True)[:3]] == case["ranks"]


@pytest.mark.parametrize("case", GOLDEN["placement"])
def test_placement_follows_from_the_text_of_the_rule(case):
    """Room by load and hash; then each expert to the smallest hashes that have room."""
    model, nodes = bytes.fromhex(case["model"]), list(case["held"])
    copies = min(case["replication"], len(nodes))
    first = {n: 0 for n in nodes}
    held: dict[str, set[int]] = {n: set() for n in nodes}
    for layer in range(case["layers"]):
        start = 1 + layer * (2 + case["experts"]) + 2
        experts = range(start, start + case["experts"])
        share, extra = divmod(len(experts) * copies, len(nodes))

        def key(node: str) -> tuple[int, bytes]:
            raw = bytes.fromhex(node)
            place = layer.to_bytes(2, "little")
            return first[node], digest("blyan 1 placement", model, b"room", place, raw)

        lucky = sorted(nodes, key=key)[:extra]
        room = {n: share + (n in lucky) for n in nodes}
        for expert in experts:
            left = experts.stop - expert
            draw = {
                n: digest(
                    "blyan 1 placement",
                    model,
                    expert.to_bytes(2, "little"),
                    bytes.fromhex(n),
                )
                for n in nodes
                if room[n]
            }
            must = [n for n in draw if room[n] == left]
            may = sorted((n for n in draw if room[n] < left), key=draw.__getitem__)
            for n in (must + may)[:copies]:
                room[n] -= 1
                first[n] += 1
                held[n].add(expert)
    for node, groups in case["held"].items():
        experts_held = {
            group
            for group in groups
            if group and (group - 1) % (2 + case["experts"]) >= 2
        }
        assert experts_held == held[node]


@pytest.mark.parametrize("case", GOLDEN["gate"])
def test_who_and_what_is_drawn_before_a_gate_follows_from_the_text(case):
    place = [bytes.fromhex(case[name]) for name in ("beacon", "run")]
    round = case["round"].to_bytes(4, "little")
    best = {
        account: max(
            digest(
                "blyan 1 election",
                b"gate",
                *place,
                round,
                bytes([case["draws"]]),
                bytes.fromhex(account),
                bytes([turn]),
            )
            for turn in range(min(64, weight))
        )
        for account, weight in case["weights"].items()
        if weight
    }
    drawn = sorted(best, key=lambda one: best[one], reverse=True)[: case["count"]]
    assert sorted(drawn) == case["drawn"]
    key = digest("blyan 1 seed", b"gate", *place, round)[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(40)
    smallest = sorted(range(40), key=lambda place: (int(words[place]), place))[:7]
    assert sorted(smallest) == case["windows"]


@pytest.mark.parametrize("case", GOLDEN["passes"])
def test_who_passes_follows_from_the_text(case):
    n, margin = len(case["rise"]), case["margin_micro"]
    total, squares = sum(case["rise"]), sum(one * one for one in case["rise"])
    room, bound = n * margin - total, case["bound_milli"]
    left = bound**2 * (n * squares - total**2)
    right = 10**6 * room**2 * (n - 1)
    assert case["passes"] == (room >= 0 and left <= right)


def lower_median(values: list[int]) -> int:
    return sorted(values)[(len(values) - 1) // 2]


@pytest.mark.parametrize("case", GOLDEN["newcomers"])
def test_newcomers_share_follows_from_the_text_of_the_rule(case):
    tokens, new, share = case["tokens"], case["new"], case["share_ppm"]
    cap = 2 * lower_median(tokens)
    counts = [min(n, cap) if cap else 1 for n in tokens]
    known = sum(n for n, is_new in zip(counts, new) if not is_new)
    fresh = sum(counts) - known
    if known and fresh * 10**6 > share * (known + fresh):
        counts = [
            n * share * known if is_new else n * (10**6 - share) * fresh
            for n, is_new in zip(counts, new)
        ]
    assert case["ppm"] == [max(1, n * 10**6 // sum(counts)) for n in counts]


@pytest.mark.parametrize("case", GOLDEN["clip"])
def test_clips_follow_from_the_text_of_the_rule(case):
    norms, running, most = case["norms"], case["running"], case["most_ppm"]
    values = [norm for norm in norms if norm]
    if running and len(values) % 2 == 0:
        values.append(running)
    reference = lower_median(values) if values else 0
    limit = min(reference, running * most // 10**6) if running else reference
    assert case["ppm"] == [
        10**6 if norm <= limit else limit * 10**6 // norm for norm in norms
    ]
    median = reference or running
    if running and reference:
        near = max(running * 10**6 // most, min(reference, running * most // 10**6))
        median = max(1, (3 * running + near) // 4)
    assert case["median"] == median
