"""The same client for programs in trio; only they import this, and need trio.

    async with Client() as client:
        print((await client.node.status()).peers)
        async with client.infer.generate("Once", max_tokens=64) as answer:
            async for token in answer:
                print(token.text, end="")
        print(answer.result.timings)

Each call has a connection of its own, so any number may be under way at once, and one
that is left or cancelled ends in the daemon, too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Generic, TypeVar

import trio

from blyan_proto.errors import LimitExceeded
from blyan_proto.rpc import jsonrpc
from blyan_proto.rpc.spec import JsonObject, Method
from blyanctl.client import (
    GRACE_S,
    RECEIVE_BYTES,
    NoAnswer,
    NoDaemon,
    home_directory,
    socket_path,
    unreachable,
)
from blyanctl.nouns import TaskNouns

T = TypeVar("T")
R = TypeVar("R")


class Client(TaskNouns):
    """The daemon of one home; connects at every call."""

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """`timeout_s` bounds a call; by default its method's deadline, and a little."""
        self.home = home_directory(home)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def invoke(self, method: Method, params: JsonObject) -> Any:
        """Return the coroutine of one call, or the TaskAnswer that streams it."""
        answer: TaskAnswer[Any, Any] = TaskAnswer(self, method, params)
        return answer if method.streams is not None else self._call(answer)

    async def _call(self, answer: TaskAnswer[Any, Any]) -> Any:
        async with answer:
            async for _ in answer:
                pass
        return answer.result

    def deadline_s(self, method: Method) -> float:
        """Return the trio time at which a call that begins now is given up."""
        timeout_s = self._timeout_s
        if timeout_s is None and method.deadline_s is not None:
            timeout_s = method.deadline_s + GRACE_S
        return float("inf") if timeout_s is None else trio.current_time() + timeout_s

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[trio.SocketStream]:
        """Give a connection until the block ends. NoDaemon."""
        try:
            stream = await trio.open_unix_socket(socket_path(self.home))
        except OSError as error:
            raise unreachable(self.home, error) from None
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)


class TaskAnswer(Generic[T, R]):
    """The items of one call as they come; `result` once they have all come.

    Enter it to ask; leaving it early ends the call in the daemon. RpcError as the daemon
    says, NoDaemon, NoAnswer.
    """

    def __init__(self, client: Client, method: Method, params: JsonObject) -> None:
        self._client, self._method, self._params = client, method, params
        self._held = AsyncExitStack()
        self._lines = jsonrpc.LineReader(jsonrpc.MAX_REPLY_BYTES)
        self._result: R | None = None

    async def __aenter__(self) -> TaskAnswer[T, R]:
        self._until_s = self._client.deadline_s(self._method)
        request = jsonrpc.request(1, self._method.name, self._params)
        async with AsyncExitStack() as opening:
            self._stream = await opening.enter_async_context(self._client.connected())
            with suppress(trio.BrokenResourceError):
                # It may have said why before it hung up: the reader finds out.
                await self._stream.send_all(jsonrpc.line(request))
            self._held = opening.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._held.aclose()

    def __aiter__(self) -> TaskAnswer[T, R]:
        return self

    async def __anext__(self) -> T:
        if self._result is not None:
            raise StopAsyncIteration
        reply = await self._reply()
        if isinstance(reply, jsonrpc.Item):
            if self._method.streams is None:
                return await self.__anext__()  # nobody asked for it
            item: T = self._method.read_item(reply.item)
            return item
        if reply.error is not None:
            raise reply.error
        self._result = self._method.read_result(reply.result)
        raise StopAsyncIteration

    @property
    def result(self) -> R:
        """The result. RuntimeError before the items have all come."""
        if self._result is None:
            raise RuntimeError("the answer is not complete: take all its items first")
        return self._result

    async def _reply(self) -> jsonrpc.Reply | jsonrpc.Item:
        home = self._client.home
        try:
            with trio.fail_at(self._until_s):
                while (line := self._lines.take()) is None:
                    received = await self._stream.receive_some(RECEIVE_BYTES)
                    if not received:
                        text = f"The daemon at {home} ended before it answered: see its log."
                        raise NoDaemon(text)
                    self._lines.feed(received)
            reply = jsonrpc.parse_reply(line)
        except trio.BrokenResourceError:
            text = f"The daemon at {home} ended before it answered: see its log."
            raise NoDaemon(text) from None
        except trio.TooSlowError:
            text = f"The daemon at {home} did not answer in time: see its log."
            raise NoAnswer(text) from None
        except (LimitExceeded, ValueError) as error:
            raise NoDaemon(f"What answers at {home} is no blyand: {error}.") from None
        assert not isinstance(reply, list)  # we send no batches
        return reply
