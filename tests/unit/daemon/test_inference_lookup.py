"""Drafts change how often the layers are run, never the tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import trio

from blyan_tile.model import lookup
from blyan_tile.model.sampling import Sampling
from blyand.inference.generate import Generation, Result, Wanted
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

LONG = replace(TINY, context=640)
MOST = 7
REPEATING = [5, 9, 7, 200, 31] * 6


class Eager(lookup.Drafting):
    """Drafts at every step, whatever that costs."""

    def draft(self, most):
        if self._plain_s is None:
            return []
        return lookup.draft(self._tokens[: self._count], min(most, MOST, self._most))

    def note(self, drafted, accepted, seconds):
        super().note(drafted, accepted, 1.0)


class Astray(Eager):
    """Its drafts are right, wrong from the second token on, or wrong, in turns."""

    truth: list[int] = []
    turn = 0

    def draft(self, most):
        most = min(most, MOST, self._most)
        guess = self.truth[self._count : self._count + most]
        self.turn += 1
        wrong = (len(guess), 1, 0)[self.turn % 3]
        return guess[:wrong] + [(token + 1) % 256 for token in guess[wrong:]]


@pytest.fixture(params=[Eager, Astray])
def drafting(request, monkeypatch):
    monkeypatch.setattr("blyand.inference.generate.Drafting", request.param)
    return request.param


async def asked(node, tokens, count, **more):
    """Return (token ids, Result, what was told of each token), with drafts."""
    result = Result()
    wanted = Wanted(MODEL, tuple(tokens), count, **more)
    generation = Generation(node.parts, lookup=MOST)
    made = [one async for one in generation.run(wanted, result)]
    assert [one.position for one in made] == list(
        range(len(tokens), len(tokens) + len(made))
    )
    return result.token_ids, result, [(one.logprob, one.top) for one in made]


async def plain(node, tokens, count, **more):
    result = Result()
    wanted = Wanted(MODEL, tuple(tokens), count, **more)
    made = [one async for one in Generation(node.parts).run(wanted, result)]
    return result.token_ids, result, [(one.logprob, one.top) for one in made]


def nodes_of(world, kind):
    """Nodes of which the first is asked."""
    net, shared = Net(), frozenset(g.index for g in world.layout.shared_groups)
    experts = world.all_experts()
    if kind == "local":
        return [Node(world, net, "a", shared | experts)]
    if kind == "spans":
        return [Node(world, net, "a", shared), Node(world, net, "b", shared | experts)]
    half = frozenset(sorted(experts)[::2])
    return [Node(world, net, "a", half), Node(world, net, "b", experts - half)]


SAMPLED = Sampling(0.8, seed=11, top_k=40, logit_bias=((3, 1.5),))


@pytest.mark.parametrize("kind", ["local", "spans", "experts"])
@pytest.mark.parametrize(
    ("sampling", "window"), [(Sampling(), 0), (SAMPLED, 40)], ids=["greedy", "sampled"]
)
def test_the_tokens_are_those_without_drafts(kind, sampling, window, monkeypatch):
    monkeypatch.setattr("blyand.inference.generate.Drafting", Astray)

    async def main():
        world = World(replace(LONG, attention_window=window))
        nodes = nodes_of(world, kind)
        route = Route.SPANS if kind == "spans" else Route.AUTO
        more = {"sampling": sampling, "route": route, "logprobs": 2}
        async with running(*nodes):
            for tokens in (REPEATING, prompt(300)):
                expected, without, told = await plain(nodes[0], tokens, 36, **more)
                Astray.truth = tokens + expected
                found, result, also_told = await asked(nodes[0], tokens, 36, **more)
                assert found == expected and also_told == told
                assert without.drafted == 0 < result.accepted < result.drafted
                assert sum(result.calls.values()) < sum(without.calls.values())

    trio.run(main)


def test_a_repetition_is_found_without_being_told(monkeypatch):
    monkeypatch.setattr("blyand.inference.generate.Drafting", Eager)

    async def main():
        world = World(replace(LONG, layers=1, vocabulary=3))  # soon it repeats itself
        (node,) = nodes_of(world, "local")
        async with running(node):
            found, result, _ = await asked(node, [0, 1, 2, 0, 1], 60)
            assert found == world.locally([0, 1, 2, 0, 1], 60)
            assert result.accepted > 20 and result.calls["a"] < 40

    trio.run(main)


def test_what_a_span_had_is_run_again_at_another_without_what_was_taken_back(
    drafting,
):
    async def main():
        world, net = World(LONG), Net()
        shared = frozenset(g.index for g in world.layout.shared_groups)
        whole = shared | world.all_experts()
        nodes = [
            Node(world, net, "a", shared),
            *(Node(world, net, n, whole) for n in "bc"),
        ]
        expected = world.locally(REPEATING, 40)
        Astray.truth = REPEATING + expected
        result, killed = Result(), []
        wanted = Wanted(MODEL, tuple(REPEATING), 40, route=Route.SPANS)
        async with running(*nodes):
            generation = Generation(nodes[0].parts, lookup=MOST)
            async for _ in generation.run(wanted, result):
                if len(result.token_ids) == 15:
                    killed = [peer for peer in result.calls if peer != "a"]
                    net.dead.update(killed)
        assert result.token_ids == expected and len(killed) == 1
        assert result.failed[killed[0]] and result.drafted

    trio.run(main)


def test_a_newer_version_in_mid_answer_begins_again_with_what_was_accepted(drafting):
    async def main():
        world, net = World(LONG), Net()
        shared = frozenset(g.index for g in world.layout.shared_groups)
        a = Node(world, net, "a", shared)
        b = Node(world, net, "b", shared | world.all_experts())
        result = Result()
        wanted = Wanted(MODEL, tuple(REPEATING), 30, route=Route.SPANS)
        first = world.locally(REPEATING, 30)
        Astray.truth = REPEATING + first
        async with running(a, b):
            async for _ in Generation(a.parts, lookup=MOST).run(wanted, result):
                if len(result.token_ids) == 12:
                    for session in list(b.spans._sessions.values()):
                        b.spans._close(session)
                    for seed in (2, 3, 4, 5):
                        world.adopt(seed)
                        b.finalised()
        made = result.token_ids
        assert result.repinned == 1 and len(made) == 30
        assert any(  # those that were accepted in the step before
            made[:kept] == first[:kept]
            and made[kept:] == world.locally(REPEATING + made[:kept], 30 - kept)
            for kept in range(12, 12 + MOST + 1)
        )

    trio.run(main)


@pytest.mark.parametrize("ending", ["stop", "eos"])
def test_an_end_among_accepted_tokens_ends_there(ending, drafting):
    async def main():
        world = World(LONG)
        (node,) = nodes_of(world, "local")
        async with running(node):
            expected, _, _ = await plain(node, REPEATING, 60)
            Astray.truth = REPEATING + expected
            more = {"stop_tokens": frozenset([expected[20]])}
            if ending == "stop":
                more = {
                    "stop": (bytes(expected[19:22]).decode(errors="ignore") or "\1",)
                }
            want, without, _ = await plain(node, REPEATING, 60, **more)
            found, result, _ = await asked(node, REPEATING, 60, **more)
            assert found == want and result.text == without.text
            assert result.finish_reason == without.finish_reason

    trio.run(main)


def test_a_context_that_ends_is_not_overrun(drafting):
    async def main():
        world = World(TINY)  # of 96 tokens
        (node,) = nodes_of(world, "local")
        async with running(node):
            expected = world.locally(REPEATING, 500)
            Astray.truth = REPEATING + expected
            found, result, _ = await asked(node, REPEATING, 500)
            assert found == expected and len(found) == 96 - 30

    trio.run(main)


@pytest.mark.parametrize(
    "more",
    [
        {"sampling": Sampling(presence_penalty=1.0)},
        {"sampling": Sampling(repetition_penalty=1.2)},
        {"trace": True},
        {"lookup": 0},
    ],
    ids=["presence", "repetition", "trace", "not wanted"],
)
def test_what_depends_on_each_token_is_not_drafted(more, drafting):
    async def main():
        world = World(LONG)
        (node,) = nodes_of(world, "local")
        async with running(node):
            expected, without, _ = await plain(node, REPEATING, 30, **more)
            Astray.truth = REPEATING + expected
            found, result, _ = await asked(node, REPEATING, 30, **more)
            assert found == expected and not result.drafted
            if more.get("trace"):
                assert result.visits == without.visits != Counter()

    trio.run(main)


def test_an_answer_that_is_kept_for_the_next_turn_holds_no_wrong_guess(drafting):
    async def main():
        world = World(LONG)
        (node,) = nodes_of(world, "local")
        async with running(node):
            expected = world.locally(REPEATING, 25)
            Astray.truth = REPEATING + expected
            found, _, _ = await asked(node, REPEATING, 25, owner=b"me")
            said = REPEATING + found + prompt(7, seed=3)
            more, _ = await node.generate(said, 10, owner=b"me")
            assert more == world.locally(said, 10)
            assert node.metrics.snapshot()["inference_prefix_hits"] == 1

    trio.run(main)


def test_a_crowd_is_not_held_up_by_drafts(drafting):
    async def main():
        world = World(LONG)
        (node,) = nodes_of(world, "local")
        generation = Generation(node.parts, lookup=MOST)
        results = [Result() for _ in range(6)]
        expected = world.locally(REPEATING, 30)
        Astray.truth = REPEATING + expected

        async def through(result):
            wanted = Wanted(MODEL, tuple(REPEATING), 30)
            async for _ in generation.run(wanted, result):
                pass

        async with running(node):
            async with trio.open_nursery() as nursery:
                for result in results:
                    nursery.start_soon(through, result)
        assert all(result.token_ids == expected for result in results)
        # While all of them run nothing is drafted; the first and the last may be alone.
        assert sum(result.drafted for result in results) < 30

    trio.run(main)
