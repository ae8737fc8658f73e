"""Updates that no checkpoint ordered: when they are given up, and when not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from blyand.rules.model.signatures import PATIENCE
from blyand.rules.records import CLOCK, Clock
from blyand.rules.view import Overlay
from blyand.training import waiting
from blyand.training.waiting import EXCUSED_S, PASSED_OVER, Blocks, Waiting

KEY = (b"m" * 32, 1)


class Chain:
    """State that knows a height only, and blocks that wait for ever."""

    def __init__(self) -> None:
        self.view = Overlay(self)  # type: ignore[arg-type]
        self.abandoned: list[bytes] = []
        self.blocks = Blocks(
            lambda: self.view,
            lambda id: None,
            lambda: iter(()),
            lambda id: True,
            self.abandoned.append,
        )
        self.at(0)

    def get(self, key: bytes) -> None:
        return None

    def at(self, height: int) -> None:
        CLOCK.put(self.view, Clock(height, 1_000 * height, (bytes(32),)))


def update(id: bytes, parent: bytes, anchor: int = 0, signers: int = 2) -> Any:
    place = {"model": KEY[0], "group": KEY[1], "run": b"r" * 32, "round": 0}
    content = SimpleNamespace(
        **place, lease_epoch=0, parent=parent, rank=0, cosignatures=range(signers)
    )
    header = SimpleNamespace(anchor_height=anchor, author=b"author")
    return SimpleNamespace(id=id, content=content, header=header)


def test_what_many_checkpoints_passed_over_is_given_up_with_what_stands_on_it():
    async def main() -> None:
        chain = Chain()
        waits = Waiting(chain.blocks, 0)
        assert waits.note(update(b"a", b"head"))
        assert not waits.note(update(b"a", b"head")), "known"
        chain.at(PASSED_OVER - 1)
        assert waits.note(update(b"b", b"a")) and waits.note(update(b"c", b"head"))
        waits.sweep(KEY)
        assert [block.id for block in waits.after(KEY, b"head")] == [b"a", b"c"]
        chain.at(PASSED_OVER)
        waits.sweep(KEY)
        assert [block.id for block in waits.after(KEY, b"head")] == [b"c"]
        assert sorted(chain.abandoned) == [b"a", b"b"]
        assert not waits.counts(KEY, b"a") and waits.counts(KEY, b"c")

    trio.run(main)


def test_a_node_that_is_behind_gives_up_nothing_that_is_newer():
    async def main() -> None:
        chain = Chain()
        waits = Waiting(chain.blocks, 0)
        waits.note(update(b"a", b"head", anchor=100))
        for height in (40, 99, 100, 99 + PASSED_OVER - 1):
            chain.at(height)
            waits.sweep(KEY)
            assert waits.counts(KEY, b"a")
        chain.at(99 + PASSED_OVER)
        waits.sweep(KEY)
        assert not waits.counts(KEY, b"a")

    trio.run(main)


def test_an_anchor_that_never_comes_is_no_excuse_for_ever():
    async def main() -> None:
        chain = Chain()
        waits = Waiting(chain.blocks, 0)
        waits.note(update(b"a", b"head", anchor=1 << 40))
        chain.at(PASSED_OVER)
        waits.sweep(KEY)
        assert waits.counts(KEY, b"a")
        await trio.sleep(EXCUSED_S)
        chain.at(2 * PASSED_OVER)
        waits.sweep(KEY)
        assert not waits.counts(KEY, b"a")

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_an_update_of_one_rank_waits_until_one_signature_is_enough(monkeypatch):
    async def main() -> None:
        chain = Chain()
        waits = Waiting(chain.blocks, 0)
        waits.note(update(b"a", b"head", signers=1))
        waits.note(update(b"b", b"head"))
        chain.at(21)  # a second each
        waits.sweep(KEY)
        assert chain.abandoned == [b"b"]
        chain.at(PATIENCE * 20)
        waits.sweep(KEY)
        assert waits.counts(KEY, b"a")
        chain.at(PATIENCE * 20 + 1)
        waits.sweep(KEY)
        assert chain.abandoned == [b"b", b"a"]

    record = SimpleNamespace(run=SimpleNamespace(deadline_ms=20_000))
    monkeypatch.setattr(waiting, "RUNS", SimpleNamespace(get=lambda *_: record))
    trio.run(main)


def test_updates_of_a_group_are_bounded(monkeypatch):
    async def main() -> None:
        waits = Waiting(Chain().blocks, 0)
        for number in range(5):
            waits.note(update(bytes([number]), b"head"))
        assert [block.id for block in waits.after(KEY, b"head")] == [b"\3", b"\4"]

    monkeypatch.setattr(waiting, "MAX_WAITING", 2)
    trio.run(main)
