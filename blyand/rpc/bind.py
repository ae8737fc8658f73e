"""Declared methods <-> the functions that answer them: each has exactly one.

`daemon.py` makes one `Answers`, hands it to the modules by noun, and the server checks
it before the socket exists: a declaration without an answer, or an answer without a
declaration, is a bug of ours and stops the start.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from blyan_proto.rpc.records import nearest
from blyan_proto.rpc.spec import Method, check_declaration

Emit = Callable[[Any], Awaitable[None]]  # takes one streamed item; waits for the reader
Answer = Callable[
    ..., Awaitable[Any]
]  # (params) -> result, or (params, emit) -> result
A = TypeVar("A", bound=Answer)


class BindError(Exception):
    """Declarations and answers do not match."""


class Answers:
    """The answer to every declared method of one daemon."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods
        self._answers: dict[str, Answer] = {}

    def __call__(self, method: Method) -> Callable[[A], A]:
        """Return a decorator that binds an async function as the answer to `method`.

        The function takes the params record, and of a streaming method also `emit`.
        It returns the result record or raises RpcError, Unavailable or LocalFault.
        BindError if the method is not declared here, is bound, or takes other arguments.
        """

        def bind(answer: A) -> A:
            if self.methods.get(method.name) is not method:
                hint = nearest(method.name, self.methods)
                raise BindError(f"{method.name} is not a declared method{hint}")
            if method.name in self._answers:
                raise BindError(f"{method.name} has two answers")
            takes = len(inspect.signature(answer).parameters)
            wants = 1 if method.streams is None else 2
            if takes != wants:
                raise BindError(
                    f"the answer to {method.name} takes {takes} arguments, not {wants}"
                )
            self._answers[method.name] = answer
            return answer

        return bind

    def check(self) -> None:
        """BindError unless every declared method can travel and has its answer."""
        if unbound := sorted(self.methods.keys() - self._answers.keys()):
            raise BindError(f"no answer to {', '.join(unbound)}")
        for method in self.methods.values():
            check_declaration(method)

    def __getitem__(self, name: str) -> Answer:
        return self._answers[name]
