"""How a learner's time and its experts are used, as `train status` shows it."""

from __future__ import annotations

import pytest

from blyan_tile.create import model_of
from blyan_tile.layout import layout_of
from blyan_tile.learner import ExpertShare
from blyand.rpc.use import evenness, experts_used, layers_used, utilisation
from blyand.store.rounds import Report

MODEL = model_of("tiny", "tiny")
RUN = bytes(32)


def shares(**tokens: int) -> tuple[ExpertShare, ...]:
    layout = layout_of(MODEL)
    return tuple(
        ExpertShare(layout.group_named(name.replace("_", ".")).index, count)
        for name, count in tokens.items()
    )


def test_the_newest_round_trained_here_is_shown() -> None:
    reports = [
        Report(RUN, 0, 9, shares=shares(layer0_expert0=9)),
        Report(
            RUN,
            1,
            9,
            shares=shares(layer0_expert1=30, layer0_expert3=10, layer1_expert0=40),
        ),
        Report(RUN, 2, 9),  # the others': this node trained nothing
    ]
    experts = experts_used(MODEL, reports)
    assert [(one.expert, one.tokens, one.share) for one in experts] == [
        ("layer0.expert1", 30, 0.75),
        ("layer0.expert3", 10, 0.25),
        ("layer1.expert0", 40, 1.0),
    ]
    layers = layers_used(MODEL, reports)
    assert [(one.layer, one.experts) for one in layers] == [(0, 2), (1, 1)]
    assert layers[0].entropy == pytest.approx(0.811278)  # of (3/4, 1/4), in bits
    assert layers[1].entropy == 1.0
    assert experts_used(MODEL, []) == [] == layers_used(MODEL, [])


def test_entropy_is_between_one_for_all_and_all_alike() -> None:
    assert evenness([5, 5, 5, 5]) == pytest.approx(1)
    assert evenness([7, 0, 0]) == evenness([0, 0]) == 0
    assert 0 < evenness([8, 1, 1]) < evenness([4, 3, 3]) < 1


def test_utilisation_is_of_closed_rounds() -> None:
    assert utilisation([Report(RUN, 0, 9, learnt_ms=3000)]) is None
    done = [
        Report(RUN, n, 9, learnt_ms=1000, took_ms=4000, closed=True) for n in range(9)
    ]
    assert utilisation(done) == 0.25
    assert (
        utilisation([Report(RUN, 0, 9, learnt_ms=9000, took_ms=4000, closed=True)]) == 1
    )
