"""What is known of the use of experts: windows, pairs, bounds, and who sees it."""

import numpy as np
import torch
import trio

from blyan_tile.model.visits import Visits
from blyand.inference.usage import MAX_ROWS, MODELS_KEPT, WINDOW_S, WINDOWS, Usage
from blyand.rules.net.path import Route
from tests.unit.daemon.inference_world import (
    MODEL,
    TINY,
    Net,
    Node,
    World,
    prompt,
    running,
)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def chosen(*tokens):
    return {0: [torch.tensor(tokens, dtype=torch.int64)]}


def test_visits_are_taken_once():
    visits = Visits()
    visits.add(1, torch.tensor([[0, 3]]))
    visits.add(1, torch.tensor([[2, 3]]))
    assert visits.rows == 2
    (steps,) = visits.take().values()
    assert torch.cat(steps).tolist() == [[0, 3], [2, 3]]
    assert visits.take() == {} and not visits.rows


def test_windows_roll_and_an_hour_later_nothing_is_left():
    clock = Clock()
    usage = Usage(clock)
    usage.note(MODEL, TINY, chosen([0, 3], [0, 1]))
    assert usage.of(MODEL).visits[0].tolist() == [2, 1, 0, 1]
    assert usage.of(MODEL).tokens == 2
    clock.now_s = WINDOW_S
    usage.note(MODEL, TINY, chosen([2, 3]))
    use = usage.of(MODEL)
    assert [w.visits[0].tolist() for w in use.windows] == [[2, 1, 0, 1], [0, 0, 1, 1]]
    assert use.visits[0].tolist() == [2, 1, 1, 2]
    clock.now_s = WINDOW_S * (WINDOWS - 1) + 1  # an hour later the first still counts
    assert usage.of(MODEL).visits.sum() == 6
    clock.now_s = WINDOW_S * WINDOWS
    assert usage.of(MODEL).visits.sum() == 2
    clock.now_s *= 9
    assert not usage.of(MODEL).visits.any() and not usage.of(MODEL).pairs.any()


def test_pairs_are_tokens_that_went_to_both_and_fade():
    clock = Clock()
    usage = Usage(clock)
    usage.note(MODEL, TINY, chosen(*[[0, 3]] * 4, [1, 3]))
    pairs = usage.of(MODEL).pairs[0]
    assert (pairs == pairs.T).all() and not pairs.diagonal().any()
    assert pairs[3].tolist() == [4, 1, 0, 0]
    clock.now_s = WINDOW_S
    use = usage.of(MODEL)
    assert use.pairs[0, 0, 3] == 2 and use.pair_tokens[0] == 2.5


def test_what_is_kept_is_bounded():
    usage = Usage(Clock())
    for number in range(MODELS_KEPT + 3):
        usage.note(bytes([number]) * 32, TINY, chosen([0, 1]))
        usage.fold()
    assert usage.of(b"\0" * 32) is None and usage.of(bytes([5]) * 32) is not None
    many = {0: [torch.zeros(MAX_ROWS, 1, dtype=torch.int64)]}
    usage.note(MODEL, TINY, many)
    usage.note(MODEL, TINY, chosen([0, 1]))  # left out
    assert usage.of(MODEL).visits[0].tolist() == [MAX_ROWS, 0, 0, 0]


def test_requests_spans_and_calls_of_peers_are_counted_where_the_choice_is_known():
    world, net = World(), Net()
    shared = frozenset(group.index for group in world.layout.shared_groups)
    asker = Node(world, net, "a", shared)
    host = Node(world, net, "b", shared | world.all_experts())

    async def run(route):
        async with running(asker, host):
            await asker.generate(prompt(9), 5, route=route)

    per_layer = (9 + 5 - 1) * TINY.experts_per_token
    trio.run(run, Route.EXPERTS)
    use = asker.parts.usage.of(MODEL)
    assert use.visits.sum(axis=1).tolist() == [per_layer] * 2
    served = host.server._usage.of(MODEL)
    assert not served.visits.any() and (served.used == use.visits).all()
    trio.run(run, Route.SPANS)
    for session in list(host.spans._sessions.values()):
        host.spans._close(session)
    assert (host.spans._usage.of(MODEL).visits == use.visits).all()
    assert (
        asker.parts.usage.of(MODEL).visits == use.visits
    ).all()  # a span is not seen


def test_a_trace_tells_the_same_as_the_node_counts():
    world, net = World(), Net()
    node = Node(world, net, "a", frozenset(range(len(world.layout.groups))))

    async def run():
        async with running(node):
            return (await node.generate(prompt(9), 5, trace=True))[1]

    traced = trio.run(run).visits
    counted = node.parts.usage.of(MODEL).visits
    expected = np.zeros_like(counted)
    for (layer, expert), tokens in traced.items():
        expected[layer, expert] = tokens
    assert (counted == expected).all() and counted.sum() == 13 * 2 * 2
