"""The last adopted versions of each model, found by what a span's request names."""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.constants import VERSIONS_SERVED
from blyan_proto.protocols.span import Open, versions_digest
from blyan_tile.layout import Layout
from blyand.errors import StaleVersion
from blyand.inference.pins import Heads, Pins
from blyand.rules.records import MODELS, ModelRecord
from blyand.rules.view import View


class Editions:
    """Adopted heads, the newest and those before it. Use it from the loop only."""

    def __init__(self, view: Callable[[], View], pins: Pins) -> None:
        self._view = view
        self._pins = pins
        self._known: dict[bytes, list[Heads]] = {}  # oldest first
        self._seen: dict[bytes, int] = {}  # by model: the height of its last adoption

    def update(self) -> None:
        """Take in what was adopted. Called after every finalised checkpoint."""
        for record in MODELS.scan(self._view()):
            self._take(record)

    def find(self, request: Open) -> Heads:
        """Return the heads whose versions of the request's layers are those it names.

        StaleVersion when none of the last adoptions has them.
        """
        for heads in reversed(self._known.get(request.model, ())):
            if name_of(heads, request.first, request.end) == request.versions:
                return heads
        raise StaleVersion("these versions of the layers are not served here")

    def _take(self, record: ModelRecord) -> None:
        if record.weights < record.groups:
            return
        if self._seen.get(record.id) == record.adopted_height:
            return
        self._seen[record.id] = record.adopted_height
        heads = self._pins.newest(record.id)
        known = self._known.setdefault(record.id, [])
        if not known or known[-1].roots != heads.roots:
            known.append(heads)
            del known[:-VERSIONS_SERVED]


def name_of(heads: Heads, first: int, end: int) -> bytes:
    """Return the digest that names the versions of the layers first, …, end - 1."""
    roots = [heads.roots[group] for group in groups_between(heads.layout, first, end)]
    return versions_digest(heads.model, first, end, roots)


def groups_between(layout: Layout, first: int, end: int) -> list[int]:
    """Return the indices of all groups of the layers first, …, end - 1, ascending."""
    return [
        group.index
        for group in layout.groups
        if group.layer is not None and first <= group.layer < end
    ]
