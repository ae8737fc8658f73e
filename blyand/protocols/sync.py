"""/blyan/sync/1, both ends. docs/protocols/sync.md"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from blyan_proto.block.header import SignedHeader
from blyan_proto.checkpoint import MAX_FINAL_CHECKPOINT_BYTES, FinalCheckpoint
from blyan_proto.codec import decode, encode
from blyan_proto.errors import BadProof, UnexpectedMessage
from blyan_proto.framing import frame
from blyan_proto.protocols.result import ResultCode
from blyan_proto.protocols.sync import (
    DEADLINE_S,
    MAX_ANSWER_BYTES,
    MAX_CHECKPOINTS,
    MAX_OFFERS,
    MAX_REQUEST_BYTES,
    MAX_SET_BYTES,
    PART_S,
    PROTOCOL_ID,
    REQUEST,
    Checkpoints,
    GetCheckpoints,
    GetHandovers,
    GetHeaders,
    GetManifest,
    GetOffers,
    GetPart,
    GetValidators,
    Headers,
    Offers,
)
from blyan_proto.state import (
    MAX_MANIFEST_BYTES,
    MAX_PART_BYTES,
    StateManifest,
    StatePart,
)
from blyan_proto.validators import Validators, ValidatorSet
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.net.host import Host
from blyand.net.stream import MessageStream, Serve, expect_ok
from blyand.protocols.blobs import code_of
from blyand.protocols.uploads import Uploads

T = TypeVar("T")


class Client:
    """Asks peers for what is final. Busy, NotHere, Pruned, TooSlow; ProtocolError."""

    def __init__(self, host: Host, lane: Threads | None = None) -> None:
        """`lane` decodes what is large; without one, states cannot be asked for."""
        self._host, self._lane = host, lane

    async def fetch(self, peer: str, from_height: int) -> Checkpoints:
        """Return consecutive checkpoints from `from_height` on, as many as fit."""
        return await self._checkpoints(peer, from_height, MAX_CHECKPOINTS)

    async def before(self, peer: str, height: int, count: int) -> Checkpoints:
        """Return the `count` checkpoints below `height`, or as many of them as fit."""
        first = max(1, height - min(count, MAX_CHECKPOINTS))
        return await self._checkpoints(peer, first, height - first)

    async def _checkpoints(self, peer: str, first: int, count: int) -> Checkpoints:
        def check(answer: Checkpoints) -> None:
            heights = [final.checkpoint.height for final in answer.checkpoints]
            if heights != list(range(first, first + len(heights))):
                raise UnexpectedMessage("checkpoints that were not asked for")
            if len(heights) > count:
                raise UnexpectedMessage("more checkpoints than were asked for")

        request = GetCheckpoints(first, count)
        return await self._ask(peer, request, Checkpoints, MAX_ANSWER_BYTES, check)

    async def handovers(self, peer: str, from_height: int) -> Checkpoints:
        """Return checkpoints from `from_height` on that name another next set."""

        def check(answer: Checkpoints) -> None:
            before = from_height - 1
            for final in answer.checkpoints:
                one = final.checkpoint
                is_none = one.validators_root == one.next_validators_root
                if one.height <= before or is_none:
                    raise UnexpectedMessage("checkpoints that hand over to nobody")
                before = one.height

        request = GetHandovers(from_height, MAX_CHECKPOINTS)
        return await self._ask(peer, request, Checkpoints, MAX_ANSWER_BYTES, check)

    async def validators(self, peer: str, root: bytes) -> ValidatorSet:
        """Return the validator set with that root."""

        def check(answer: Validators) -> None:
            if ValidatorSet(answer.members).root != root:
                raise BadProof("another validator set than was asked for")

        request = GetValidators(root)
        answer = await self._ask(peer, request, Validators, MAX_SET_BYTES, check)
        return ValidatorSet(answer.members)

    async def offers(self, peer: str, at_least: int) -> Offers:
        """Return the checkpoints as of which the peer has a state ready."""
        return await self._ask(peer, GetOffers(at_least), Offers, MAX_ANSWER_BYTES)

    async def manifest(self, peer: str, checkpoint: bytes) -> StateManifest:
        """Return the hashes of the chunks of a state, unchecked."""
        request = GetManifest(checkpoint)
        return await self._ask(peer, request, StateManifest, MAX_MANIFEST_BYTES)

    async def part(
        self, peer: str, checkpoint: bytes, chunk: int, after: bytes | None
    ) -> StatePart:
        """Return the next pairs of a chunk, unchecked."""
        assert self._lane is not None
        async with self._host.request(peer, PROTOCOL_ID, PART_S) as stream:
            await stream.send_message(GetPart(checkpoint, chunk, after), REQUEST)
            await stream.close_write()
            await expect_ok(stream, PART_S)
            raw = await stream.receive(MAX_PART_BYTES, PART_S)
            part: StatePart = await self._lane.run(
                decode, StatePart, raw, MAX_PART_BYTES
            )
            if (part.chunk, part.after) != (chunk, after):
                raise UnexpectedMessage("not the part that was asked for")
            return part

    async def headers(self, peer: str, ids: Sequence[bytes]) -> list[SignedHeader]:
        """Return what the peer has of some headers, signatures unchecked."""

        def check(answer: Headers) -> None:
            given = [signed.header.id for signed in answer.headers]
            if len(set(given)) != len(given) or not set(given) <= set(ids):
                raise UnexpectedMessage("headers that were not asked for")

        request = GetHeaders(tuple(ids))
        answer = await self._ask(peer, request, Headers, MAX_ANSWER_BYTES, check)
        return list(answer.headers)

    async def _ask(
        self,
        peer: str,
        request: Any,
        kind: type[T],
        limit: int,
        check: Callable[[T], None] = lambda answer: None,
    ) -> T:
        async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
            await stream.send_message(request, REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            answer: T = await stream.receive_message(kind, limit, DEADLINE_S)
            check(answer)  # here, so that the peer is blamed for it
            return answer


class Archive(Protocol):
    """What a server has of what is final. Blocking. NotHere for what it has not."""

    def range(self, from_height: int, count: int) -> Sequence[FinalCheckpoint]: ...

    def handovers(self, from_height: int, count: int) -> Sequence[FinalCheckpoint]: ...

    def members(self, root: bytes) -> ValidatorSet: ...

    def header(self, id: bytes) -> SignedHeader | None: ...


class States(Protocol):
    """The states that a server has ready. NotHere, Pruned."""

    def offers(self, at_least: int) -> Sequence[FinalCheckpoint]: ...

    def manifest(self, checkpoint: bytes) -> StateManifest: ...

    async def part(
        self, checkpoint: bytes, chunk: int, after: bytes | None
    ) -> StatePart: ...


class Newest(Protocol):
    def __call__(self) -> int: ...


def serve(
    newest: Newest, archive: Archive, states: States, lane: Threads, uploads: Uploads
) -> Serve:
    """Return the handler. `lane` reads; `uploads` bounds what peers take in bulk."""

    def fitting(finals: Sequence[FinalCheckpoint]) -> tuple[FinalCheckpoint, ...]:
        kept, size = [], 0
        for final in finals:
            size += len(encode(final))
            if size > MAX_ANSWER_BYTES - MAX_FINAL_CHECKPOINT_BYTES:
                break
            kept.append(final)
        return tuple(kept)

    def read(request: Any) -> Any:
        if isinstance(request, GetValidators):
            return Validators(archive.members(request.root).members)
        if isinstance(request, GetHeaders):
            found = map(archive.header, request.ids)
            return Headers(tuple(signed for signed in found if signed))
        assert isinstance(request, (GetCheckpoints, GetHandovers))
        count = min(request.limit, MAX_CHECKPOINTS)
        of = archive.range if isinstance(request, GetCheckpoints) else archive.handovers
        return Checkpoints(newest(), fitting(of(request.from_height, count)))

    async def answer_to(request: Any) -> Any:
        if isinstance(request, GetOffers):
            offers = states.offers(request.at_least)
            return Offers(newest(), tuple(offers)[:MAX_OFFERS])
        if isinstance(request, GetManifest):
            return states.manifest(request.checkpoint)
        return await lane.run(read, request)

    async def give_part(stream: MessageStream, request: GetPart) -> None:
        with uploads.place(stream.peer):
            part = await states.part(request.checkpoint, request.chunk, request.after)
            framed = memoryview(await lane.run(lambda: frame(encode(part))))
            await stream.send_result(ResultCode.OK)
            await uploads.send(stream, framed, [len(framed)], DEADLINE_S)

    async def serve_one(stream: MessageStream) -> None:
        request = await stream.receive_message(REQUEST, MAX_REQUEST_BYTES, DEADLINE_S)
        try:
            if isinstance(request, GetPart):
                await give_part(stream, request)
                return
            answer = await answer_to(request)
        except Unavailable as error:
            await stream.send_result(code_of(error))
            return
        await stream.send_result(ResultCode.OK)
        await stream.send_message(answer)

    return serve_one
