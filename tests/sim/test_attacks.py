"""Learners that lie: what the rules do about them, in daemons' parts and in the arena."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.block.model import Codec, CodecChoice, TensorClass
from blyan_proto.constants import PPM
from blyan_proto.protocols.delta import Verdict
from blyan_tile import tblock
from blyan_tile.corpus import pack
from blyan_tile.delta import decode_group, encode_group
from blyand.rules.model.model import layout_for
from tests.sim.attacks.arena import Arena
from tests.sim.attacks.liars import ATTACKS
from tests.sim.test_rounds import TRUNK, learners
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode, made_up
from tests.unit.daemon.chain_world import ARCHITECTURE, model, run_of


def answers(node: TrainNode) -> list[Verdict]:
    """Note what ranks say to a node's bundles."""
    heard: list[Verdict] = []

    async def push(peer, bundle):
        receipt = await node.push(peer, bundle)
        heard.extend(one.verdict for one in receipt.verdicts)
        return receipt

    delivery = node.learner._delivery
    delivery._reach = replace(delivery._reach, push=push)
    return heard


def test_a_copy_is_never_listed_with_its_original(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 1)
        victim, copycat = net.nodes[1:]
        heard = answers(copycat)

        def copied(job, report):
            return made_up(replace(job, learner=victim.key.account), report)

        copycat.trainer.learn = copied
        copycat.trainer.pace_s = 0.5
        async with net.running():
            run = await net.begin(2)
            await net.closes(run, 2)
            await net.settles()
            net.check()
            honest = {net.nodes[0].name, victim.name}
            assert learners(net, TRUNK) == [honest, honest]
            assert Verdict.NOTED in heard and Verdict.COPY in heard

    simulate(main)


def test_who_announced_first_is_the_original_whoever_shows_it_first(tmp_path):
    """A rank that saw a delta before others hands its copy in faster, and loses."""

    async def main() -> None:
        net = Training(tmp_path, 1)
        thief, victim = net.nodes[1:]
        slow = answers(victim)

        def copied(job, report):
            return made_up(replace(job, learner=victim.key.account), report)

        thief.trainer.learn = copied
        thief.trainer.pace_s = 0.4
        push = victim.learner._delivery._reach.push
        take = victim.learner._delivery._reach.take

        def late(send):
            async def sent(*args):
                if args[-1].deltas:
                    await trio.sleep(0.6)
                return await send(*args)

            return sent

        delivery = victim.learner._delivery
        delivery._reach = replace(delivery._reach, push=late(push), take=late(take))
        async with net.running():
            run = await net.begin(1, quorum_ppm=PPM)  # who is slow is waited for
            await net.closes(run, 1)
            await net.settles()
            net.check()
            honest = {net.nodes[0].name, victim.name}
            assert learners(net, TRUNK) == [honest]
            assert Verdict.COPY not in slow

    simulate(main)


def pulling(sign):
    """Return learning whose changes are half what all have in common, half its own."""

    def learn(job, report):
        own, common = made_up(job, report), made_up(
            replace(job, learner=b"all" * 7), report
        )
        groups = layout_for(job.model).groups
        made = []
        for mine, shared in zip(own.deltas, common.deltas):
            group = groups[mine.group]
            pairs = zip(*(decode_group(group, one.tiles) for one in (mine, shared)))
            change = [(x + sign * y).astype("f4") for x, y in pairs]
            nothing = [None] * len(change)
            encoded, _ = encode_group(group, change, job.run, job.round, nothing)
            made.append(replace(mine, tiles=tuple(encoded)))
        return replace(own, deltas=tuple(made))

    return learn


def test_who_pulls_against_the_others_is_turned_away_after_some_rounds(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 1)
        liar = net.nodes[2]
        for node in net.nodes:
            node.trainer.learn = pulling(-1 if node is liar else 1)
        heard = answers(liar)
        async with net.running():
            run = await net.begin(6)
            await net.closes(run, 6)
            await net.settles()
            net.check()
            counted = learners(net, TRUNK)
            honest = {node.name for node in net.nodes[:2]}
            assert liar.name in counted[0] and counted[-1] == honest
            assert all(honest <= names for names in counted)
            assert Verdict.AGAINST in heard

    simulate(main)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """An archive of some lines."""
    folder = tmp_path_factory.mktemp("text")
    lines = " ".join(f"line {number} of a story" for number in range(400)).encode()
    raw = pack([("a.txt", lines, False), ("b.txt", lines[2000:5000], True)])
    array = tblock.bytes_array(raw)
    outline = tblock.outline_of(array)
    made = outline.head_bytes() + array.tobytes() + outline.tail_bytes()
    (folder / "archive").write_bytes(made)
    return folder / "archive"


def arena(text, folder, **changed):
    """Return an arena of a model as small as they come."""
    numbers = {
        "sequence": 32,
        "min_tokens": 8,
        "delta_clip_ppm": 3 * PPM,
        "codecs": (CodecChoice(TensorClass.MATRIX, 0, Codec.LR4, 8),),
    }
    small = model(architecture=replace(ARCHITECTURE, experts=2))
    return Arena(small, run_of(bytes(32), bytes(32), **numbers | changed), text, folder)


def test_liars_are_refused_or_clipped(text, tmp_path):
    place = arena(text, tmp_path)
    by_liar = {4: "copycat", 5: "disguised copy", 6: "NaN", 7: "scaling"}

    def lies(scene, liar):
        return ATTACKS[by_liar[liar]](scene, liar)

    for round in range(2):
        place.play(round, range(4), list(by_liar), lies)
    groups = len(place.layout.groups)
    assert place.refused["COPY"] == 2 * 2 * groups
    assert place.refused["NOT_FINITE"] >= 2 and place.refused["TOO_LARGE"]
    assert set(place.refused) <= {"COPY", "NOT_FINITE", "TOO_LARGE", "AGAINST"}
    assert place.clipped[7] + place.left_out[7] == 2 * groups
    assert set(place.left_out) <= {7}
    assert all(place.medians.values())


def test_one_absurd_delta_ruins_a_run_without_clip_and_not_one_with(text, tmp_path):
    losses = {}
    for clip in 0, 3 * PPM:
        folder = tmp_path / str(clip)
        folder.mkdir()
        place = arena(text, folder, delta_clip_ppm=clip)
        start = place.judge()
        for round in range(2):
            place.play(round, range(2), [4], ATTACKS["scaling"])
        losses[clip] = place.judge()
    assert losses[3 * PPM] < start < losses[0]
