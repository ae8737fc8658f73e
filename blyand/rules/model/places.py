"""The runs that are open: bounded places, so that a checkpoint's work is bounded.

Anybody may make a model and open a run. When every place is taken, the run that stood
still longest makes room, if that was longer than the genesis allows; without such a one
the newcomer waits. A run that moves is never put out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from blyan_proto.codec import U64, message
from blyan_proto.types import BlockId
from blyand.rules.model.model import require_model
from blyand.rules.records import MODELS, RUNS, RunRecord
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

MAX_OPEN_RUNS = 64


@message
class OpenRun:
    """A run that is not finished."""

    id: BlockId
    moved_ms: U64  # chain time of its last update, at first of its beginning


OPEN_RUNS = Table(b"open-run", OpenRun)  # run id


def open_runs(view: View) -> Iterator[RunRecord]:
    """Yield the runs that are not finished, ascending by id."""
    for one in OPEN_RUNS.scan(view):
        record = RUNS.get(view, one.id)
        assert record is not None
        yield record


def take_place(view: Overlay, record: RunRecord, now_ms: int, idle_ms: int) -> None:
    """Open a run. Reject when every place is taken by one that moved within `idle_ms`."""
    taken = list(OPEN_RUNS.scan(view))
    if len(taken) >= MAX_OPEN_RUNS:
        stillest = min(taken, key=lambda one: one.moved_ms)
        if now_ms - stillest.moved_ms <= idle_ms:
            raise Reject(f"{MAX_OPEN_RUNS} runs are open, and none stands still")
        still = RUNS.get(view, stillest.id)
        assert still is not None
        finish(view, still)
    RUNS.put(view, record, record.id)
    note_move(view, record, now_ms)


def note_move(view: Overlay, record: RunRecord, now_ms: int) -> None:
    """Note that an open run moved."""
    OPEN_RUNS.put(view, OpenRun(record.id, now_ms), record.id)


def finish(view: Overlay, record: RunRecord) -> None:
    """End a run: its model may have another, and its place is free."""
    RUNS.put(view, replace(record, finished=True), record.id)
    OPEN_RUNS.remove(view, record.id)
    model = require_model(view, record.run.model)
    MODELS.put(view, replace(model, run=None), model.id)
