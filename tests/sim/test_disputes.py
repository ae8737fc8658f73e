"""Two ranks sign a false update and a checkpoint orders it: it is voided, and they pay."""

from __future__ import annotations

from dataclasses import replace

import trio

from blyan_proto.block.economy import Dispute, Offence
from blyan_proto.constants import FORMAT_VERSION, PPM
from blyand.rules.model import clip
from blyand.rules.model.dispute import DISPUTES, Stand, open_disputes
from blyand.rules.model.election import ranks
from blyand.rules.records import SCHEDULES, VERSIONS
from blyand.rules.trust.offences import OFFENCES
from blyand.training import tiles
from blyand.training.membership import Listing
from tests.sim.network import until
from tests.sim.test_rounds import believing
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode


def ranked(net: Training, run: bytes, round: int, group: int) -> list[TrainNode]:
    """Return the nodes that are ranks of a group in a round, the primary first."""
    schedule = SCHEDULES.get(net.nodes[0].machine.view, run, round)
    assert schedule is not None
    by_account = {node.key.account: node for node in net.nodes}
    return [by_account[seat.account] for seat in ranks(schedule, group)]


def liar_of(net: Training, run: bytes) -> tuple[int, int, TrainNode, TrainNode]:
    """Return (round, group, primary, second rank); the primary is not who judges."""
    return next(
        (round, group.index, primary, second)
        for round in (1, 2)
        for group in net.layout.shared_groups
        for primary, second, *_ in [ranked(net, run, round, group.index)]
        if primary is not net.nodes[0]
    )


def tampering(liar: TrainNode, round: int, group: int) -> None:
    """Let a primary publish a result that leaves out all deltas but the first."""
    form = liar.primary._form

    def formed(key, collecting, place):
        honest = form(key, collecting, place)
        if key[1:] != (round, group):
            return honest
        parts = tiles.parts_of(liar.blobs, honest, place.group, place.run)[:1]
        false = tiles.advance(
            liar.blobs, place.group, place.head.tiles, parts, place.run
        )
        assert false != honest.result
        made = Listing(honest.contributions, b"", honest.median)
        return liar.primary._signed(key, place, made, false, honest.blob)

    liar.primary._form = formed


def belittling(liar: TrainNode, round: int, group: int) -> None:
    """Let a primary say that all deltas are tiny, so that none is clipped."""
    form = liar.primary._form

    def formed(key, collecting, place):
        honest = form(key, collecting, place)
        if key[1:] != (round, group):
            return honest
        parts = tuple(replace(p, norm=1, clip_ppm=PPM) for p in honest.contributions)
        median = clip.running_after([1] * len(parts), place.median, 3 * PPM)
        named = tiles.parts_of(liar.blobs, honest, place.group, place.run)
        whole = [replace(part, clip_ppm=PPM) for part in named]
        false = tiles.advance(
            liar.blobs, place.group, place.head.tiles, whole, place.run
        )
        made = Listing(parts, b"", median)
        return liar.primary._signed(key, place, made, false, honest.blob)

    liar.primary._form = formed


def offenders(node: TrainNode) -> dict[bytes, Offence]:
    return {o.offender: o.offence for o in OFFENCES.scan(node.machine.view)}


def test_a_false_update_is_voided_with_what_stands_on_it(tmp_path):
    """Rounds go on over the lie; then the verdict comes, and all go back to one version."""

    async def main() -> None:
        net = Training(tmp_path, 1)
        judge = net.nodes[0].judge
        async with net.running():
            run = await net.begin(6)
            round, group, liar, second = liar_of(net, run)
            tampering(liar, round, group)
            believing(second)
            look, late = judge._is_right, trio.Event()

            async def patient(block):
                await late.wait()
                return await look(block)

            judge._is_right = patient
            await until(lambda: list(open_disputes(net.nodes[0].machine.view)))
            await net.closes(run, round + 3)
            view = net.nodes[0].machine.view
            (open,) = open_disputes(view)
            lie = VERSIONS.get(view, run, round, group)
            assert (open.update, open.round, open.group) == (lie.update, round, group)
            assert VERSIONS.get(view, run, round + 1, group).parent == lie.update
            late.set()
            await until(lambda: not list(open_disputes(net.nodes[0].machine.view)))
            await net.closes(run, 6)
            await net.settles()
            net.check()
            both = {liar.key.account, second.key.account}
            assert offenders(net.nodes[0]) == dict.fromkeys(both, Offence.FALSE_ROOT)
            left = [block.content.round for block in net.updates(net.nodes[0], group)]
            assert lie.update not in {b.id for b in net.updates(net.nodes[0], group)}
            assert left[:round] == list(range(round)) and round not in left
            assert left[-1] == 5, "the group goes on, from the last good version"
            settings = net.nodes[0].run_record(run).run
            roots = [
                tile.weights for tile in net.nodes[0].heads(net.model)[group].tiles
            ]
            assert net.recomputed(net.nodes[0], settings, group) == roots

    simulate(main)


def test_whoever_disputes_what_is_right_pays(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 2)
        first, wrong = net.nodes[:2]
        async with net.running():
            run = await net.begin(3)
            await net.closes(run, 1)
            group = net.layout.shared_groups[0].index
            right = VERSIONS.get(first.machine.view, run, 0, group)
            doubt = Dispute(
                FORMAT_VERSION, run, group, 0, right.update, 0, right.base[0]
            )
            await wrong.author.make(doubt)
            await until(lambda: offenders(first))
            assert offenders(first) == {wrong.key.account: Offence.FALSE_ROOT}
            known = DISPUTES.get(first.machine.view, right.update)
            assert known.stand is Stand.WRONG and known.says_right
            again = await net.nodes[2].author.make(doubt)
            await until(lambda: first.blocks.outcome(again.id) is not None)
            assert first.blocks.outcome(again.id).code != 0
            await net.closes(run, 3)
            await net.settles()
            net.check()
            assert VERSIONS.get(first.machine.view, run, 0, group) == right

    simulate(main)


def test_norms_that_are_not_the_deltas_own_void_an_update(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 1)
        async with net.running():
            run = await net.begin(4, delta_clip_ppm=3 * PPM)
            round, group, liar, second = liar_of(net, run)
            belittling(liar, round, group)
            believing(second)
            await until(lambda: offenders(net.nodes[0]))
            assert set(offenders(net.nodes[0])) == {
                liar.key.account,
                second.key.account,
            }
            await net.closes(run, 4)
            await net.settles()
            net.check()
            settings = net.nodes[0].run_record(run).run
            head = net.nodes[0].heads(net.model)[group]
            roots = [tile.weights for tile in head.tiles]
            assert net.recomputed(net.nodes[0], settings, group) == roots

    simulate(main)
