"""client.NOUN.VERB(…) for every declared method. Types stand in nouns.pyi, which
`blyan_proto.rpc.stubs` makes from the declarations.

A verb takes its params by name, and by place those that the command line takes so; a
verb that is a word of Python ends in an underscore, as in `client.model.import_`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from blyan_proto.rpc.methods import NOUNS, find, methods_of
from blyan_proto.rpc.records import fields_of, nearest, write_record
from blyan_proto.rpc.spec import JsonObject, Method

if TYPE_CHECKING:
    from blyanctl.client import Stream


class Nouns(ABC):
    """Something with a noun for each part of a daemon."""

    @abstractmethod
    def invoke(self, method: Method, params: JsonObject) -> Any:
        """Return the typed result of one method, or what streams it."""

    def __getattr__(self, name: str) -> Noun:
        if name not in NOUNS:
            raise AttributeError(f"no noun is called {name!r}{nearest(name, NOUNS)}")
        return Noun(self, name)


class TaskNouns(Nouns):
    """The same, for trio: results are awaited, streams are entered."""


class Noun:
    """The methods of one noun."""

    def __init__(self, nouns: Nouns, name: str) -> None:
        self._nouns, self._name = nouns, name

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        method = find(f"{self._name}.{verb.removesuffix('_')}")
        if method is None:
            verbs = [one.verb for one in methods_of(self._name).values()]
            hint = nearest(verb, verbs)
            raise AttributeError(f"{self._name} has no verb {verb!r}{hint}")
        declared = method

        def call(*places: Any, **named: Any) -> Any:
            return self._nouns.invoke(declared, params_of(declared, places, named))

        call.__name__, call.__doc__ = verb, method.summary
        return call


def params_of(
    method: Method, places: tuple[Any, ...], named: dict[str, Any]
) -> JsonObject:
    """Return typed params as JSON. TypeError and Mismatch as for any function."""
    fields = fields_of(method.params)
    positional = [field.name for field in fields if field.about.positional]
    if len(places) > len(positional):
        most = f"at most {len(positional)} params by place"
        raise TypeError(f"{method.name} takes {most}, not {len(places)}")
    given = dict(zip(positional, places))
    if twice := given.keys() & named.keys():
        raise TypeError(f"{method.name}: {min(twice)} is given twice")
    params = write_record(method.params, method.params(**given, **named))
    return {name: value for name, value in params.items() if value is not None}


class Answer:
    """The items of one call as they come; `result` once they have all come."""

    def __init__(self, method: Method, stream: Stream) -> None:
        self._method, self._stream = method, stream

    def __iter__(self) -> Iterator[Any]:
        return map(self._method.read_item, self._stream)

    @property
    def result(self) -> Any:
        """The result; waits for it, dropping items, if they were not all taken."""
        return self._method.read_result(self._stream.result)
