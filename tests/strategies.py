"""Hypothesis strategies and size bounds of @message types, read off their annotations."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Annotated, Any, Union

from hypothesis import reject
from hypothesis import strategies as st

from blyan_proto.block.data import ArchiveFile, ArchiveIndex
from blyan_proto.block.economy import PROOF, Evidence, Heartbeat, LatencyReport
from blyan_proto.block.header import Header
from blyan_proto.block.ledger import DeliveryStatement, Stake
from blyan_proto.block.model import TileUpdate
from blyan_proto.codec import Range
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.expert import ExpertRows

LONGEST = 24  # items and bytes that a drawn value has beyond its least


def messages(module: ModuleType) -> Iterator[type]:
    """Yield the @message classes that `module` defines."""
    for value in vars(module).values():
        if dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
            if isinstance(value, type) and hasattr(value, "__slots__"):
                yield value


def hints_of(cls: type) -> dict[str, Any]:
    """Return field name -> annotation, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of valid values, small but reaching every bound of integers."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bound = args[1]
        if isinstance(bound, Range):
            edges = st.sampled_from((bound.low, bound.high))
            return edges | st.integers(bound.low, bound.high)
        most = min(bound.high, bound.low + LONGEST)
        if args[0] is bytes:
            return st.binary(min_size=bound.low, max_size=most)
        if args[0] is str:
            text = st.text("a/é谢😀\0", min_size=bound.low, max_size=most)
            return text.filter(
                lambda text: bound.low <= len(text.encode()) <= bound.high
            )
        item = of(typing.get_args(args[0])[0])
        return st.lists(item, min_size=bound.low, max_size=bound.low + 2).map(tuple)
    if origin in (Union, types.UnionType):
        return st.none() | of(args[0])
    if annotation is bool:
        return st.booleans()
    if issubclass(annotation, enum.IntEnum):
        return st.sampled_from(list(annotation))
    return made(annotation)


@functools.cache
def made(cls: type) -> st.SearchStrategy[Any]:
    """Return a strategy of valid values of a @message class."""
    hints = hints_of(cls)
    drawn = st.fixed_dictionaries({name: of(hint) for name, hint in hints.items()})
    return drawn.map(lambda fields: _related(cls, dict(fields)))


def _related(cls: type, fields: dict[str, Any]) -> Any:
    _RELATED.get(cls, lambda fields: None)(fields)
    if "version" in fields:
        fields["version"] = 1
    try:
        return cls(**fields)
    except ValueError:
        reject()


def _header(fields: dict[str, Any]) -> None:
    fields["parents"] = tuple(sorted(set(fields["parents"])))
    if not fields["parents"]:
        fields["height"] = 0


def _update(fields: dict[str, Any]) -> None:
    parts, offset = [], 0
    order = sorted(fields["contributions"], key=lambda part: (part.learner, part.delta))
    for part in order:
        parts.append(dataclasses.replace(part, offset=offset))
        offset += part.bytes
    fields["contributions"] = tuple(parts)
    fields["result"] = (fields["base"] + fields["result"])[: len(fields["base"])]
    fields["blob"] = (fields["blob"] or bytes(32)) if parts else None


def _index(fields: dict[str, Any]) -> None:
    files, offset = [], 0
    for file in sorted(fields["files"], key=lambda file: file.path):
        files.append(dataclasses.replace(file, offset=offset))
        offset += file.bytes
    fields["files"] = tuple(files)


def _file(fields: dict[str, Any]) -> None:
    fields["path"] = "a/" + fields["path"].replace("/", "-").replace("\0", "-") + "x"


def _evidence(fields: dict[str, Any]) -> None:
    headers, statements = PROOF.get(fields["offence"], (0, 0))
    fields["statements"] = (fields["statements"] + (b"", b""))[:statements]
    fields["headers"] = fields["headers"][:headers]


def _latencies(fields: dict[str, Any]) -> None:
    by_node = {one.node: one for one in fields["latencies"]}
    fields["latencies"] = tuple(by_node[node] for node in sorted(by_node))


def _heartbeat(fields: dict[str, Any]) -> None:
    if fields["model"] is None:
        fields["held"] = b""


def _delivery(fields: dict[str, Any]) -> None:
    usage = {one.group: one for one in fields["usage"]}
    fields["usage"] = tuple(usage[group] for group in sorted(usage))
    fields["quality_ppm"] %= 1_000_001


def _stake(fields: dict[str, Any]) -> None:
    if fields["lock_micro"]:
        fields["unlock_micro"] = 0
    elif not fields["unlock_micro"]:
        fields["unlock_micro"] = 1


def _genesis(fields: dict[str, Any]) -> None:
    fields["settings"] = ()
    trust = fields["parameters"].trust_span_ms % 86_400_000
    fields["parameters"] = dataclasses.replace(
        fields["parameters"], trust_span_ms=trust
    )
    fields["balances"] = tuple(
        {balance.account: balance for balance in fields["balances"]}.values()
    )
    fields["participants"] = fields["participants"][:1]


def _rows(fields: dict[str, Any]) -> None:
    fields["rows"] = fields["rows"][: len(fields["rows"]) // 2 * 2]


_RELATED: dict[type, Callable[[dict[str, Any]], None]] = {
    Header: _header,
    TileUpdate: _update,
    ArchiveIndex: _index,
    ArchiveFile: _file,
    Evidence: _evidence,
    Heartbeat: _heartbeat,
    DeliveryStatement: _delivery,
    Stake: _stake,
    LatencyReport: _latencies,
    Genesis: _genesis,
    ExpertRows: _rows,
}


def most_bytes(annotation: Any) -> int:
    """Return the length of the longest encoding that a type allows."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bound = args[1]
        if isinstance(bound, Range):
            return _integer(max(bound.high, -bound.low))
        if args[0] in (bytes, str):
            return _prefix(bound.high, args[0] is str) + bound.high
        item = most_bytes(typing.get_args(args[0])[0])
        return _array(bound.high) + bound.high * item
    if origin in (Union, types.UnionType):
        return most_bytes(args[0])
    if annotation is bool or issubclass(annotation, enum.IntEnum):
        return 1
    hints = hints_of(annotation)
    return _array(len(hints)) + sum(most_bytes(hint) for hint in hints.values())


def _integer(value: int) -> int:
    for bits, size in ((7, 1), (8, 2), (16, 3), (32, 5)):
        if value < 1 << bits:
            return size
    return 9


def _array(count: int) -> int:
    return 1 if count < 16 else 3 if count < 1 << 16 else 5


def _prefix(length: int, text: bool) -> int:
    if text and length < 32:
        return 1
    return 2 if length < 1 << 8 else 3 if length < 1 << 16 else 5
