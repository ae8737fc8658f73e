"""Logs of real rounds on simulated nodes: what an audit shows, of whoever lies how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from blyan_proto import merkle
from blyan_proto.block.model import Inner
from blyan_proto.errors import BadProof, BadSignature
from blyan_proto.protocols.audit import (
    Absent,
    Ask,
    LoggedStep,
    LogStatement,
    Shown,
    ShownStep,
    SignedLog,
    root_of,
)
from blyan_proto.protocols.delta import (
    Bundle,
    Entry,
    EntryVerdict,
    Manifest,
    Receipt,
    Verdict,
)
from blyan_proto.signing import Purpose, SigningKey
from blyan_tile.learner import LearnJob, LearnResult, learn
from blyan_tile.reexecution import RepeatJob, repeat
from blyand.errors import NotHere
from blyand.protocols.delta import signed_receipt
from blyand.rules.model.audit import Finding
from blyand.training.audit import Audit, Logs, Report
from blyand.training.inspector import Inspector
from tests.sim.network import InlineLane, until
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode

KEY = SigningKey(b"k" * 32)  # of a node that takes deltas

STEPS = 2  # of a round
Change = Callable[[LogStatement, tuple[LoggedStep, ...]], Any]


class Repeater:
    """Stands for the worker process."""

    async def call(self, job: RepeatJob, report: Any = None) -> Any:
        await trio.lowlevel.checkpoint()
        return repeat(job, lambda progress: None)


def slowly(job: LearnJob, report: Any) -> LearnResult:
    """Learn half of the steps, as slow nodes do."""
    return learn(replace(job, steps=1), report)


def auditor_on(node: TrainNode, ask: Any = None) -> Inspector:
    """Return what audits others from a node, with calls instead of streams."""

    async def reach(peer: str, ask: Ask) -> Any:
        return await (await node.reach(peer)).learner.logbook.show(ask)

    def view() -> Any:
        return node.machine.view

    audit = Audit(
        node.key.account,
        node.genesis.id,
        view,
        node.blocks.get,
        node.blobs,
        InlineLane(),  # type: ignore[arg-type]
        Repeater(),  # type: ignore[arg-type]
        Logs(ask or reach, node.learner.logbook.show, node.peer_of),
        node.fetcher.get,
        node.fetcher.get,
        node.holder.uses,
    )
    return Inspector(node.key, node.genesis.id, view, audit, node.events)


def lying(node: TrainNode, change: Change, key: SigningKey | None = None) -> Any:
    """Return how a node answers that keeps another log than its own, well signed."""

    async def ask(peer: str, ask: Ask) -> Any:
        whole = Ask(ask.run, ask.round, tuple(range(STEPS)))
        shown = await node.learner.logbook.show(whole)
        assert isinstance(shown, Shown)
        steps = tuple(one.step for one in shown.steps)
        statement, steps = change(shown.log.statement, steps)
        statement = replace(statement, steps=len(steps), log=root_of(steps))
        signer = key or node.key
        signature = signer.sign(Purpose.TRAINING_LOG, node.genesis.id, statement)
        leaves = [step.leaf for step in steps]
        parts = tuple(
            ShownStep(index, steps[index], merkle.prove(leaves, index))
            for index in ask.steps
            if index < len(steps)
        )
        return Shown(SignedLog(statement, signer.public, signature), parts)

    return ask


def each(**changes: Any) -> Change:
    return lambda said, steps: (said, tuple(replace(one, **changes) for one in steps))


def off_by(micro: int) -> Change:
    """A log of another device, its losses off by so much."""

    def change(said: LogStatement, steps: tuple[LoggedStep, ...]) -> Any:
        other = replace(said, device="cuda Foo torch 2.13.0")
        return other, tuple(
            LoggedStep(one.batch, one.loss_micro + micro, None) for one in steps
        )

    return change


def another_entry(**changes: Any) -> Change:
    def change(said: LogStatement, steps: tuple[LoggedStep, ...]) -> Any:
        first = replace(said.entries[0], **changes)
        return replace(said, entries=(first, *said.entries[1:])), steps

    return change


def under_another_lease(said: LogStatement, steps: tuple[LoggedStep, ...]) -> Any:
    return replace(said, lease_epoch=said.lease_epoch + 1), steps


LIES: dict[str, tuple[Change, Finding]] = {
    "learned from other text": (each(batch=bytes(32)), Finding.FALSE_BATCH),
    "steps that were not made": (each(state=bytes(32)), Finding.FALSE_STATE),
    "a change of other steps": (another_entry(change=bytes(32)), Finding.FALSE_STATE),
    "a delta that it does not name": (
        another_entry(delta=bytes(32)),
        Finding.OTHER_DELTA,
    ),
    "a round cut short": (lambda said, steps: (said, steps[:1]), Finding.SHORT),
    "more steps than a round has": (
        lambda said, steps: (said, steps + steps[:1]),
        Finding.SHORT,
    ),
    "another device": (off_by(400), Finding.SOUND),
    "another device, far off": (off_by(90_000), Finding.FAR),
}


def test_what_audits_find_on_a_network_that_trains(tmp_path: Path) -> None:
    net = Training(tmp_path)
    heard: list[tuple[str, bytes, Finding]] = []
    found: dict[str, Report] = {}

    async def main() -> None:
        async with net.running():
            node, learner = net.nodes[:2]
            for one in net.nodes:
                one.trainer.learn = learn if one is not net.nodes[2] else slowly
                drawn = auditor_on(one)
                drawn.note = (  # type: ignore[method-assign]
                    lambda account, report, name=one.name: heard.append(
                        (name, account, report.finding)
                    )
                )
                await net._nursery.start(drawn.run)
            run = await net.begin(
                rounds=2, min_tokens=0, from_residual=True, inner=Inner.MUON
            )
            await net.closes(run, 2)
            await until(lambda: len(heard) >= 4)  # two of each round, the last one too
            record, account = node.run_record(run), learner.key.account

            async def look(ask: Any = None, round: int = 0, **more: Any) -> Report:
                audit = auditor_on(node, ask).audit
                return await audit.look(record, round, account, 1, STEPS, **more)

            found["honest"] = await look()
            slow = net.nodes[2].key.account
            found["slow"] = await auditor_on(node).audit.look(record, 0, slow, 9, 9)
            for name, (change, _) in LIES.items():
                found[name] = await look(lying(learner, change))
            text = lying(learner, LIES["learned from other text"][0])
            unrepeated = await auditor_on(node, text).audit.look(
                record, 0, account, STEPS
            )
            assert unrepeated.finding is Finding.FALSE_BATCH
            with pytest.raises(NotHere, match="another schedule"):
                await look(lying(learner, under_another_lease))
            with pytest.raises(BadSignature):
                await look(lying(learner, each(), net.nodes[2].key))
            with pytest.raises(NotHere, match="cannot be audited: rounds 1 to"):
                await look(round=7)
            with pytest.raises(NotHere, match="what they could not send"):
                await look(round=1)
            with pytest.raises(NotHere, match="no learner"):
                await auditor_on(node).audit.look(record, 0, bytes(20), 1)
            own = await auditor_on(node).audit.look(record, 1, node.key.account, 1)
            assert own.finding is Finding.SOUND and not own.repeated

            async def unproved(peer: str, ask: Ask) -> Any:
                shown = await lying(learner, each())(peer, ask)
                other = replace(shown.steps[0], step=LoggedStep(bytes(32), 1, None))
                return replace(shown, steps=(other, *shown.steps[1:]))

            with pytest.raises(BadProof):
                await look(unproved)
            for log in (learner.home / "podl").rglob("*.log"):
                log.unlink()
            found["no log"] = await look()

    simulate(main)
    honest = found["honest"]
    assert honest.finding is Finding.SOUND and "last bit" in honest.reason
    assert (honest.steps, honest.repeated, honest.worst_micro) == (STEPS, STEPS, 0)
    assert honest.is_exact and honest.listed >= 3
    assert honest.checked == STEPS and honest.confidence_ppm == 10**6
    assert found["slow"].finding is Finding.SOUND
    assert found["slow"].repeated == found["slow"].steps == 1
    assert {name: found[name].finding for name in LIES} == {
        name: finding for name, (_, finding) in LIES.items()
    }
    assert found["another device, far off"].worst_micro == 90_000
    assert found["no log"].finding is Finding.ABSENT and found["no log"].listed >= 3
    # without being asked: drawn seats look at others, and honest ones are sound
    assert {finding for *_, finding in heard} == {Finding.SOUND}
    accounts = {node.name: node.key.account for node in net.nodes}
    assert all(accounts[name] != account for name, account, _ in heard)


def test_who_is_certainly_false_is_refused_for_a_day_and_the_far_one_is_not() -> None:
    liar, far = b"l" * 20, b"f" * 20

    async def take(bundle: Bundle) -> Receipt:
        await trio.lowlevel.checkpoint()
        verdicts = [EntryVerdict(1, Verdict.TAKEN)]
        return signed_receipt(KEY, bytes(32), bundle.manifest, verdicts)

    def bundle_of(learner: bytes) -> Bundle:
        manifest = Manifest(
            bytes(32), 0, learner, (Entry(1, None),), bytes(32), bytes(32)
        )
        return Bundle(manifest, bytes(33), bytes(64), ())

    async def main() -> None:
        inspector = Inspector(
            KEY, bytes(32), None, SimpleNamespace(), None  # type: ignore[arg-type]
        )
        admitted = inspector.admitting(take)

        async def verdict(learner: bytes) -> Verdict:
            return (await admitted(bundle_of(learner))).verdicts[0].verdict

        inspector.note(far, Report(Finding.FAR, "", 2, 2, 10**6, repeated=2))
        inspector.note(liar, Report(Finding.ABSENT, "", 0, 0, 0))
        inspector.note(KEY.account, Report(Finding.ABSENT, "", 0, 0, 0))
        assert await verdict(far) is Verdict.TAKEN
        assert await verdict(liar) is Verdict.REFUSED
        assert await verdict(KEY.account) is Verdict.TAKEN  # this node itself
        await trio.sleep(24 * 3600 + 1)
        assert await verdict(liar) is Verdict.TAKEN

    simulate(main)


def test_a_log_that_is_lost_is_absent(tmp_path: Path) -> None:
    net = Training(tmp_path)
    logbook = net.nodes[0].learner.logbook
    shown = trio.run(logbook.show, Ask(bytes(32), 3, (0,)))
    assert shown == Absent(3)
    path = logbook._path(bytes(32), 3)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    assert trio.run(logbook.show, Ask(bytes(32), 3, (0,))) == Absent(3)
