"""Intake: what is refused, what waits, and who pays; a stranger's flood stays bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.block.block import Block, encode_block
from blyan_proto.block.payload import payload_digest
from blyan_proto.constants import MAX_BLOCK_BYTES
from blyan_proto.errors import ProtocolError
from blyan_proto.signing import Purpose
from blyan_proto.types import Chain
from blyand.chain import intake as intakes
from blyand.chain import orphans
from blyand.events import BlockStored
from blyand.net.gossip import Verdict
from blyand.net.identity import peer_id_of
from blyand.rules.chain import intake as rules
from blyand.rules.verdict import Ignore, Reject
from tests.unit.daemon.chain_node import Node, run, until
from tests.unit.daemon.chain_world import (
    beat,
    child_of,
    dataset,
    genesis_of,
    key,
    model,
    sign_block,
)


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def block(node, payload=None, author=1, **more):
    return sign_block(node.genesis, node.keys[author], payload or beat(), **more)


def chain(node, count, author=1):
    made = [block(node, author=author)]
    for n in range(1, count):
        payload, parent = beat(load=n), made[-1]
        made.append(
            child_of(node.genesis, node.keys[author], payload, parent, sequence=n + 1)
        )
    return made


def resigned(node, made, author=1, **changed):
    header = replace(made.header, **changed)
    signature = node.keys[author].sign(Purpose.BLOCK, header.network, header)
    return Block(header, signature, made.payload)


def bad_signature(node):
    made = block(node)
    return replace(made, signature=made.signature[:-1] + b"\1")


REFUSED = {
    "another network": lambda n: sign_block(
        genesis_of(n.keys[:1], bytes(32)), n.keys[0], beat()
    ),
    "a bad signature": bad_signature,
    "another's signature": lambda n: resigned(n, block(n), author=2),
    "a kind on another chain": lambda n: block(n, chain=Chain.META),
    "an unknown kind": lambda n: block(n, kind=200),
    "a payload that is not the header's": lambda n: replace(block(n), payload=b"\x80"),
    "an unknown payload type": lambda n: block(n, payload_type=1),
    "a payload that does not decode": lambda n: resigned(
        n,
        replace(block(n), payload=b"\xff"),
        payload_bytes=1,
        payload_digest=payload_digest(b"\xff"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_by_itself_is_rejected_everywhere(node, name):
    async def main():
        wrong = REFUSED[name](node)
        raw = encode_block(wrong)
        told = []
        node.intake.refused = told.append
        with pytest.raises((ProtocolError, Reject)):
            await node.intake.gossip_check("liar", raw)
        with pytest.raises(Reject):
            await node.intake.submit(wrong, "liar")
        assert not node.blocks.has(wrong.id) and not len(node.pool)
        assert told == [wrong, wrong]

    run(main)


@pytest.mark.parametrize(
    "raw", [b"", b"\x93", b"\xff" * 100, bytes(MAX_BLOCK_BYTES + 1)]
)
def test_bytes_that_are_no_block_are_rejected(node, raw):
    async def main():
        with pytest.raises(ProtocolError):
            await node.intake.gossip_check("liar", raw)

    run(main)


def test_too_little_work_is_rejected(tmp_path):
    node = Node(tmp_path)
    hard = replace(node.genesis.parameters, work_bits=40)
    strict = Node(tmp_path / "x", parameters=hard)

    async def main():
        made = block(strict)
        with pytest.raises(Reject):
            await strict.intake.gossip_check("a", encode_block(made))

    run(main)


def test_a_good_block_is_stored_announced_and_known(node):
    async def main():
        made = block(node)
        async with node.running():
            with node.events.subscribe(BlockStored) as facts:
                raw = encode_block(made)
                assert await node.intake.gossip_check("a", raw) is Verdict.ACCEPT
                fact = await facts.receive()
            assert fact.block == made and node.blocks.get(made.id) == made
            assert made.id in node.pool
            assert await node.intake.gossip_check("b", raw) is Verdict.IGNORE
            await node.intake.submit(made, "b")
            assert len(node.pool) == 1

    run(main)


def test_a_large_block_passes_too(node):
    async def main():
        made = block(node, model(note="n" * 512, name="x" * 128))
        many = block(node, dataset(license="l" * 512, source="s" * 512), sequence=2)
        async with node.running():
            for one in (made, many):
                raw = encode_block(one)
                assert await node.intake.gossip_check("a", raw) is Verdict.ACCEPT
            await until(lambda: len(node.pool) == 2)

    run(main)


def test_a_block_ahead_of_our_clock_waits_and_nobody_pays(node):
    async def main():
        early = block(node, time_ms=node.clock.ms + rules.MAX_AHEAD_MS + 1)
        raw = encode_block(early)
        assert await node.intake.gossip_check("a", raw) is Verdict.IGNORE
        with pytest.raises(Ignore):
            await node.intake.submit(early, "a")
        await node.intake.submit(early, "a", is_final=True)
        assert node.blocks.has(early.id), "a checkpoint orders it: our clock is wrong"

    run(main)


def test_a_lying_height_and_a_parent_of_another_chain_are_the_authors_fault(node):
    async def main():
        parent = block(node)
        await node.intake.submit(parent)
        lie = child_of(node.genesis, node.keys[1], beat(load=1), parent, sequence=2)
        lie = resigned(node, lie, height=7)
        cross = child_of(node.genesis, node.keys[1], dataset(), parent, sequence=3)
        for wrong in (lie, cross):
            with pytest.raises(Reject):
                await node.intake.submit(wrong, "liar")
        async with node.running():
            for wrong in (lie, cross):
                raw = encode_block(wrong)
                assert await node.intake.gossip_check("other", raw) is Verdict.ACCEPT
            await until(lambda: len(node.blamed) == 2)
        author = peer_id_of(lie.header.author)
        assert {peer for peer, _ in node.blamed} == {author}, "not who forwarded them"
        assert not node.blocks.has(lie.id) and not node.blocks.has(cross.id)

    run(main)


def test_unknown_parents_are_fetched_from_who_sent_the_block(node):
    async def main():
        made = chain(node, 5)
        node.blocks_of["a"] = made[:-1]
        async with node.running():
            raw = encode_block(made[-1])
            assert await node.intake.gossip_check("a", raw) is Verdict.ACCEPT
            await until(lambda: node.blocks.has(made[-1].id))
        assert len(node.pool) == 5 and not node.blamed
        assert [len(ids) for what, _, ids in node.asked] == [1, 1, 1, 1]

    run(main)


def test_an_orphan_waits_for_its_parents_by_whatever_way_they_come(node):
    async def main():
        parent, child, grandchild = chain(node, 3)
        async with node.running():
            for orphan in (grandchild, child):
                raw = encode_block(orphan)
                assert await node.intake.gossip_check("a", raw) is Verdict.ACCEPT
            await until(lambda: len(node.intake._orphans) == 2)
            assert not node.blocks.has(child.id)
            await node.intake.submit(parent, "b")
            assert len(node.pool) == 3 and not len(node.intake._orphans)

    run(main)


def test_a_long_row_of_orphans_is_released_without_recursion(node):
    async def main():
        made = chain(node, 250)
        for orphan in reversed(made[1:]):
            with pytest.raises(Ignore):
                await node.intake.submit(orphan, "a")
        assert len(node.intake._orphans) == 249
        await node.intake.submit(made[0], "b")
        assert len(node.pool) == 250 and not len(node.intake._orphans)

    run(main)


def test_a_false_orphan_is_its_own_authors_fault(node):
    async def main():
        parent = block(node)
        lie = child_of(node.genesis, node.keys[1], beat(load=1), parent, sequence=2)
        lie = resigned(node, lie, height=9)
        with pytest.raises(Ignore):
            await node.intake.submit(lie, "liar")
        await node.intake.submit(parent)  # our own: nothing must reach its maker
        assert node.blocks.has(parent.id) and not len(node.intake._orphans)
        assert [peer for peer, _ in node.blamed] == [peer_id_of(lie.header.author)]

    run(main)


def test_orphans_are_bounded_per_peer_and_in_all(node, monkeypatch):
    monkeypatch.setattr(orphans, "MAX_ORPHANS_PER_PEER", 5)
    monkeypatch.setattr(orphans, "MAX_ORPHANS", 12)

    async def main():
        honest = chain(node, 2)[1]
        with pytest.raises(Ignore):
            await node.intake.submit(honest, "honest")
        for peer in ("p", "q"):
            for n in range(20):
                fake = block(node, parents=(bytes([n]) * 32,), height=1, sequence=n + 2)
                with pytest.raises(Ignore):
                    await node.intake.submit(fake, peer)
                assert node.intake._orphans.count_of(peer) <= 5
        assert honest.id in node.intake._orphans, "others' budgets are their own"
        for n in range(20):
            fake = block(node, parents=(bytes([n]) * 32,), height=1, sequence=n + 90)
            with pytest.raises(Ignore):
                await node.intake.submit(fake, f"sybil{n}")
            assert len(node.intake._orphans) <= 12

    run(main)


def test_orphans_do_not_wait_for_ever(node):
    async def main():
        old, new = (
            block(node, parents=(bytes([n]) * 32,), height=1, sequence=n)
            for n in (1, 2)
        )
        with pytest.raises(Ignore):
            await node.intake.submit(old, "a")
        await trio.sleep(orphans.ORPHAN_S + 1)
        with pytest.raises(Ignore):
            await node.intake.submit(old, "b")
        assert old.id in node.intake._orphans, "sent again, it waits anew"
        await trio.sleep(orphans.ORPHAN_S + 1)
        with pytest.raises(Ignore):
            await node.intake.submit(new, "a")
        assert len(node.intake._orphans) == 1 and new.id in node.intake._orphans

    run(main)


def test_a_peer_that_never_gives_ancestors_delays_nobody(node):
    async def main():
        async def silence(ids):
            await trio.sleep_forever()

        node.blocks_of["mute"] = silence
        async with node.running():
            for n in range(intakes.WORKERS + 2):
                fake = block(node, parents=(bytes([n]) * 32,), height=1, sequence=n + 1)
                await node.intake.gossip_check("mute", encode_block(fake))
            fine = block(node, author=2)
            await node.intake.gossip_check("b", encode_block(fine))
            await until(lambda: fine.id in node.pool, timeout_s=1.0)
            assert node.intake._connecting == {"mute"}
            await trio.sleep(intakes.CONNECT_S + 1)
            assert not node.intake._connecting
        assert not node.blamed

    run(main)


def test_a_peer_that_gives_false_ancestors_pays(node):
    async def main():
        parent, child = chain(node, 2)
        node.blocks_of["liar"] = [replace(parent, signature=bytes(63) + b"\1")]
        async with node.running():
            await node.intake.gossip_check("liar", encode_block(child))
            await until(lambda: bool(node.blamed))
        assert node.blamed[0][0] == "liar" and not node.blocks.has(parent.id)

    run(main)


def test_only_some_peers_are_asked_for_ancestors_at_once(node, monkeypatch):
    monkeypatch.setattr(intakes, "MAX_CONNECTING", 2)

    async def main():
        async def silence(ids):
            await trio.sleep_forever()

        async with node.running():
            for n in range(6):
                node.blocks_of[f"p{n}"] = silence
                fake = block(node, parents=(bytes([n]) * 32,), height=1, sequence=n + 1)
                await node.intake.gossip_check(f"p{n}", encode_block(fake))
            await until(lambda: len(node.intake._orphans) == 6)
            assert len(node.intake._connecting) == 2

    run(main)


def test_a_full_queue_ignores_and_one_peer_does_not_fill_it(node, monkeypatch):
    monkeypatch.setattr(intakes, "QUEUE_PER_PEER", 8)

    async def main():  # nobody works: the queue only fills
        verdicts = []
        for n in range(12):
            raw = encode_block(block(node, beat(load=n), sequence=n + 1))
            verdicts.append(await node.intake.gossip_check("greedy", raw))
        assert verdicts == [Verdict.ACCEPT] * 8 + [Verdict.IGNORE] * 4
        raw = encode_block(block(node, author=2))
        assert await node.intake.gossip_check("other", raw) is Verdict.ACCEPT
        monkeypatch.setattr(intakes, "QUEUE_PER_PEER", 10_000)
        async with node.running():
            await until(lambda: len(node.pool) == 9)
        assert not node.intake._queued

    run(main)


def test_the_queue_is_bounded_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(intakes, "QUEUE", 4)
    node = Node(tmp_path)

    async def main():
        verdicts = [
            await node.intake.gossip_check(
                f"p{n}", encode_block(block(node, sequence=n + 1))
            )
            for n in range(6)
        ]
        assert verdicts == [Verdict.ACCEPT] * 4 + [Verdict.IGNORE] * 2

    run(main)


def test_an_author_has_a_bounded_share_except_for_us_and_final_blocks(
    node, monkeypatch
):
    monkeypatch.setattr("blyand.chain.pool.MAX_PENDING_PER_AUTHOR", 3)

    async def main():
        for n in range(3):
            await node.intake.submit(block(node, beat(load=n), sequence=n + 1), "a")
        more = block(node, beat(load=9), sequence=9)
        raw = encode_block(more)
        assert await node.intake.gossip_check("a", raw) is Verdict.IGNORE
        with pytest.raises(Ignore):
            await node.intake.submit(more, "a")
        other = block(node, author=2)
        assert (
            await node.intake.gossip_check("a", encode_block(other)) is Verdict.ACCEPT
        )
        await node.intake.submit(more, "a", is_final=True)
        assert node.blocks.has(more.id)

    run(main)


def test_a_bug_on_one_block_costs_that_block_only(node, monkeypatch):
    async def main():
        bad, fine = block(node, beat(load=1)), block(node, beat(load=2), sequence=2)
        put = node.pool.add

        def fall(one, **more):
            if one == bad:
                raise ZeroDivisionError("a bug of ours")
            put(one, **more)

        monkeypatch.setattr(node.pool, "add", fall)
        async with node.running():
            for one in (bad, fine):
                await node.intake.gossip_check("a", encode_block(one))
            await until(lambda: fine.id in node.pool)
        assert bad.id in node.poison and not node.blamed
        assert await node.intake.gossip_check("a", encode_block(bad)) is Verdict.IGNORE

    run(main)


def test_a_poisonous_block_is_not_taken_again_unless_it_is_final(node):
    async def main():
        bad = block(node)
        node.poison.put("block", bad.id, b"", ValueError())
        assert await node.intake.gossip_check("a", encode_block(bad)) is Verdict.IGNORE
        with pytest.raises(Ignore):
            await node.intake.submit(bad, "a")
        await node.intake.submit(bad, "a", is_final=True)
        assert node.blocks.has(bad.id)

    run(main)


def test_one_block_from_many_sides_is_stored_once(node):
    async def main():
        made, told = block(node), []
        async with node.running():
            with node.events.subscribe(BlockStored) as facts:
                async with trio.open_nursery() as nursery:
                    for peer in ("a", "b", "c"):
                        nursery.start_soon(node.intake.submit, made, peer)
                        nursery.start_soon(
                            node.intake.gossip_check, peer, encode_block(made)
                        )
                told.append(await facts.receive())
                with trio.move_on_after(1):
                    told.append(await facts.receive())
        assert len(told) == 1 and len(node.pool) == 1

    run(main)


def test_submit_returns_when_the_block_is_durable_even_if_another_way_was_first(node):
    async def main():
        made, gate = block(node), trio.Event()
        commit = node.intake._groups._commit.submit

        async def slowly(batch):
            await gate.wait()
            await commit(batch)

        node.intake._groups._commit.submit = slowly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.intake.submit, made, "a")
            await trio.testing.wait_all_tasks_blocked()
            done = []

            async def second():
                await node.intake.submit(made, "b")
                done.append(node.blocks.has(made.id))

            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            assert not done
            gate.set()
        assert done == [True]

    run(main)


def test_a_caller_that_gives_up_leaves_no_half_taken_block(node):
    async def main():
        made, gate = block(node), trio.Event()
        commit = node.intake._groups._commit.submit

        async def slowly(batch):
            await gate.wait()
            await commit(batch)

        node.intake._groups._commit.submit = slowly
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_after, gate, scope)
                await node.intake.submit(made)
        assert node.blocks.has(made.id) == (made.id in node.pool) is True

    async def _after(gate, scope):
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        gate.set()

    run(main)


def test_pending_blocks_come_back_after_a_restart(node):
    async def main():
        own, foreign = block(node, author=0), block(node, author=1)
        await node.intake.submit(own)
        await node.intake.submit(foreign, "a")
        node.open()
        async with node.running():
            assert {b.id for b in node.pool} == {own.id, foreign.id}
        kept = {p.id for p in node.pool.entries() if p.keep}
        assert kept == {own.id}

    run(main)


def test_strangers_may_write_too(node):
    """Intake asks for no registration: that is decided when the block is executed."""

    async def main():
        made = sign_block(node.genesis, key("stranger"), beat())
        await node.intake.submit(made, "a")
        assert made.id in node.pool

    run(main)


# Answers: many blocks at once


def test_an_answer_is_taken_in_whatever_its_order(node):
    async def main():
        made = chain(node, 300)
        mixed = made[::-1] + made[:5]
        outcomes = await node.intake.submit_many(mixed, "a")
        assert outcomes == [intakes.Admission(block.id) for block in mixed]
        assert len(node.pool) == 300 and all(node.blocks.has(b.id) for b in made)

    run(main)


def test_a_bad_block_of_an_answer_holds_up_no_other(node):
    async def main():
        first, second, third = chain(node, 3)
        lie = child_of(node.genesis, node.keys[1], beat(load=8), first, sequence=10)
        lie = resigned(node, lie, height=2)
        forged = replace(block(node, author=2), signature=bytes(63) + b"\1")
        swapped = replace(third, payload=b"\x80")  # the id is that of an honest block
        orphan = block(node, parents=(bytes(32),), height=1, sequence=11)
        answer = [lie, orphan, third, forged, swapped, second, first]
        outcomes = await node.intake.submit_many(answer, "a")
        kinds = [type(one.error) for one in outcomes]
        unknown, good = rules.ParentUnknown, type(None)
        assert kinds == [Reject, unknown, good, Reject, Reject, good, good]
        assert [one.id for one in outcomes] == [one.id for one in answer]
        assert len(node.pool) == 3 and not node.blamed, "whom to blame knows the caller"

    run(main)


def test_a_parent_that_claims_to_be_higher_than_its_child_is_a_lie_at_once(node):
    async def main():
        first, second, third = chain(node, 3)
        high = resigned(node, second, height=9)
        child = child_of(node.genesis, node.keys[1], beat(load=5), high, sequence=5)
        child = resigned(node, child, height=2)
        outcomes = await node.intake.submit_many([child, high, first], "a")
        assert [type(one.error) for one in outcomes] == [Reject, Reject, type(None)]
        assert not len(node.intake._orphans)

    run(main)


def test_an_answer_fills_no_authors_share_twice_over(node, monkeypatch):
    monkeypatch.setattr("blyand.chain.pool.MAX_PENDING_PER_AUTHOR", 3)

    async def main():
        made = chain(node, 5)
        outcomes = await node.intake.submit_many(made, "a")
        assert [one.error is None for one in outcomes] == [True] * 3 + [False] * 2
        assert len(node.pool) == 3
        outcomes = await node.intake.submit_many(made, "a", is_final=True)
        assert all(one.error is None for one in outcomes)

    run(main)


def test_what_a_checkpoint_orders_does_not_fill_the_pool(node):
    async def main():
        made = chain(node, 5)
        await node.intake.submit_many(made, "a", is_final=True)
        assert not len(node.pool) and all(node.blocks.has(b.id) for b in made)
        node.open()
        async with node.running():
            assert not len(node.pool), "nor after a restart"
        await node.order(*made)
        assert all(node.blocks.outcome(b.id).code == 0 for b in made)

    run(main)


@pytest.mark.parametrize("place", ["check_many", "verify"])
def test_a_bug_on_one_block_of_an_answer_costs_that_block_only(
    node, monkeypatch, place
):
    async def main():
        made = [block(node, beat(load=n), sequence=n + 1) for n in range(9)]
        bad = made[4]
        honest = getattr(rules, "_check" if place == "check_many" else "verify")

        def fall(one, *args):
            if getattr(one, "block", one) == bad:
                raise ZeroDivisionError("a bug of ours")
            return honest(one, *args)

        if place == "verify":
            monkeypatch.setattr("blyand.chain.groups.verify", fall)
        else:
            monkeypatch.setattr(rules, "_check", fall)
        outcomes = await node.intake.submit_many(made, "a")
        assert [one.error is None for one in outcomes].count(False) == 1
        assert outcomes[4].error is not None and bad.id in node.poison
        assert len(node.pool) == 8 and not node.blamed

    run(main)


def test_answers_of_several_peers_at_once_wait_for_one_anothers_parents(node):
    async def main():
        made = chain(node, 40)
        commit = node.intake._groups._commit.submit

        async def slowly(batch):
            await trio.sleep(0.1)
            await commit(batch)

        node.intake._groups._commit.submit = slowly
        outcomes = []

        async def give(part, peer):
            outcomes.extend(await node.intake.submit_many(part, peer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give, made[:20], "a")
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(give, made[20:], "b")
            nursery.start_soon(give, made[10:30], "c")
        assert all(one.error is None for one in outcomes), outcomes
        assert len(node.pool) == 40

    run(main)


def test_a_parent_that_comes_while_its_child_is_looked_at_frees_it(node):
    """Between the look and the parking its own release finds nobody yet."""

    async def main():
        parent, child = chain(node, 2)
        store = node.intake._groups.store
        late = [parent]

        async def slowly(group):
            refused = await store(group)
            if late and child.id in refused:
                await node.intake.submit(late.pop(), "b")
            return refused

        node.intake._groups.store = slowly
        await node.intake.submit(child, "a")
        assert len(node.pool) == 2 and not len(node.intake._orphans)

    run(main)


def test_only_the_rules_check_and_verify():
    for cls in (rules.Checked, rules.Verified):
        with pytest.raises(TypeError):
            cls(None, b"")
        with pytest.raises(TypeError, match="only the rules"):
            cls(None, b"", None)
        with pytest.raises(TypeError, match="only the rules"):
            cls(None, b"", rules._Seal())
