"""Spans: the same tokens with fewer hops, whoever dies; sessions that stay in bounds."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import trio
import trio.testing

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.expert import Numerics
from blyan_proto.protocols.span import (
    IDLE_S,
    LIFE_S,
    MAX_WAITING,
    End,
    Open,
    Step,
)
from blyan_tile.model.cache import cache_bytes
from blyand.compute import Threads
from blyand.errors import Busy, NoRoute, NotHere, StaleVersion, Unavailable
from blyand.inference import spans, trunks
from blyand.inference.course import flow
from blyand.inference.editions import groups_between, name_of
from blyand.inference.session import Session
from blyand.rules.net.path import Route, Way
from tests.unit.daemon.inference_world import (
    MODEL,
    TINY,
    Inline,
    Net,
    Node,
    World,
    prompt,
    running,
)

DEEP = replace(TINY, layers=4, context=640)
WIDTH = DEEP.width
SPANS = Route.SPANS
HUNG_S = 60.0  # a step that nobody ends; what waits on a clock that jumps has longer


def layers(world, first, end):
    shared = {group.index for group in world.layout.shared_groups}
    return frozenset(shared | set(groups_between(world.layout, first, end)))


def spread(*ranges, world=None, **more):
    """A world, its net, an asker without experts, and a host of each range of layers."""
    world, net = world or World(DEEP), Net()
    asker = Node(world, net, "a", layers(world, 0, 0), **more)
    hosts = [
        Node(world, net, name, layers(world, *place), **more)
        for name, place in zip("bcdefg", ranges)
    ]
    return world, net, asker, hosts


def generated(nodes, *arguments, **more):
    async def run():
        async with running(*nodes):
            return await nodes[0].generate(*arguments, **more)

    return trio.run(run)


def steps(net):
    return [
        (peer, request) for _, peer, request in net.span_calls if type(request) is Step
    ]


@pytest.mark.parametrize("length", [1, 9, 300, 520])
def test_spans_give_the_tokens_of_one_process_with_a_hop_for_many_layers(length):
    world, net, asker, hosts = spread((0, 2), (2, 4))
    tokens, result = generated([asker, *hosts], prompt(length), 12, route=SPANS)
    assert tokens == world.locally(prompt(length), 12)
    assert not net.calls and not result.retries
    chunks = -(-length // 256)
    assert result.calls == {"b": chunks + 11, "c": chunks + 11}


@pytest.mark.parametrize(
    "shape",
    [
        replace(DEEP, attention_window=40),
        replace(DEEP, dense_layers=(0, 2), dense_width=64),
        replace(DEEP, shared_width=48, shared_gate=True, kv_heads=1),
    ],
    ids=["window", "dense", "shared"],
)
def test_every_kind_of_layer_may_be_in_a_span(shape):
    world, net, asker, hosts = spread((0, 2), (1, 4), (0, 4), world=World(shape))
    made = []

    def on_token(token):
        made.append(token)
        if len(made) == 4:
            net.dead.add("c")

    nodes = [asker, *hosts]
    net.rtt_ms.update(b=1.0, c=1.0, d=90.0)
    tokens, result = generated(nodes, prompt(600), 12, on_token, route=SPANS)
    assert tokens == world.locally(prompt(600), 12)
    assert result.failed["c"] == 2 and result.calls["d"] and not net.calls


def test_a_long_prompt_flows_and_only_what_is_wanted_comes_back():
    world, net, asker, hosts = spread((0, 2), (2, 4))
    generated([asker, *hosts], prompt(520), 2, route=SPANS)
    assert [
        (peer, step.position, step.tail) for peer, step in steps(net) if peer == "c"
    ] == [("c", 0, 0), ("c", 256, 0), ("c", 512, 1), ("c", 520, 1)]


def test_stages_work_at_the_same_time_and_keep_the_order():
    log = []

    async def step(name, item):
        log.append((name, item))
        await trio.testing.wait_all_tasks_blocked()
        return item

    async def run():
        return await flow([partial(step, "x"), partial(step, "y")], [1, 2, 3])

    assert trio.run(run) == [1, 2, 3]
    assert log.index(("x", 2)) < log.index(("y", 2)) < log.index(("y", 3))
    assert set(log[1:3]) == {("x", 2), ("y", 1)}


def test_a_flow_ends_with_its_first_failure():
    async def fail(item):
        raise NoRoute(str(item))

    async def run():
        with pytest.raises(NoRoute, match="7"):
            await flow([fail], [7, 8])

    trio.run(run)


def test_a_span_is_taken_where_it_shortens_the_path():
    world, net, asker, hosts = spread((0, 4), (0, 4))
    net.rtt_ms.update(b=40.0, c=5.0)
    tokens, result = generated([asker, *hosts], prompt(9), 6)
    assert tokens == world.locally(prompt(9), 6)
    assert set(result.calls) == {"c"} and not net.calls
    assert result.calls["c"] == 6


def test_routes_are_obeyed():
    world, net, asker, hosts = spread((0, 4))
    long = prompt(300)
    tokens, _ = generated([asker, *hosts], long, 4, route=Route.EXPERTS)
    assert tokens == world.locally(long, 4) and net.calls and not net.span_calls
    expected = world.locally(prompt(9), 4)
    net.calls.clear()
    asker.held = layers(world, 0, 4)
    asker.finalised()
    for route in (Route.LOCAL, Route.AUTO):
        tokens, result = generated([asker, *hosts], prompt(9), 4, route=route)
        assert tokens == expected and set(result.calls) == {"a"}
    tokens, result = generated([asker, *hosts], prompt(9), 4, route=SPANS)
    assert tokens == expected and set(result.calls) == {"b"}


def test_a_local_route_without_the_layers_says_what_is_lacking():
    world, net, asker, hosts = spread((0, 4))

    async def run():
        async with running(asker, *hosts):
            with pytest.raises(NoRoute, match="layer0.expert0 is not on this node"):
                await asker.generate(prompt(9), 4, route=Route.LOCAL)

    trio.run(run)


@pytest.mark.parametrize("moment", [0, 1, 5])
def test_a_span_that_dies_is_replaced_and_the_answer_stays_the_same(moment):
    world, net, asker, hosts = spread((0, 2), (2, 4), (0, 4))
    net.rtt_ms.update(b=1.0, c=1.0, d=50.0)
    made = []

    def on_token(token):
        made.append(token)
        if len(made) == moment:
            net.dead.add("b")

    if not moment:
        net.dead.add("b")
        asker.remote.paths._hosts = lambda model: {h.name: h.held for h in hosts}
    tokens, result = generated([asker, *hosts], prompt(300), 10, on_token, route=SPANS)
    assert tokens == world.locally(prompt(300), 10)
    assert result.retries >= 1
    assert result.calls["d"] >= 10 - moment


def test_experts_take_over_where_no_span_is_left():
    world, net, asker, hosts = spread((0, 4))
    other = Node(
        world, net, "x", world.all_experts()
    )  # holds experts, but no whole layer's trunk
    made = []

    def on_token(token):
        made.append(token)
        if len(made) == 3:
            net.dead.add("b")

    nodes = [asker, *hosts, other]
    tokens, result = generated(nodes, prompt(70), 8, on_token)
    assert tokens == world.locally(prompt(70), 8)
    assert result.calls["b"] >= 3 and result.calls["x"] > 0 and result.retries


def test_a_silent_span_is_left_after_its_deadline():
    world, net, asker, hosts = spread((0, 4), (0, 4), lane=Inline("inference", 1))
    net.rtt_ms.update(b=1.0, c=2.0)

    async def run():
        async with running(asker, *hosts):
            net.silent.add("b")
            tokens, result = await asker.generate(prompt(9), 4, route=SPANS)
            assert tokens == world.locally(prompt(9), 4)
            assert result.retries == 1 and result.calls["c"] == 4

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_span_that_answers_no_numbers_is_replaced(value):
    world, net, asker, hosts = spread((0, 4), (0, 4))
    net.rtt_ms.update(b=1.0, c=2.0)
    bad = np.full(WIDTH, value, "<f4").tobytes()
    net.mangle_span = lambda peer, raw: bad if peer == "b" and raw else raw
    tokens, result = generated([asker, *hosts], prompt(9), 4, route=SPANS)
    assert tokens == world.locally(prompt(9), 4)
    assert result.retries == 1 and result.wrong == {"b": 1}


def test_a_session_that_the_server_forgot_is_opened_again_there():
    world, net, asker, hosts = spread((0, 4))
    made = []

    def on_token(token):
        made.append(token)
        if len(made) == 3:
            for session in list(hosts[0].spans._sessions.values()):
                hosts[0].spans._close(session)

    tokens, result = generated([asker, *hosts], prompt(300), 8, on_token, route=SPANS)
    assert tokens == world.locally(prompt(300), 8)
    assert result.retries == 1 and not net.calls


def test_a_newer_version_begins_the_answer_again_and_says_so():
    world, net, asker, hosts = spread((0, 4))
    made = []

    def on_token(token):
        made.append(token)
        if len(made) == 2:
            for session in list(hosts[0].spans._sessions.values()):
                hosts[0].spans._close(session)
            for seed in (2, 3, 4, 5):
                world.adopt(seed)
                hosts[0].finalised()

    tokens, result = generated([asker, *hosts], prompt(9), 6, on_token, route=SPANS)
    assert result.repinned == 1 and len(tokens) == 6
    assert tokens[2:] == world.locally(prompt(9) + tokens[:2], 4)


def test_the_end_of_an_answer_and_of_its_asker_free_the_session():
    world, net, asker, hosts = spread((0, 4))

    async def run():
        async with running(asker, *hosts):
            await asker.generate(prompt(9), 4, route=SPANS)
            with trio.CancelScope() as scope:
                await asker.generate(
                    prompt(9), 50, lambda token: scope.cancel(), route=SPANS
                )
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not hosts[0].spans._sessions
            assert hosts[0].room.left == hosts[0].room.budget_bytes
            assert asker.room.left == asker.room.budget_bytes

    trio.run(run)


def test_numerics_of_16_bits_halve_the_bytes():
    world, net, asker, hosts = spread((0, 2), (2, 4))

    async def run():
        async with running(asker, *hosts):
            asked = dict(route=SPANS, numerics=Numerics.BF16)
            inf = float("inf")
            with Session(asker.parts, MODEL, 20, inf, **asked) as session:
                await session.feed(prompt(9), np.argmax)
                await session.feed(prompt(1), np.argmax)

    trio.run(run)
    sizes = {len(step.activations) for _, step in steps(net)}
    assert sizes == {9 * WIDTH * 2, WIDTH * 2}


# --- the server


class Served:
    """One server and what a peer says to it."""

    def __init__(self, first=1, end=3, shape=DEEP, capacity=64, **more):
        self.world = World(shape)
        self.net = Net()
        self.node = Node(self.world, self.net, "s", layers(self.world, 1, 4), **more)
        heads = self.node.pins.newest(MODEL)
        name = name_of(heads, first, end)
        self.open = Open(
            b"i" * 16, MODEL, Numerics.REFERENCE, first, end, name, capacity
        )

    async def ask(self, request, peer="p"):
        return await self.node.spans.answer(peer, request)

    async def step(self, position, rows, seed=0, peer="p", tail=None):
        rows_sent = len(rows)
        raw = np.asarray(rows, "<f4").tobytes()
        tail = rows_sent if tail is None else tail
        return (await self.ask(Step(b"i" * 16, position, tail, raw), peer)).hidden


def rows(count, seed=0):
    source = np.random.default_rng(seed)
    return source.standard_normal((count, WIDTH)).astype(np.float32)


def serving(test, clock=None, **more):
    """Run `test(served)` with an open session of peer p."""

    async def run():
        served = Served(**more)
        async with running(served.node):
            assert (await served.ask(served.open)).tokens == 0
            with trio.fail_after(HUNG_S if clock is None else 3600):
                await test(served)

    trio.run(run, clock=clock)


def test_the_same_position_gives_the_same_answer_and_an_earlier_one_goes_back():
    async def test(served):
        first = await served.step(0, rows(9))
        second = await served.step(9, rows(1, 1))
        assert await served.step(9, rows(1, 1)) == second
        other = await served.step(5, rows(4, 2))
        assert other != first[5 * WIDTH * 4 :]
        assert await served.step(0, rows(9)) == first
        assert await served.step(9, rows(1, 1)) == second
        assert (await served.ask(served.open)).tokens == 10
        assert (await served.ask(End(b"i" * 16))).tokens == 10

    serving(test)


def test_a_rewind_over_what_a_window_dropped_ends_the_session():
    async def test(served):
        x = rows(600)
        for start in range(0, 600, 200):
            last = await served.step(start, x[start : start + 200], tail=1)
        assert await served.step(400, x[400:600], tail=1) == last
        with pytest.raises(NotHere, match="the session is over"):
            await served.step(100, x[100:300])
        assert (await served.ask(served.open)).tokens == 0
        assert await served.step(0, x[:200]) != last

    serving(test, shape=replace(DEEP, attention_window=40), capacity=640)


def test_steps_in_flight_are_computed_in_the_order_of_their_positions():
    async def test(served):
        x = rows(12)
        whole = await served.step(0, x)
        await served.ask(End(b"i" * 16))
        await served.ask(served.open)
        got = {}

        async def one(first, end):
            got[first] = await served.step(first, x[first:end])

        async with trio.open_nursery() as nursery:
            for first, end in ((8, 12), (4, 8), (0, 4)):
                nursery.start_soon(one, first, end)
                await trio.testing.wait_all_tasks_blocked()
        assert np.allclose(
            np.frombuffer(b"".join(got[n] for n in (0, 4, 8)), "<f4"),
            np.frombuffer(whole, "<f4"),
            atol=1e-5,
        )

    serving(test)


def test_a_session_belongs_to_its_peer():
    async def test(served):
        await served.step(0, rows(3))
        with pytest.raises(NotHere, match="no such session"):
            await served.step(3, rows(1), peer="q")
        assert (await served.ask(End(b"i" * 16), "q")).tokens == 0
        assert (await served.ask(served.open, "q")).tokens == 0
        assert (await served.ask(served.open)).tokens == 3

    serving(test)


@pytest.mark.parametrize(
    "change",
    [
        {"end": 5},
        {"capacity": DEEP.context + 1},
        {"session": b"i" * 16, "capacity": 63},
        {"session": b"i" * 16, "numerics": Numerics.BF16},
    ],
)
def test_an_open_that_breaks_a_rule_is_blamed(change):
    async def test(served):
        wrong = replace(served.open, **{"session": b"j" * 16, **change})
        with pytest.raises(ProtocolError):
            await served.ask(wrong)

    serving(test)


def test_what_is_not_served_here_is_refused_by_name():
    async def test(served):
        another = replace(served.open, session=b"j" * 16)
        with pytest.raises(NotHere, match="not known"):
            await served.ask(replace(another, model=bytes(32)))
        with pytest.raises(StaleVersion):
            await served.ask(replace(another, versions=bytes(32)))
        heads = served.node.pins.newest(MODEL)
        lacking = replace(another, first=0, versions=name_of(heads, 0, 3))
        with pytest.raises(NotHere, match="not held"):
            await served.ask(lacking)

    serving(test)


@pytest.mark.parametrize(
    "position, count, tail",
    [(0, 257, 1), (0, 65, 1), (64, 1, 1), (0, 3, 4), (2**32 - 1, 1, 0)],
)
def test_a_step_that_does_not_fit_is_blamed(position, count, tail):
    async def test(served):
        with pytest.raises(ProtocolError):
            await served.step(position, rows(count), tail=tail)

    serving(test)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 200])
def test_numbers_that_are_none_never_reach_torch(value, count):
    async def test(served):
        x = rows(min(count, 64))
        x[0, 3] = value
        before = served.node.metrics.counter("inference_steps").value
        with pytest.raises((ProtocolError, Unavailable)):
            await served.step(0, x)
        with pytest.raises(ProtocolError):
            raw = rows(1).tobytes()[:-1]
            await served.ask(Step(b"i" * 16, 0, 1, raw))
        assert served.node.metrics.counter("inference_steps").value == before

    serving(test)


def test_a_step_beyond_the_end_waits_and_only_a_few_may():
    async def test(served):
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_WAITING):
                nursery.start_soon(served.step, 7, rows(1))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy, match="under way"):
                await served.step(0, rows(1))
            nursery.cancel_scope.cancel()
        assert len(await served.step(0, rows(1))) == 4 * WIDTH

    serving(test)


def test_the_end_of_a_session_ends_its_steps():
    async def test(served):
        async with trio.open_nursery() as nursery:

            async def step():
                with pytest.raises(NotHere, match="ended"):
                    await served.step(7, rows(1))

            nursery.start_soon(step)
            await trio.testing.wait_all_tasks_blocked()
            await served.ask(End(b"i" * 16))
        room = served.node.room
        assert room.left == room.budget_bytes

    serving(test)


def test_one_peer_holds_no_more_than_its_share_of_sessions_and_bytes():
    size = cache_bytes(DEEP, 64, 2)

    async def test(served):
        def another(number):
            return replace(served.open, session=bytes([number]) * 16)

        await served.ask(another(1))
        with pytest.raises(Busy, match="its share"):
            await served.ask(another(2))
        await served.ask(another(2), "q")
        await served.ask(End(b"i" * 16))
        await served.ask(another(2))

    serving(test, cache_bytes=8 * size)

    async def many(served):
        server = served.node.spans
        for number in range(1, 16):
            await served.ask(replace(served.open, session=bytes([number]) * 16))
        with pytest.raises(Busy, match="of this peer"):
            await served.ask(replace(served.open, session=b"z" * 16))
        for peer in "qrs":
            for number in range(16):
                one = replace(served.open, session=bytes([number]) * 16)
                await served.ask(one, peer)
        with pytest.raises(Busy, match="64 sessions"):
            await served.ask(served.open, "t")
        assert len(server._sessions) == 64

    serving(many)


def test_idle_sessions_and_those_of_peers_that_left_end():
    async def test(served):
        server = served.node.spans
        await served.ask(served.open, "q")
        await trio.sleep(IDLE_S - 1)
        await served.step(0, rows(1))
        server.sweep()
        assert len(server._sessions) == 2
        await trio.sleep(2)
        server.sweep()
        assert [peer for peer, _ in server._sessions] == ["p"]
        served.net.dead.add("p")
        server.sweep()
        await trio.sleep(5)
        served.net.dead.clear()
        server.sweep()
        served.net.dead.add("p")
        server.sweep()
        await trio.sleep(9)
        server.sweep()
        assert server._sessions
        await trio.sleep(2)
        server.sweep()
        assert not server._sessions
        assert served.node.room.left == served.node.room.budget_bytes

    clock = trio.testing.MockClock(autojump_threshold=0)
    serving(test, clock=clock, lane=Inline("inference", 1))


def test_a_session_keeps_its_version_for_a_while_and_not_for_ever():
    async def test(served):
        first = await served.step(0, rows(3))
        for seed in range(2, 12):
            served.world.adopt(seed)
            served.node.finalised()
        assert await served.step(0, rows(3)) == first
        with pytest.raises(StaleVersion):
            await served.ask(replace(served.open, session=b"j" * 16))
        await trio.sleep(LIFE_S + 1)
        served.node.versions.tiles_in_use()
        with pytest.raises(StaleVersion):
            await served.step(3, rows(1))
        with pytest.raises(NotHere):
            await served.step(3, rows(1))

    clock = trio.testing.MockClock(autojump_threshold=0)
    serving(test, clock=clock, lane=Inline("inference", 1))


def test_an_older_version_is_served_as_long_as_it_is_one_of_three():
    async def test(served):
        for seed in (2, 3):
            served.world.adopt(seed)
            served.node.finalised()
            await served.ask(replace(served.open, session=bytes([seed]) * 16))
        served.world.adopt(4)
        served.node.finalised()
        with pytest.raises(StaleVersion):
            await served.ask(replace(served.open, session=b"j" * 16))

    serving(test)


def test_layers_that_are_whole_are_offered():
    world, net, asker, hosts = spread((1, 3))

    async def run():
        return asker.remote.paths.legs(asker.pins.newest(MODEL), SPANS)

    spans = [leg for leg in trio.run(run) if leg.way is Way.SPAN]
    assert [(leg.first, leg.end, leg.peer) for leg in spans] == [(1, 3, "b")]


class Slow(Threads):
    """Reads rows when it may."""

    def __init__(self):
        super().__init__("rows", 1)
        self.may = trio.Event()

    async def run(self, fn, *args):
        await self.may.wait()
        return await super().run(fn, *args)


def test_a_session_that_ends_while_a_step_is_read_computes_nothing(monkeypatch):
    monkeypatch.setattr(spans, "SMALL_BYTES", 0)  # as if the rows were wide

    async def test(served):
        x = rows(600)
        for start in range(0, 600, 100):
            await served.step(start, x[start : start + 100], tail=1)
        served.node.spans._lane = slow = Slow()
        computed = served.node.runs._rows.value

        async def refused():
            with pytest.raises(NotHere, match="ended"):
                await served.step(0, x[:9])  # what the window has passed over

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused)
            await trio.testing.wait_all_tasks_blocked()
            await served.ask(End(b"i" * 16))
            slow.may.set()
        assert served.node.runs._rows.value == computed
        assert served.node.room.left == served.node.room.budget_bytes

    serving(test, shape=replace(DEEP, attention_window=40), capacity=640)


def test_as_many_trunks_stay_ready_as_versions_are_served(monkeypatch):
    loads = []
    whole = trunks.load_group

    def load_group(blobs, layout, group, *more):
        loads.append(group.name)
        return whole(blobs, layout, group, *more)

    monkeypatch.setattr(trunks, "load_group", load_group)

    async def test(served):
        peers = ["p"]
        for seed in (2, 3):
            served.world.adopt(seed)
            served.node.finalised()
            name = name_of(served.node.pins.newest(MODEL), 1, 3)
            await served.ask(replace(served.open, versions=name), f"p{seed}")
            peers.append(f"p{seed}")
        for position in range(4):
            for peer in peers:
                await served.step(position, rows(1), peer=peer)
        assert len(loads) == 3 * len(served.world.layout.shared_groups)

    serving(test)


def test_a_session_that_is_only_opened_again_keeps_no_version_for_ever():
    async def test(served):
        server, versions = served.node.spans, served.node.versions
        heads = served.node.pins.newest(MODEL)
        old = set(heads.tiles[heads.expert(1, 0).index])
        for seed in range(2, 20):
            served.world.adopt(seed)
            served.node.finalised()
        assert old <= versions.tiles_in_use()
        for _ in range(int(LIFE_S // (IDLE_S - 1)) + 2):
            await trio.sleep(IDLE_S - 1)
            await served.ask(served.open)
            server.sweep()
        assert not old & versions.tiles_in_use()
        with pytest.raises(StaleVersion):
            await served.step(0, rows(1))
        assert not server._sessions

    clock = trio.testing.MockClock(autojump_threshold=0)
    serving(test, clock=clock, lane=Inline("inference", 1))


def test_the_steps_of_all_peers_together_have_a_bound(monkeypatch):
    monkeypatch.setattr(spans, "MAX_BYTES", 3 * WIDTH * 4)

    async def test(served):
        await served.ask(served.open, "q")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(served.step, 9, rows(2))
            )  # waits for the 9 before
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy, match="of steps are under way"):
                await served.step(0, rows(2), peer="q")
            await served.step(0, rows(1), peer="q")
            nursery.cancel_scope.cancel()
        await served.step(0, rows(2), peer="q")
        await served.step(0, rows(9))  # alone there is always room

    serving(test)
