"""Pins: what this node keeps whatever retention says."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    BLOB_UNKNOWN,
    BLOCK_UNKNOWN,
    DATASET_AMBIGUOUS,
    DATASET_UNKNOWN,
    MODEL_AMBIGUOUS,
    MODEL_UNKNOWN,
    PIN_INVALID,
    PIN_UNKNOWN,
    PINS_FULL,
)
from blyan_proto.rpc.spec import LONG_DEADLINE_S, Id, Method, arg, declare, record

KINDS = ("model", "dataset", "block", "blob")
NAME_HELP = "name or block id of a model or dataset, id of a block, root of a blob"
ERRORS = (
    PIN_INVALID,
    PIN_UNKNOWN,
    PINS_FULL,
    BLOB_UNKNOWN,
    BLOCK_UNKNOWN,
    MODEL_UNKNOWN,
    MODEL_AMBIGUOUS,
    DATASET_UNKNOWN,
    DATASET_AMBIGUOUS,
)


@record
class AddPin:
    """Keep a model, dataset, block or blob on this node, from now on until unpinned.

    A dataset or blob that is not here is fetched. Of a model all weights, updates and
    snapshots stay that are here or come.
    """

    kind: str = arg("what it is", choices=KINDS, positional=True)
    name: str = arg(NAME_HELP, positional=True)


@record
class Pin:
    """Something that stays here."""

    kind: str = arg("model, dataset, block or blob")
    id: Id = arg("block id, or root of a blob")
    name: str = arg("name of the model or dataset, kind of the block, or empty")
    bytes: int | None = arg("bytes of the archive, payload or blob; null for a model")
    time_ms: int = arg("when it was pinned, Unix milliseconds")


add = declare(Method("pin.add", AddPin, Pin, errors=ERRORS, deadline_s=LONG_DEADLINE_S))


@record
class ListPins:
    """List what is pinned here, the newest first."""


@record
class Pins:
    """All pins of this node."""

    pins: list[Pin] = arg("pins, the newest first")


list_ = declare(Method("pin.list", ListPins, Pins))


@record
class RemovePin:
    """Let retention judge something like everything else again."""

    kind: str = arg("what it is", choices=KINDS, positional=True)
    name: str = arg(NAME_HELP, positional=True)


@record
class Unpinned:
    """What is no longer pinned."""

    kind: str = arg("model, dataset, block or blob")
    id: Id = arg("block id, or root of a blob")


remove = declare(Method("pin.remove", RemovePin, Unpinned, errors=ERRORS))
