"""Placement: everybody can compute it, it is level, and it changes little."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_tile.layout import Layout, layout_of
from blyand.rules.model.placement import place
from tests.unit.daemon.chain_world import ARCHITECTURE, model, replace, some

MODEL = some("model").randbytes(32)


def layout(layers: int, experts: int) -> Layout:
    shape = replace(ARCHITECTURE, layers=layers, experts=experts, experts_per_token=1)
    return layout_of(model(architecture=shape))


def accounts(count: int, seed: int = 0) -> list[bytes]:
    source = some(seed)
    return [source.randbytes(20) for _ in range(count)]


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)
)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 99))
def test_each_expert_has_its_holders_and_the_load_is_level(shape, seed):
    layers, experts, count, replication = shape
    cut, nodes = layout(layers, experts), accounts(count, seed)
    held = place(MODEL, cut, nodes, replication)
    assert set(held) == set(nodes)
    shared = {group.index for group in cut.shared_groups}
    assert all(shared <= groups for groups in held.values())
    copies = Counter(group for groups in held.values() for group in groups)
    loads: dict[int, list[int]] = {layer: [] for layer in range(layers)}
    for layer in range(layers):
        inside = {group.index for group in cut.expert_groups if group.layer == layer}
        assert {copies[group] for group in inside} == {min(replication, count)}
        loads[layer] = [len(inside & held[account]) for account in nodes]
        assert max(loads[layer]) - min(loads[layer]) <= 1, loads
    whole = [sum(row) for row in zip(*loads.values())]
    assert max(whole) - min(whole) <= 1, "level over all layers too"


@pytest.mark.parametrize("count", [3, 4, 7])
def test_nobody_holds_all_experts_where_there_are_nodes_enough(count):
    cut = layout(4, 8)
    for seed in range(5):
        held = place(MODEL, cut, accounts(count, seed), 2)
        experts = {group.index for group in cut.expert_groups}
        assert not any(experts <= groups for groups in held.values())


@settings(max_examples=20, deadline=None)
@given(st.permutations(accounts(6)))
def test_the_order_of_the_nodes_does_not_matter(nodes):
    cut = layout(2, 4)
    assert place(MODEL, cut, nodes, 2) == place(MODEL, cut, accounts(6), 2)


def test_another_model_is_placed_differently_and_no_nodes_hold_nothing():
    cut, nodes = layout(2, 8), accounts(5)
    other = some("other model").randbytes(32)
    assert place(MODEL, cut, nodes, 2) != place(other, cut, nodes, 2)
    assert place(MODEL, cut, [], 2) == {}
    assert place(MODEL, cut, nodes, 0) == {}


@pytest.mark.parametrize("count", [3, 8, 20])
def test_a_node_that_comes_or_goes_moves_few_experts(count):
    cut, total = layout(4, 16), 4 * 16 * 2
    for seed in range(3):
        nodes = accounts(count + 1, seed)
        before = place(MODEL, cut, nodes[:-1], 2)
        after = place(MODEL, cut, nodes, 2)
        gained = sum(len(after[a] - before[a]) for a in nodes[:-1])
        least = total / (count + 1)  # what the new node has to take
        assert len(after[nodes[-1]]) - len(cut.shared_groups) <= least + 1
        assert gained <= total / 4, "those who stay move little among themselves"
