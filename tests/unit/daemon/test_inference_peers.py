"""Late, loaded, behind, lying and new peers: who is asked, who is believed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
import trio
import trio.testing

from blyan_proto.protocols import expert as wire
from blyan_proto.protocols.expert import MAX_ACTIVATION_BYTES, Numerics
from blyand.errors import Busy, NoRoute, StaleVersion, Unavailable
from blyand.inference import call as calls
from blyand.inference.call import Overflow, make_call, parted, read_outputs
from blyand.inference.evaluate import Evaluation
from blyand.inference.scatter import Layer, Tally
from blyand.net.calls import open_calls
from blyand.protocols import expert as ends
from blyand.rules.net.fair import OWN
from blyand.rules.net.route import COOL_OFF_S, HEDGE_SAMPLES, LEFT_OUT_S, PROVEN
from tests.unit.daemon.inference_world import MODEL, Inline, Net, Node, World, running
from tests.unit.daemon.stream_world import Peers


def jumping():
    return trio.testing.MockClock(autojump_threshold=0.0)


def swarm(*names):
    """A requester without experts, and peers that hold all of them."""
    world, net = World(), Net()
    lane = Inline("x", 1)
    me = Node(world, net, "me", frozenset(), lane)
    return (net, me, *(Node(world, net, n, world.all_experts(), lane) for n in names))


def a_layer(me, tokens=3, index=0, experts=(0, 1), tally=None, x=None, **more):
    heads = me.pins.newest(MODEL)
    width = heads.architecture.width
    if x is None:
        x = np.random.default_rng(7).standard_normal((tokens, width), np.float32)
    rows = {expert: np.arange(len(x)) for expert in experts}
    end_s = trio.current_time() + 60
    tally = tally or Tally()
    return Layer(heads, index, x, rows, tally, end_s, lambda: False, **more)


def warm_up(me, peer, milliseconds, rows=3):
    for _ in range(HEDGE_SAMPLES):
        me.routes.answered(peer, milliseconds / 1e3, rows)


def same(one, other):
    assert one.keys() == other.keys()
    for expert in one:
        for a, b in zip(one[expert], other[expert]):
            assert np.array_equal(a, b)


def test_a_late_call_goes_to_a_second_peer_and_the_first_is_cancelled():
    async def main():
        net, me, b, c = swarm("b", "c")
        given_up = []

        async def before(peer):
            if peer == "b":
                try:
                    await trio.sleep(1.5)
                except trio.Cancelled:
                    given_up.append(trio.current_time())
                    raise

        async with running(me, b, c):
            expected = await me.scatter.outputs(a_layer(me))
            net.before = before
            warm_up(me, "b", 10)
            warm_up(me, "c", 20)
            for _ in range(20):
                me.routes.hedges.count()
            began_s, tally = trio.current_time(), Tally()
            same(await me.scatter.outputs(a_layer(me, tally=tally)), expected)
            assert given_up == [pytest.approx(began_s + 0.01, abs=0.006)]
            assert (tally.hedges, tally.retries) == (1, 0)
            assert tally.calls == {"c": 1} and not tally.failed
            # that was all that may be doubled: the next late call is waited for
            for _ in range(64):
                me.routes.answered("b", 0.001, 3)
            tally = Tally()
            same(await me.scatter.outputs(a_layer(me, tally=tally)), expected)
            assert tally.hedges == 0 and tally.calls == {"b": 1}

    trio.run(main, clock=jumping())


@pytest.mark.parametrize("trouble", ["busy", "failed", "lied", "nothing"])
def test_no_second_call_goes_to_a_peer_that_just_refused(trouble):
    async def main():
        net, me, b, c = swarm("b", "c")

        async def before(peer):
            if peer == "b":
                await trio.sleep(0.5)

        async with running(me, b, c):
            warm_up(me, "b", 10)
            warm_up(me, "c", 500)
            for _ in range(100):
                me.routes.hedges.count()
            {
                "busy": lambda: me.routes.failed("c", Busy("full")),
                "failed": lambda: me.routes.failed("c", Unavailable("no")),
                "nothing": lambda: None,
                "lied": lambda: me.routes.wrong("c"),
            }[trouble]()
            net.before, tally = before, Tally()
            await me.scatter.outputs(a_layer(me, tally=tally))
            assert tally.hedges == int(trouble == "nothing")

    trio.run(main, clock=jumping())


def test_hedges_are_a_twentieth_of_all_calls_at_most():
    async def main():
        net, me, b, c = swarm("b", "c")

        async def before(peer):
            if peer == "b":
                await trio.sleep(0.02)

        async with running(me, b, c):
            warm_up(me, "b", 1)
            warm_up(me, "c", 500)
            net.before, tally = before, Tally()
            for _ in range(100):
                for _ in range(64):
                    me.routes._known("b").windows[0].add(0.001)  # it stays the first
                await me.scatter.outputs(a_layer(me, tally=tally))
            assert 1 <= tally.hedges <= 5

    trio.run(main, clock=jumping())


LIES = {
    "too short": lambda outputs: tuple(raw[:-4] for raw in outputs),
    "one missing": lambda outputs: outputs[:-1],
    "infinite": lambda outputs: tuple(
        np.float32(np.inf).tobytes() + raw[4:] for raw in outputs
    ),
    "not a number": lambda outputs: tuple(
        raw[:-4] + np.float32(np.nan).tobytes() for raw in outputs
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_that_shows_is_replaced_counted_and_its_peer_avoided(lie):
    async def main():
        net, me, b, c = swarm("b", "c")
        async with running(me, b, c):
            expected = await me.scatter.outputs(a_layer(me))
            net.calls.clear()
            net.mangle = lambda peer, raw: LIES[lie](raw) if peer == "b" else raw
            began_s, tally = trio.current_time(), Tally()
            for _ in range(10):
                same(await me.scatter.outputs(a_layer(me, tally=tally)), expected)
            assert trio.current_time() - began_s < 3  # INFER-05
            assert tally.calls == {"c": 10} and tally.retries == 1
            assert tally.wrong == tally.failed == {"b": 1}
            assert me.routes.of("b").wrong == 1
            assert me.routes.is_out("b") is (lie in ("too short", "one missing"))

    trio.run(main, clock=jumping())


def test_the_only_holder_lies():
    async def main():
        net, me, b = swarm("b")
        net.mangle = lambda peer, raw: LIES["too short"](raw)
        async with running(me, b):
            with pytest.raises(NoRoute, match="layer0.expert0"):
                await me.scatter.outputs(a_layer(me))

    trio.run(main, clock=jumping())


async def drive(me, turns):
    """Make calls, each with time for the comparison that it may cause."""
    for _ in range(turns):
        await me.scatter.outputs(a_layer(me))
        await trio.sleep(0.001)


def test_somebody_elses_result_is_found_out_by_asking_others():
    async def main():
        net, me, b, c, d = swarm("b", "c", "d")
        async with running(me, b, c, d):
            net.mangle = lambda peer, raw: (
                tuple(bytes(len(one)) for one in raw) if peer == "b" else raw
            )
            for peer, cost in (("b", 1), ("c", 2), ("d", 3)):  # b looks best
                warm_up(me, peer, cost)
            me.routes._known("c").right = me.routes._known("d").right = PROVEN
            await drive(me, 200)
            assert me.routes.is_out("b") and me.routes.of("b").wrong == 1
            assert not me.routes.is_out("c") and not me.routes.is_out("d")
            net.calls.clear()
            await drive(me, 30)
            assert "b" not in {peer for _, peer, _ in net.calls}
            await trio.sleep(LEFT_OUT_S)
            assert not me.routes.is_out("b") and not me.routes.of("b").proven

    trio.run(main, clock=jumping())


def test_a_newcomer_earns_its_record_with_few_calls():
    async def main():
        net, me, b, c = swarm("b", "new")
        async with running(me, b, c):
            me.routes._known("b").right = PROVEN
            warm_up(me, "b", 50)
            await drive(me, 100)
            asked = [peer for _, peer, _ in net.calls]
            assert len(asked) - 100 == asked.count("new") == 5
            assert me.routes.of("new").right == 5 and not me.routes.of("new").proven
            await drive(me, 80)
            assert me.routes.of("new").proven
            for _ in range(4):
                warm_up(me, "b", 50)
            net.calls.clear()
            await drive(me, 20)  # now it may be asked first, for it is faster
            assert [peer for _, peer, _ in net.calls].count("new") >= 19

    trio.run(main, clock=jumping())


def test_two_equals_that_differ_lose_their_records_and_go_on():
    async def main():
        net, me, b, c = swarm("b", "c")
        net.mangle = lambda peer, raw: (
            tuple(bytes(len(one)) for one in raw) if peer == "b" else raw
        )
        async with running(me, b, c):
            await drive(me, 50)
            assert me.routes.of("b").wrong == me.routes.of("c").wrong >= 1
            assert not me.routes.of("b").proven and not me.routes.of("c").proven

    trio.run(main, clock=jumping())


def test_load_that_is_told_turns_calls_away_until_it_is_done():
    async def main():
        net, me, b, c = swarm("b", "c")
        async with running(me, b, c):
            warm_up(me, "b", 1)
            warm_up(me, "c", 3)
            me.routes.answered("b", 0.001, 3, waiting_ms=100)
            assert me.routes.ranked(["b", "c"]) == ["c", "b"]
            await trio.sleep(0.09)
            assert me.routes.holder("b").waiting_ms == pytest.approx(10)
            assert me.routes.ranked(["b", "c"]) == ["c", "b"]
            await trio.sleep(0.02)
            assert me.routes.ranked(["b", "c"]) == ["b", "c"]

    trio.run(main, clock=jumping())


def test_a_peer_that_is_behind_goes_last_for_that_version_only():
    async def main():
        net, me, b, c = swarm("b", "c")
        me.routes.failed("b", StaleVersion("not yet"), [b"x" * 32])
        assert me.routes.holder("b", 1, b"x" * 32).cooling
        assert not me.routes.holder("b", 1, b"y" * 32).cooling
        me.routes.failed("b", Unavailable("gone"))
        assert me.routes.holder("b", 1, b"y" * 32).cooling
        await trio.sleep(COOL_OFF_S)
        assert not me.routes.holder("b", 1, b"x" * 32).cooling

    trio.run(main, clock=jumping())


@pytest.mark.parametrize("numerics", Numerics)
def test_many_tokens_go_in_parts_and_come_back_whole(numerics):
    async def main():
        net, me, b = swarm("b")
        heads = me.pins.newest(MODEL)
        random = np.random.default_rng(1)
        x = random.standard_normal((1500, heads.architecture.width), np.float32)
        layer = a_layer(me, x=x, experts=(), numerics=numerics)
        for expert in range(4):
            places = random.permutation(1500)[: 400 + 300 * expert]
            layer.rows[expert] = np.sort(places)
        async with running(me, b):
            made = await me.scatter.outputs(layer)
            assert len(net.calls) == 6
            states = sum(len(one.activations) for _, _, one in net.calls)
            tokens = len(np.unique(np.concatenate(list(layer.rows.values()))))
            assert states == tokens * x.shape[1] * numerics.element_bytes
            b.held = me.held
            me.held = b.world.all_experts()
            me.finalised()
            here = await me.scatter.outputs(replace(layer, tally=Tally()))
        for expert, (rows, outputs) in made.items():
            assert np.array_equal(rows, layer.rows[expert])
            if numerics is Numerics.REFERENCE:
                assert np.array_equal(outputs, here[expert][1])
            else:
                error = np.abs(outputs - here[expert][1]).max()
                assert 0 < error < 0.03 * np.abs(here[expert][1]).max()

    trio.run(main, clock=jumping())


def test_parts_keep_every_bound():
    random = np.random.default_rng(2)
    for experts, tokens, width in ((3, 700, 64), (100, 40, 64), (64, 600, 4096)):
        rows = {
            number: np.sort(random.permutation(tokens)[: max(1, tokens // 2)])
            for number in range(experts)
        }
        found = {number: [] for number in rows}
        for part in parted(rows, width, Numerics.REFERENCE):
            assert len(part) <= wire.MAX_EXPERTS_PER_CALL
            assert len(np.unique(np.concatenate(list(part.values())))) <= 256
            answer = sum(map(len, part.values())) * 4 * width
            assert answer <= MAX_ACTIVATION_BYTES
            for number, some in part.items():
                found[number].append(some)
        for number, one in rows.items():
            assert np.array_equal(np.concatenate(found[number]), one)


@pytest.mark.parametrize("value", [np.inf, np.nan, 3.4e38])
def test_hidden_states_that_overflowed_end_the_request(value):
    async def main():
        net, me, b = swarm("b")
        layer = a_layer(me, numerics=Numerics.BF16)
        layer.x[1, 1] = value
        async with running(me, b):
            with pytest.raises(Overflow, match="layer 0"):
                await me.scatter.outputs(layer)
        assert not net.calls

    trio.run(main, clock=jumping())


def test_answers_are_checked_before_they_are_arrays():
    net, me, b = swarm("b")
    heads = me.pins.newest(MODEL)
    x = np.ones((2, heads.architecture.width), np.float32)
    rows = {0: np.arange(2)}
    for numerics in Numerics:
        asked = make_call(heads, 0, rows, x, numerics)
        good = bytes(2 * asked.width * numerics.element_bytes)
        (made,) = read_outputs(wire.Outputs(0, (good,)), asked)
        assert made.shape == x.shape and made.dtype == np.float32
        bad = b"\xff" * len(good)
        for wrong in ((), (good, good), (good[:-2],), (good * 2,), (bad,)):
            with pytest.raises(calls.WrongAnswer):
                read_outputs(wire.Outputs(0, wrong), asked)


@asynccontextmanager
async def over_streams(server_node, me):
    """`me` calls `server_node` over real calls on streams in memory."""
    async with trio.open_nursery() as nursery:
        host = Peers(ends.serve(server_node.server.answer), nursery)
        async with open_calls(host) as streams:
            client = ends.Client(streams)
            me.scatter.asker._client = client
            yield host
        nursery.cancel_scope.cancel()


def test_a_cancelled_request_reaches_the_peer_and_is_not_computed_there():
    async def main():
        net, me, b = swarm("b")
        async with over_streams(b, me) as host:
            with trio.move_on_after(0.5):  # nothing computes at b yet
                await me.scatter.outputs(a_layer(me))
            await trio.testing.wait_all_tasks_blocked()
            assert b.batcher._waiting.size == 6  # queued, and given up
            assert not b.server._requests and b.server._bytes == 0
            async with running(b):
                await me.scatter.outputs(a_layer(me, experts=(3,)))
            assert b.metrics.snapshot()["expert_misses"] == 1  # of expert 3
            assert not host.blamed and not host.blamed_by_peer

    trio.run(main, clock=jumping())


def test_what_no_number_is_is_refused_by_the_server_and_blamed():
    async def main():
        net, me, b = swarm("b")
        heads = me.pins.newest(MODEL)
        x = np.ones((2, heads.architecture.width), np.float32)
        asked = make_call(heads, 0, {0: np.arange(2)}, x, Numerics.REFERENCE)
        raw = np.float32(np.nan).tobytes() + asked.activations[4:]
        async with over_streams(b, me) as host, running(b):
            with pytest.raises(Unavailable):
                await me.scatter.asker._client.forward(
                    "b", replace(asked, activations=raw)
                )
            assert len(host.blamed_by_peer) == 1
        assert b.metrics.snapshot()["expert_misses"] == 0

    trio.run(main, clock=jumping())


def test_one_peer_with_many_calls_leaves_places_and_turns_to_another():
    async def main():
        net, me, b = swarm("b")
        heads = me.pins.newest(MODEL)
        x = np.ones((64, heads.architecture.width), np.float32)
        asked = make_call(heads, 0, {0: np.arange(64)}, x, Numerics.REFERENCE)
        small = make_call(heads, 0, {1: np.arange(1)}, x[:1], Numerics.REFERENCE)
        order, refused = [], 0

        async def one(peer, call):
            nonlocal refused
            try:
                await b.server.answer(peer, call)
                order.append(peer)
            except Busy:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(one, "greedy", asked)
            await trio.testing.wait_all_tasks_blocked()
            assert refused > 16
            for _ in range(4):
                nursery.start_soon(one, "modest", small)
            await trio.testing.wait_all_tasks_blocked()
            async with running(b):
                while len(order) + refused < 68:
                    await trio.sleep(0.001)
        assert order.count("modest") == 4
        assert "modest" not in order[16:]  # served with the first lane call

    trio.run(main, clock=jumping())


def test_an_answer_says_who_lied_and_how_peers_were_asked():
    async def main():
        net, me, b, c = swarm("b", "c")
        net.mangle = lambda peer, raw: LIES["infinite"](raw) if peer == "b" else raw
        async with running(me, b, c):
            made, result = await me.generate([1, 2, 3], 4, numerics=Numerics.BF16)
            assert {call.numerics for _, _, call in net.calls} == {Numerics.BF16}
            assert result.wrong == result.failed == {"b": 1} and result.calls["c"]
            net.calls.clear()
            await me.generate([1, 2, 3], 2)
            assert {call.numerics for _, _, call in net.calls} == {Numerics.REFERENCE}
        assert len(made) == 4

    trio.run(main, clock=jumping())


def test_measuring_comes_after_answering_and_asks_for_the_masters():
    async def main():
        net, me, b = swarm("b")
        owners = []
        me.held = b.world.expert_groups("layer0.expert0")
        me.finalised()
        me.scatter.numerics = Numerics.INT4
        compute = me.batcher.compute

        async def noted(works, owner="none"):
            owners.append(owner)
            return await compute(works, owner)

        me.batcher.compute = noted
        async with running(me, b):
            tokens = np.random.default_rng(0).integers(0, 256, 700).astype(np.uint8)
            heads = me.pins.newest(MODEL)
            await Evaluation(me.parts, me.lane).measure(heads, tokens, sequence=32)
            assert {call.numerics for _, _, call in net.calls} == {Numerics.REFERENCE}
            assert set(owners) == {"evaluation"}
            owners.clear()
            net.calls.clear()
            await me.generate([1, 2, 3], 3)
            assert {call.numerics for _, _, call in net.calls} == {Numerics.INT4}
            assert set(owners) <= {OWN}

    trio.run(main, clock=jumping())
