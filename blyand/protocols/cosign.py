"""/blyan/cosign/1, both ends: a draft of an update in, a signature out.
docs/protocols/cosign.md"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from blyan_proto.block.model import Cosignature, TileUpdate
from blyan_proto.errors import BadSignature
from blyan_proto.protocols.cosign import (
    ANSWER,
    DEADLINE_S,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Cosigned,
    Declined,
    Draft,
)
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose, check_signature
from blyand.net.host import Host
from blyand.net.identity import public_key_of
from blyand.net.stream import MessageStream, Serve, expect_ok

Answer = Cosigned | Declined


class Client:
    """Asks ranks for their signatures."""

    def __init__(self, host: Host, network: bytes) -> None:
        self._host = host
        self._network = network

    async def ask(self, peer: str, update: TileUpdate) -> Answer:
        """Show a draft to a rank; its signature, if it gave one, is checked."""
        async with self._host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
            await stream.send_message(Draft(update), REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            answer: Answer = await stream.receive_message(
                ANSWER, MAX_ANSWER_BYTES, DEADLINE_S
            )
            check_answer(answer, update, public_key_of(peer), self._network)
        return answer


def serve(network: bytes, sign: Callable[[TileUpdate], Awaitable[Answer]]) -> Serve:
    """Return the handler: checks who drafted, then asks `sign`."""

    async def answer(stream: MessageStream) -> None:
        draft: Draft = await stream.receive_message(
            REQUEST, MAX_REQUEST_BYTES, DEADLINE_S
        )
        check_draft(draft.update, public_key_of(stream.peer), network)
        signed = await sign(draft.update)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(signed, ANSWER)

    return answer


def check_draft(update: TileUpdate, sender: bytes, network: bytes) -> None:
    """Raise BadSignature unless the sender's key signed the draft."""
    (cosignature,) = update.cosignatures
    if cosignature.signer != sender:
        raise BadSignature("a draft signed by somebody else than its sender")
    _check(update, cosignature, network)


def check_answer(
    answer: Answer, update: TileUpdate, signer: bytes, network: bytes
) -> None:
    """Raise BadSignature when a signature is not the rank's over the draft's claim."""
    if isinstance(answer, Cosigned):
        _check(update, Cosignature(signer, answer.signature), network)


def _check(update: TileUpdate, cosignature: Cosignature, network: bytes) -> None:
    check_signature(
        Purpose.TILE_UPDATE,
        network,
        update.claim,
        cosignature.signer,
        cosignature.signature,
    )
