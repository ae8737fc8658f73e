"""Tokens do not depend on where the experts are, nor on who of them dies."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing

import numpy as np
import pytest
import torch
import trio
import trio.testing

from blyan_proto.errors import LimitExceeded
from blyan_tile.batches import held_out_windows
from blyan_tile.model.sampling import Sampling
from blyan_tile.model.training import held_out_loss
from blyan_tile.tokenizer import ByteTokenizer
from blyand.errors import Busy, NoRoute, NotHere
from blyand.inference.evaluate import Evaluation
from blyand.inference.generate import Generation, Result, Wanted
from blyand.inference.pins import Pins
from blyand.inference.text import Writer
from blyand.rules.model.heads import Which
from blyand.rules.net.route import Ration
from blyand.rules.view import Overlay
from tests.unit.daemon.inference_world import (
    MODEL,
    Empty,
    Inline,
    Net,
    Node,
    World,
    prompt,
    running,
)


def jumping():
    return trio.testing.MockClock(autojump_threshold=0.0)


def split_world(lane=None):
    """Node a holds two experts per layer; b and c each hold the others."""
    world, net = World(), Net()
    mine = world.expert_groups(*(f"layer{i}.expert{j}" for i in (0, 1) for j in (0, 1)))
    others = world.all_experts() - mine
    a = Node(world, net, "a", mine, lane)
    b = Node(world, net, "b", others, lane)
    c = Node(world, net, "c", others, lane)
    return world, net, a, b, c


@pytest.mark.parametrize("length", [1, 9, 61])
def test_local_and_split_give_the_same_tokens(length):
    async def main():
        world, net, a, b, c = split_world()
        whole = Node(world, Net(), "whole", world.all_experts())
        expected = world.locally(prompt(length), 20)
        async with running(a, b, c, whole):
            tokens, result = await a.generate(prompt(length), 20)
            assert tokens == expected
            assert result.calls["a"] and result.calls["b"]
            assert result.retries == result.repinned == 0
            assert result.height == 1 and result.finish_reason == "length"
            tokens, result = await whole.generate(prompt(length), 20)
            assert tokens == expected and set(result.calls) == {"whole"}

    trio.run(main)


def test_sampling_is_the_same_stream_everywhere():
    async def main():
        world, net, a, b, c = split_world()
        expected = world.locally(prompt(5), 12, temperature=0.9, seed=4)
        async with running(a, b, c):
            tokens, _ = await a.generate(prompt(5), 12, sampling=Sampling(0.9, 4))
        assert tokens == expected

    trio.run(main)


def test_one_call_per_peer_and_layer_and_every_state_once():
    async def main():
        world, net, a, b, c = split_world()
        net.dead.add("c")
        a.routes.failed("c")  # so that b is asked first
        async with running(a, b):
            await a.generate(prompt(40), 1)
        assert 1 <= len(net.calls) <= world.model.architecture.layers
        for _, peer, call in net.calls:
            assert peer == "b"
            rows = {
                row
                for expert in call.experts
                for row in np.frombuffer(expert.rows, "<u2").tolist()
            }
            assert len(call.activations) == len(rows) * 4 * call.width

    trio.run(main)


def test_a_replica_takes_over_in_the_middle_of_an_answer():
    async def main():
        world, net, a, b, c = split_world()
        expected = world.locally(prompt(7), 30)
        a.routes.opinions = a.routes.hedges = Ration(0.0)  # the last call is of a token
        died = []

        def kill(made):
            if made.position == 7 + 12 and not died:
                died.append(net.calls[-1][1])
                net.dead.update(died)

        async with running(a, b, c):
            tokens, result = await a.generate(prompt(7), 30, on_token=kill)
        assert tokens == expected
        assert died and result.retries == 1
        assert result.calls["b"] and result.calls["c"]

    trio.run(main)


def test_a_silent_peer_is_replaced_after_its_deadline():
    async def main():
        world, net, a, b, c = split_world(Inline("x", 1))
        expected = world.locally(prompt(7), 8)
        net.silent.add("b")
        async with running(a, b, c):
            tokens, result = await a.generate(prompt(7), 8)
        assert tokens == expected and result.calls["c"] and not result.calls["b"]
        assert result.retries >= 1

    trio.run(main, clock=jumping())


def test_a_lying_peer_with_infinite_numbers_is_replaced():
    async def main():
        world, net, a, b, c = split_world()
        infinite = np.float32(np.inf).tobytes()
        net.mangle = lambda peer, outputs: (
            tuple(infinite + raw[4:] for raw in outputs) if peer == "b" else outputs
        )
        async with running(a, b, c):
            tokens, result = await a.generate(prompt(7), 8)
        assert tokens == world.locally(prompt(7), 8) and not result.calls["b"]

    trio.run(main)


def test_no_route_names_the_expert_within_the_deadline():
    async def main():
        world, net, a, b, c = split_world(Inline("x", 1))
        net.dead.update("bc")
        async with running(a, b, c):
            for deadline_s in (3.0, 60.0):
                began_s = trio.current_time()
                with pytest.raises(NoRoute, match=r"no peer .* layer0\.expert[23]"):
                    await a.generate(prompt(30), 4, deadline_s=began_s + deadline_s)
                assert trio.current_time() - began_s <= min(deadline_s, 10) + 1

    trio.run(main, clock=jumping())


def test_a_holder_that_comes_late_is_found():
    async def main():
        world, net, a, b, c = split_world(Inline("x", 1))
        net.dead.update("bc")

        async def revive():
            await trio.sleep(3)
            net.dead.clear()

        async with running(a, b, c), trio.open_nursery() as nursery:
            nursery.start_soon(revive)
            tokens, _ = await a.generate(prompt(30), 4)
        assert tokens == world.locally(prompt(30), 4)

    trio.run(main, clock=jumping())


def test_a_trunk_that_is_still_being_recomputed_is_waited_for():
    async def main():
        world, net, a, b, c = split_world(Inline("x", 1))
        complete, world.blobs.arrays = world.blobs.arrays, {}

        async def recompute():
            await trio.sleep(3)
            world.blobs.arrays = complete

        async with running(a, b, c):
            with pytest.raises(NotHere):
                await a.generate(prompt(30), 4)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recompute)
                tokens, _ = await a.generate(prompt(30), 4)
        assert tokens == world.locally(prompt(30), 4)

    trio.run(main, clock=jumping())


def test_a_stale_version_repins_once_and_says_so():
    async def main():
        world, net, a, b, c = split_world()

        def move_on(made):
            if made.position == 9 + 4:
                for seed in (2, 3, 4, 5):  # one more than are served
                    world.adopt(seed)
                    for node in (a, b, c):
                        node.finalised()
                for node in (b, c):  # as if the session had been idle for long
                    for group in node.versions._groups.values():
                        group.lingering.clear()
                        group.trained.clear()

        async with running(a, b, c):
            tokens, result = await a.generate(prompt(9), 12, on_token=move_on)
        assert result.repinned == 1 and result.height == 5
        assert len(tokens) == 12
        assert tokens[5:] == world.locally(prompt(9) + tokens[:5], 7)
        assert not a.versions._pinned

    trio.run(main)


def test_stop_text_ends_and_is_not_shown():
    async def main():
        world, net, a, b, c = split_world()
        async with running(a, b, c):
            tokens, result = await a.generate(prompt(6), 20)
            shown = ByteTokenizer().decode(tokens)
            assert result.text == shown
            stop = shown[5:7]
            tokens, result = await a.generate(prompt(6), 20, stop=("never", stop))
            assert result.finish_reason == "stop"
            assert result.text == shown[: shown.index(stop)]

    trio.run(main)


def test_the_prompt_is_told_with_probabilities():
    async def main():
        world, net, a, b, c = split_world()
        async with running(a, b, c):
            tokens, result = await a.generate(
                prompt(6), 4, echo_logprobs=True, logprobs=2
            )
            assert tokens == world.locally(prompt(6), 4)
            assert result.prompt[0] is None
            assert [one.token for one in result.prompt[1:]] == prompt(6)[1:]
            # as if each had been chosen
            for length in range(1, 6):
                _, one = await a.generate(prompt(6)[:length], 1, logprobs=2)
                told = result.prompt[length]
                assert dict(told.top)[one.token_ids[0]] == pytest.approx(
                    one.logprobs[0], abs=1e-5
                )
            none, result = await a.generate(prompt(6), 0, echo_logprobs=True)
            assert none == [] and len(result.prompt) == 6

    trio.run(main)


def test_leaving_early_frees_everything():
    async def main():
        world, net, a, b, c = split_world()
        generation = Generation(a.parts, max_sessions=1)
        wanted = Wanted(MODEL, tuple(prompt(6)), 20)
        async with running(a, b, c):
            async with aclosing(generation.run(wanted, Result())) as made:
                await anext(made)
                assert a.versions._pinned
                with pytest.raises(Busy):
                    await anext(generation.run(wanted, Result()))
                with pytest.raises(Busy):
                    generation.check_room()
            assert not generation.under_way and not a.versions._pinned
            with trio.move_on_after(0):
                await a.generate(prompt(6), 20)
            assert not a.versions._pinned

    trio.run(main)


def test_the_context_is_the_end():
    async def main():
        world, net, a, b, c = split_world()
        async with running(a, b, c):
            tokens, _ = await a.generate(prompt(90), 20)
            assert tokens == world.locally(prompt(90), 20) and len(tokens) == 6
            with pytest.raises(LimitExceeded):
                await Generation(a.parts)._parts.lane.run(
                    a.parts.trunks.get(a.pins.newest(MODEL)).new_cache, 97
                )

    trio.run(main)


def test_a_model_without_weights_is_not_here():
    with pytest.raises(NotHere):
        Pins(lambda: Overlay(Empty())).newest(MODEL)


def test_evaluation_measures_what_training_measures():
    text = np.frombuffer(np.random.default_rng(0).bytes(64 * 17), np.uint8)

    async def main():
        world, net, a, b, c = split_world()
        parameters = {k: torch.from_numpy(v) for k, v in world.parameters.items()}
        windows = held_out_windows([text], 32)
        expected = held_out_loss(
            world.model.architecture, parameters, torch.from_numpy(windows)
        )
        async with running(a, b, c):
            evaluation = Evaluation(a.parts, a.lane)
            heads = a.pins.newest(MODEL, Which.TRAINED)
            measured = await evaluation.measure(heads, text, sequence=32)
            assert measured.loss == pytest.approx(expected, abs=1e-5)
            assert measured.tokens == windows[:, 1:].size and measured.height == 1
            assert measured.calls["a"] and measured.calls["b"]
            newest = await evaluation.newest(MODEL, Which.ADOPTED, text, 192)
            assert newest.tokens == 192  # in pieces of the whole context, 96
            with pytest.raises(LimitExceeded):
                await evaluation.measure(heads, text[:10])

    trio.run(main)


def test_what_evaluation_computes_is_no_part_of_an_answer_s_call():
    text = np.frombuffer(np.random.default_rng(0).bytes(64 * 17), np.uint8)

    async def main():
        _, _, a, b, c = split_world()
        calls = Counter()

        def noted(name, lane):
            run = lane.run

            async def noting(fn, *args):
                calls[name] += fn == a.batcher._compute
                return await run(fn, *args)

            lane.run = noting

        noted("answers", a.lane)
        noted("aside", a.aside)
        async with running(a, b, c):
            heads = a.pins.newest(MODEL, Which.TRAINED)
            await Evaluation(a.parts, a.lane).measure(heads, text, sequence=32)
            assert calls["aside"] and not calls["answers"]
            calls.clear()
            await a.generate([1, 2, 3], 3)
            assert calls["answers"] and not calls["aside"]

    trio.run(main)


def test_text_is_whole_characters_and_holds_back_stops():
    writer = Writer(ByteTokenizer())
    assert [writer.add(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert writer.add(0xE2) == "" and writer.end() == "\ufffd"
    writer = Writer(ByteTokenizer(), ["END", "x"])
    assert [writer.add(byte) for byte in b"aEEN"] == ["a", "", "E", ""]
    assert writer.end() == "EN" and not writer.stopped
    writer = Writer(ByteTokenizer(), ["END"])
    shown = "".join(writer.add(byte) for byte in b"so END")
    assert shown == "so " and writer.stopped and writer.end() == ""
