"""The types of Python clients, made from the declarations.

``python -m blyan_proto.rpc.stubs`` prints blyanctl/nouns.pyi: each noun twice, for
blocking programs and for trio.
"""

from __future__ import annotations

import keyword
import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Union

from blyan_proto.rpc.methods import NOUNS, methods_of
from blyan_proto.rpc.records import Field, fields_of
from blyan_proto.rpc.spec import Method

_HEAD = '''"""Made from the declarations by `make docs`; do not edit."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from blyan_proto.rpc import {modules}
from blyan_proto.rpc.spec import JsonObject, Method
from blyanctl.client import Stream
from blyanctl.trio_client import TaskAnswer

T = TypeVar("T")
R = TypeVar("R")

class Answer(Generic[T, R]):
    def __init__(self, method: Method, stream: Stream) -> None: ...
    def __iter__(self) -> Iterator[T]: ...
    @property
    def result(self) -> R: ...

def params_of(
    method: Method, places: tuple[Any, ...], named: dict[str, Any]
) -> JsonObject: ...
'''


def stubs() -> str:
    """Return the whole of nouns.pyi."""
    modules: set[str] = set()
    body = [
        *_nouns("Nouns", ""),
        *_nouns("TaskNouns", "Task"),
    ]
    for noun in NOUNS:
        for prefix in ("", "Task"):
            body += [f"class {prefix}{noun.title()}:"]
            body += [*map("    {}".format, _verbs(noun, prefix, modules)), ""]
    head = _HEAD.format(modules=", ".join(sorted(modules)))
    return "\n".join([head, *body]).rstrip() + "\n"


def _nouns(name: str, prefix: str) -> Iterator[str]:
    yield f"class {name}:"
    for noun in NOUNS:
        yield f"    {noun}: {prefix}{noun.title()}"
    yield "    def invoke(self, method: Method, params: JsonObject) -> Any: ..."
    yield ""


def _verbs(noun: str, prefix: str, modules: set[str]) -> Iterator[str]:
    for method in methods_of(noun).values():
        verb = method.verb + ("_" if keyword.iskeyword(method.verb) else "")
        params = ", ".join(["self", *_params(method, modules)])
        result = _type(method.result, modules)
        start = "def"
        if method.streams is not None:
            kind = "TaskAnswer" if prefix else "Answer"
            result = f"{kind}[{_type(method.streams, modules)}, {result}]"
        elif prefix:
            start = "async def"
        yield f"{start} {verb}({params}) -> {result}:"
        yield f'    """{method.summary}"""'


def _params(method: Method, modules: set[str]) -> Iterator[str]:
    hints = typing.get_type_hints(method.params, include_extras=True)
    fields = fields_of(method.params)
    places = [field for field in fields if field.about.positional]
    named = [field for field in fields if not field.about.positional]

    def spelled(field: Field) -> str:
        default = "" if field.required else " = ..."
        return f"{field.name}: {_type(hints[field.name], modules)}{default}"

    yield from map(spelled, places)
    if named:
        yield "*"
        yield from map(spelled, named)


def _type(annotation: Any, modules: set[str]) -> str:
    """Return how a stub spells a type of a declaration."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(args[0], modules)
    if origin in (Union, types.UnionType):
        return f"{_type(args[0], modules)} | None"
    if origin is list:
        return f"list[{_type(args[0], modules)}]"
    if origin is dict:
        return "dict[str, Any]"
    if annotation.__module__ == "builtins":
        return str(annotation.__name__)
    module = annotation.__module__.rpartition(".")[2]
    modules.add(module)
    return f"{module}.{annotation.__name__}"


if __name__ == "__main__":
    sys.stdout.write(stubs())
