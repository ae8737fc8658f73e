"""An RPC method, declared once: what it takes, answers and streams, and how it fails.

From the declaration come the daemon's parameter checks, the CLI's arguments,
docs/rpc.md, the JSON Schemas and the validator of replies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blyan_proto.rpc.errors import INVALID_PARAMS, NOUN_BASES, ErrorCode, RpcError
from blyan_proto.rpc.records import (
    arg,
    fields_of,
    read_record,
    record,
    write_record,
)
from blyan_proto.rpc.values import Address, Hex, Id, JsonObject, Key, Mismatch

__all__ = [
    "Address",
    "Hex",
    "Id",
    "JsonObject",
    "Key",
    "Method",
    "Mismatch",
    "arg",
    "declare",
    "record",
]

SOCKET_NAME = "blyand.sock"  # in the home; mode 0600
DEADLINE_S = 60.0  # of an ordinary call
LONG_DEADLINE_S = 1800.0  # of one that reads or writes a whole model or dataset


@dataclass(frozen=True)
class Method:
    """One method, named ``noun.verb``.

    `params`, `result` and `streams` are records. `errors` are the codes it may answer
    beside the general and shared ones. `public` methods are reachable over HTTP.
    `deadline_s` bounds the whole call; None where the work itself has no set end.
    """

    name: str
    params: type
    result: type
    errors: tuple[ErrorCode, ...] = ()
    streams: type | None = None
    public: bool = False
    deadline_s: float | None = DEADLINE_S

    @property
    def noun(self) -> str:
        return self.name.partition(".")[0]

    @property
    def verb(self) -> str:
        return self.name.partition(".")[2]

    @property
    def summary(self) -> str:
        """The docstring of the params: what the method does."""
        return " ".join((self.params.__doc__ or "").split())

    def read_params(self, params: JsonObject) -> Any:
        """Return the params record. RpcError(INVALID_PARAMS) says what is wrong."""
        try:
            return read_record(self.params, params, complete=False)
        except Mismatch as error:
            raise RpcError(INVALID_PARAMS, f"{self.name}: {error}") from None

    def write_result(self, result: Any) -> JsonObject:
        """Return the result as JSON; Mismatch when it breaks the declaration."""
        return write_record(self.result, result)

    def write_item(self, item: Any) -> JsonObject:
        """Return one streamed item as JSON; Mismatch when it breaks the declaration."""
        return write_record(self._items(), item)

    def read_result(self, result: Any) -> Any:
        """Return the record of a reply: the validator. Mismatch says what is wrong."""
        return read_record(self.result, result, complete=True)

    def read_item(self, item: Any) -> Any:
        """Return the record of a streamed item. Mismatch says what is wrong."""
        return read_record(self._items(), item, complete=True)

    def _items(self) -> type:
        if self.streams is None:
            raise Mismatch(f"{self.name} streams nothing")
        return self.streams


def declare(method: Method) -> Method:
    """Check a declaration as far as is cheap at import, and return it.

    ValueError for a name that is not ``noun.verb`` of a known noun, or for errors that
    lie outside the noun's hundred and every other noun's.
    """
    noun, dot, verb = method.name.partition(".")
    if not dot or noun not in NOUN_BASES or not verb.isidentifier():
        raise ValueError(f"{method.name!r} is not the noun.verb of a known noun")
    if not method.summary:
        raise ValueError(f"{method.name}: the params have no docstring")
    return method


def check_declaration(method: Method) -> None:
    """Compile every type of a method; TypeError when one cannot travel as JSON."""
    for cls in (method.params, method.result, method.streams):
        if cls is not None:
            fields_of(cls)
