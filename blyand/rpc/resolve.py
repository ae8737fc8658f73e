"""Names that callers use -> records of executed state, or the error that says why not.

A model and a dataset go by name or by block id in hex; left out, the only one is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from blyan_proto.rpc.errors import (
    DATASET_AMBIGUOUS,
    DATASET_UNKNOWN,
    MODEL_AMBIGUOUS,
    MODEL_UNKNOWN,
    RUN_UNKNOWN,
    ErrorCode,
    RpcError,
)
from blyan_proto.rpc.records import nearest
from blyan_tile.layout import Group
from blyand.errors import Unavailable
from blyand.rules.model.model import layout_for
from blyand.rules.records import (
    DATASETS,
    GROUPS,
    MODELS,
    RUNS,
    DatasetRecord,
)
from blyand.rules.records import Group as GroupRecord
from blyand.rules.records import ModelRecord, RunRecord
from blyand.rules.view import View

MAX_NAMED = 8  # names listed in an error


class _Known(Protocol):
    @property
    def id(self) -> bytes: ...


K = TypeVar("K", bound=_Known)


def model_called(view: View, name: str | None) -> ModelRecord:
    """Return a model. RpcError MODEL_UNKNOWN or MODEL_AMBIGUOUS.

    Without a name, models whose first weights are not complete are passed over.
    """
    records = list(MODELS.scan(view))
    whole = [record for record in records if record.weights == record.groups]
    return _called(
        "model",
        name,
        records if name is not None else whole or records,
        lambda record: record.model.name,
        (MODEL_UNKNOWN, MODEL_AMBIGUOUS),
        "`blyanctl model create` makes one",
    )


def dataset_called(view: View, name: str | None) -> DatasetRecord:
    """Return a dataset. RpcError DATASET_UNKNOWN or DATASET_AMBIGUOUS."""
    return _called(
        "dataset",
        name,
        list(DATASETS.scan(view)),
        lambda record: record.dataset.name,
        (DATASET_UNKNOWN, DATASET_AMBIGUOUS),
        "`blyanctl data add` makes one",
    )


def run_called(
    view: View, id: bytes | None, age: Callable[[bytes], tuple[int, int]]
) -> RunRecord:
    """Return a run; without an id the open one, else the newest. RpcError RUN_UNKNOWN.

    `age` says where a block was ordered (`ordering.place_of`).
    """
    if id is None:
        found = newest_run(view, age)
        if found is None:
            raise RpcError(
                RUN_UNKNOWN, "there is no run yet; `blyanctl train start` makes one"
            )
        return found
    record = RUNS.get(view, id)
    if record is None:
        raise RpcError(RUN_UNKNOWN, f"no run has the id {id.hex()}")
    return record


def newest_run(
    view: View, age: Callable[[bytes], tuple[int, int]], model: bytes | None = None
) -> RunRecord | None:
    """Return the open run, else the newest, of one model or of all; None without any."""
    records = [r for r in RUNS.scan(view) if model is None or r.run.model == model]
    return max(records, key=lambda r: (not r.finished, age(r.id)), default=None)


def group_called(record: ModelRecord, name: str, code: ErrorCode) -> Group:
    """Return a model's group by name. RpcError with `code` if it has none such."""
    layout = layout_for(record.model)
    try:
        return layout.group_named(name)
    except KeyError:
        hint = nearest(name, (group.name for group in layout.groups))
        text = f"model {record.model.name!r} has no group {name!r}{hint}"
        raise RpcError(code, text) from None


def group_record(view: View, record: ModelRecord, group: Group) -> GroupRecord:
    """Return the heads of a group. Unavailable while it has no weights."""
    found = GROUPS.get(view, record.id, group.index)
    if found is None:
        raise Unavailable(f"the first weights of {group.name} are not on the chain yet")
    return found


def _called(
    what: str,
    name: str | None,
    records: Sequence[K],
    name_of: Callable[[K], str],
    codes: tuple[ErrorCode, ErrorCode],
    remedy: str,
) -> K:
    unknown, ambiguous = codes
    if not records:
        raise RpcError(unknown, f"there is no {what} yet; {remedy}")
    if name is None:
        if len(records) > 1:
            names = _listed(name_of(record) for record in records)
            raise RpcError(ambiguous, f"there are several; name one {what}: {names}")
        return records[0]
    found = [r for r in records if name_of(r) == name or r.id.hex() == name.lower()]
    if not found:
        known = {name_of(record) for record in records}
        hint = nearest(name, known) or f"; there are: {_listed(known)}"
        raise RpcError(unknown, f"no {what} is called {name!r}{hint}")
    if len(found) > 1:
        ids = _listed(record.id.hex() for record in found)
        raise RpcError(
            ambiguous, f"several are called {name!r}; give the block id of one: {ids}"
        )
    return found[0]


def _listed(names: Iterable[str]) -> str:
    known = sorted(set(names))
    more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
    return ", ".join(known[:MAX_NAMED]) + more
