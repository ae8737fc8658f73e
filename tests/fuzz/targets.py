"""One target per decoder of foreign bytes: how to decode, how to encode again, valid samples.

A target's decoder may raise ProtocolError and nothing else, and what it returns must
encode to the bytes that came in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import trio
import trio.testing

from blyan_proto import codec, merkle
from blyan_proto.block import sending
from blyan_proto.block.block import (
    MAX_BLOCK_BYTES,
    Block,
    check_wellformed,
    decode_block,
    encode_block,
)
from blyan_proto.block.data import MAX_INDEX_BYTES, ArchiveIndex
from blyan_proto.block.economy import Evidence
from blyan_proto.block.header import Header
from blyan_proto.block.ledger import Quote
from blyan_proto.block.model import SignedClaim
from blyan_proto.block.payload import KINDS, decode_payload, encode_payload
from blyan_proto.checkpoint import (
    MAX_FINAL_CHECKPOINT_BYTES,
    FinalCheckpoint,
    Proposal,
    Receipts,
    SignedProposal,
    Vote,
)
from blyan_proto.errors import DecodeError, ProtocolError
from blyan_proto.framing import FrameReader, frame
from blyan_proto.genesis import MAX_GENESIS_BYTES, Genesis
from blyan_proto.protocols import (
    audit,
    blobs,
    blocks,
    calls,
    cosign,
    delta,
    edge,
    expert,
    hello,
    providers,
    reach,
    span,
    sync,
    votes,
)
from blyan_proto.protocols.result import ResultCode
from blyan_proto.rpc import jsonrpc
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.topics import RECEIPT
from blyan_tile import checkpoint, compress, tblock
from blyand.errors import NotHere, Unavailable
from blyand.net.mux.events import Received
from blyand.net.mux.machine import Machine
from blyand.net.stream import MessageStream
from blyand.net.traffic import Traffic
from blyand.protocols.blobs import Conversation
from blyand.protocols.blobs import serve as serve_blobs
from blyand.protocols.uploads import Uploads
from blyand.rules.chain.effects import Lock
from blyand.rules.chain.reconcile import MAX_ROUNDS, Comparison, IdSet, answer
from blyand.rules.trust.evidence import FalseEvidence, prove
from tests.fuzz import (
    agreement_targets,
    expert_targets,
    http_targets,
    language_targets,
    membership_targets,
    packed_targets,
    span_targets,
    state_targets,
)
from tests.sim.network import InlineLane
from tests.unit.daemon.stream_world import Transport
from tests.vectors import make_mux
from tests.vectors import make_proto as made

Decode = Callable[[bytes], Any]


@dataclass(frozen=True)
class Target:
    """One decoder. `encode` None: what comes out has no canonical bytes."""

    decode: Decode
    encode: Callable[[Any], bytes] | None
    samples: tuple[bytes, ...]

    def check(self, raw: bytes) -> bool:
        """True if `raw` decodes; AssertionError or whatever the decoder lets through."""
        try:
            value = self.decode(raw)
        except ProtocolError:
            return False
        if self.encode is not None:
            assert self.encode(value) == raw, f"not canonical: {raw.hex()}"
        return True


def message(cls: type, limit: int, *values: Any) -> Target:
    return Target(
        lambda raw: codec.decode(cls, raw, limit),
        codec.encode,
        tuple(codec.encode(value) for value in values),
    )


def choice(members: codec.Choice, limit: int, *names: str) -> Target:
    return Target(
        lambda raw: members.decode(raw, limit),
        members.encode,
        tuple(made.encode_message(name) for name in names),
    )


def sample(name: str) -> Any:
    return made.MESSAGES[name][0]


def payload(code: int) -> Target:
    return Target(
        lambda raw: decode_payload(code, raw),
        encode_payload,
        (made.BLOCKS[KINDS[code].name].payload,),
    )


def frames(raw: bytes) -> list[bytes]:
    """Split a stream that arrives three bytes at a time."""
    reader, found = FrameReader(4096), []
    for place in range(0, len(raw), 3):
        reader.feed(raw[place : place + 3])
        while (body := reader.take()) is not None:
            found.append(body)
    if reader.partial:
        raise DecodeError("the stream ends in a frame")
    return found


def call_frame(from_client: bool) -> Target:
    """A frame on a stream of calls, as the other side reads it."""

    def read(raw: bytes) -> tuple[calls.Kind, int, bytes]:
        kind, number = calls.read_head(raw[: calls.HEAD_BYTES], from_client)
        body = raw[calls.HEAD_BYTES :]
        if kind is calls.Kind.REFUSAL:
            assert calls.refusal(*calls.read_refusal(body)) == body
        return kind, number, body

    kinds = [k for k in calls.Kind if (k in calls.FROM_CLIENT) is from_client]
    bodies = {calls.Kind.REFUSAL: calls.refusal(ResultCode.BUSY, "é")}
    return Target(
        read,
        lambda frame: calls.head(*frame[:2]) + frame[2],
        tuple(calls.head(kind, 7) + bodies.get(kind, b"") for kind in kinds),
    )


def request_line(raw: bytes) -> list[Any]:
    """What a server does with the bytes of a client."""
    reader = jsonrpc.LineReader()
    reader.feed(raw)
    found = []
    while (line := reader.take()) is not None:
        found.append(jsonrpc.parse_requests(line))
    return found


def reply_line(raw: bytes) -> Any:
    """What a client does with the bytes of a server; it expects ValueError."""
    try:
        return jsonrpc.parse_reply(raw)
    except ValueError as error:
        raise DecodeError(str(error)) from error


def proven(raw: bytes) -> None:
    """Evidence, and what it shows."""
    try:
        prove(codec.decode(Evidence, raw, MAX_BLOCK_BYTES), made.NETWORK)
    except FalseEvidence as error:
        raise DecodeError(str(error)) from error


def proven_log(raw: bytes) -> None:
    """A learner's answer, and what it proves."""
    shown = codec.decode(audit.Shown, raw, audit.MAX_ANSWER_BYTES)
    ask = sample("ask")
    audit.check_shown(ask, shown, made.KEY.account, made.KEY.public, made.NETWORK)


def outline(raw: bytes) -> tblock.Outline:
    rest = raw[tblock.HEADER_BYTES :]
    leaves = tuple(rest[i : i + 32] for i in range(0, len(rest), 32))
    return tblock.parse_outline(raw[: tblock.HEADER_BYTES], b"", leaves)


def outline_bytes(parsed: tblock.Outline) -> bytes:
    return parsed.header + parsed.quant + b"".join(parsed.leaves)


def signature(raw: bytes) -> None:
    """A key and a signature over a fixed statement."""
    if len(raw) != 97:  # their types fix the lengths
        raise DecodeError("not a key and a signature")
    check_signature(Purpose.HELLO, made.NETWORK, made.GREETING, raw[:33], raw[33:])


def told_by_a_donor(raw: bytes) -> None:
    """What a donor sends to whoever asked it for leaf 0 of ten bytes."""

    async def read() -> None:
        async with talking(raw) as stream:
            asking = Conversation(stream, bytes(32))
            await asking.ask(0, 1)
            await asking.leaf(0, memoryview(bytearray(10)))

    trio.run(read)


def asked_by_a_client(raw: bytes) -> None:
    """What a client sends to a node without blobs."""

    class Nothing:
        def outline(self, root: bytes) -> tblock.Outline:
            raise NotHere("no blob is here")

    async def answer() -> None:
        async with talking(raw) as stream:
            await serve_blobs(Nothing(), InlineLane(), Uploads())(stream)

    trio.run(answer)


@asynccontextmanager
async def talking(raw: bytes) -> AsyncIterator[MessageStream]:
    """Give a stream whose other side sent `raw` and finished; what it cannot is no fault."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(raw)
    await theirs.send_eof()
    transport = Transport(ours, {"reset": False})
    try:
        yield MessageStream(transport, "peer", blobs.PROTOCOL_ID, Traffic())
    except Unavailable:
        pass


def proof(raw: bytes) -> None:
    """The proof of leaf 3 of 5 and its root."""
    parts = [raw[i : i + 32] for i in range(0, len(raw), 32)]
    merkle.verify(LEAVES[3], 3, 5, parts[:-1], parts[-1] if parts else b"")


def comparison(raw: bytes) -> None:
    """A server that answers every request of a comparison with the same bytes."""
    walk = Comparison(IdSet(LEAVES))
    for turn in range(MAX_ROUNDS + 1):
        if walk.request() is None:
            return
        walk.answer(codec.decode(blocks.Compared, raw, blocks.MAX_FRAME_BYTES))
    raise AssertionError("it goes on for ever")


def comparison_served(raw: bytes) -> None:
    """A client's request, answered within the bounds."""
    request = blocks.REQUEST.decode(raw, blocks.MAX_REQUEST_BYTES)
    if isinstance(request, blocks.Compare):
        held = codec.encode(answer(IdSet(LEAVES), request))
        assert len(held) <= blocks.MAX_FRAME_BYTES


def mux(initiator: bool) -> Callable[[bytes], None]:
    """A peer's bytes in pieces of seven, answered as they come."""

    def converse(raw: bytes) -> None:
        side = Machine(initiator)
        for place in range(0, len(raw), 7):
            for event in side.receive(raw[place : place + 7], 0.0):
                if isinstance(event, Received):
                    side.consumed(event.stream, len(event.body))
            side.take(1 << 20)

    return converse


MUX_STEPS = [bytes.fromhex(step["bytes"]) for step in make_mux.build()["conversation"]]

ENDLESS_ANSWER = codec.encode(
    blocks.Compared((blocks.Held(9, (), (blocks.sum_of(1000, 1),) * 16),))
)
EMPTY_ANSWER = codec.encode(blocks.Compared((blocks.Held(0, (), ()),)))
LEAVES = [made.hash_of(f"leaf {i}") for i in range(5)]
SHAPE = (24, 16)
TENSOR = np.arange(24 * 16, dtype=np.float32).reshape(SHAPE) / 64


def encoded_tile(raw: bytes) -> None:
    values = compress.decode(raw, SHAPE)
    assert values.shape == SHAPE and np.isfinite(values.astype(np.float32)).all()
    assert compress.norm_squared(raw, SHAPE)[0] >= 0


SAFETENSORS = (
    b'{"__metadata__": {"format": "pt"}, '
    b'"a": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [8, 24]}, '
    b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
)
SIGNED = made.KEY.public + sample("hello").signature


def wellformed(raw: bytes) -> Block:
    block = decode_block(raw)
    check_wellformed(block)
    return block


TARGETS: dict[str, Target] = {
    "block": Target(
        wellformed, encode_block, tuple(map(encode_block, made.BLOCKS.values()))
    ),
    "header": message(
        Header, MAX_BLOCK_BYTES, *(block.header for block in made.BLOCKS.values())
    ),
    "genesis": message(Genesis, MAX_GENESIS_BYTES, made.GENESIS),
    "final_checkpoint": message(
        FinalCheckpoint, MAX_FINAL_CHECKPOINT_BYTES, made.FINAL
    ),
    "vote": message(Vote, MAX_BLOCK_BYTES, made.vote(None)),
    "signed_proposal": message(
        SignedProposal, MAX_BLOCK_BYTES, made.bare_proposal(made.hash_of("one"))
    ),
    "evidence": Target(
        proven, None, tuple(encode_payload(one) for one in made.EVIDENCE)
    ),
    "signed_claim": message(
        SignedClaim,
        MAX_BLOCK_BYTES,
        SignedClaim(made.UPDATE.claim, made.UPDATE.cosignatures[0]),
    ),
    "quote": message(Quote, MAX_BLOCK_BYTES, made.SIGNED_QUOTE),
    "archive_index": message(ArchiveIndex, MAX_INDEX_BYTES, made.INDEX),
    "hello": message(hello.Hello, hello.MAX_MESSAGE_BYTES, sample("hello")),
    "known_peers": message(
        hello.KnownPeers, hello.MAX_MESSAGE_BYTES, sample("known_peers")
    ),
    "dial back": message(reach.DialBack, reach.MAX_MESSAGE_BYTES, sample("dial_back")),
    "dialled": message(reach.Dialled, reach.MAX_MESSAGE_BYTES, sample("dialled")),
    "providers request": choice(
        providers.REQUEST, providers.MAX_REQUEST_BYTES, "provide", "find"
    ),
    "kept": message(providers.Kept, providers.MAX_ANSWER_BYTES, sample("kept")),
    "found": message(providers.Found, providers.MAX_ANSWER_BYTES, sample("found")),
    "vote message": choice(votes.MESSAGE, votes.MAX_MESSAGE_BYTES, "holdings"),
    "proposal": message(Proposal, votes.MAX_PROPOSAL_BYTES, made.PROPOSAL),
    "lock": message(
        Lock, MAX_FINAL_CHECKPOINT_BYTES, Lock(1, made.CHECKPOINT, made.FINAL.votes)
    ),
    "blocks request": choice(
        blocks.REQUEST,
        blocks.MAX_REQUEST_BYTES,
        "get_blocks",
        "compare",
        "compare_deeper",
    ),
    "blocks": message(blocks.Blocks, blocks.MAX_FRAME_BYTES, sample("blocks")),
    "compared": message(blocks.Compared, blocks.MAX_FRAME_BYTES, sample("compared")),
    "comparison": Target(comparison, None, (EMPTY_ANSWER, ENDLESS_ANSWER)),
    "comparison served": Target(
        comparison_served,
        None,
        (made.encode_message("compare"), made.encode_message("compare_deeper")),
    ),
    "sync request": choice(
        sync.REQUEST,
        sync.MAX_REQUEST_BYTES,
        "get_checkpoints",
        "get_handovers",
        "get_validators",
        "get_offers",
        "get_manifest",
        "get_part",
        "get_headers",
    ),
    "offers": message(sync.Offers, sync.MAX_ANSWER_BYTES, sample("offers")),
    "headers": message(sync.Headers, sync.MAX_ANSWER_BYTES, sample("headers")),
    "checkpoints": message(
        sync.Checkpoints, sync.MAX_ANSWER_BYTES, sample("checkpoints")
    ),
    "blobs request": choice(
        blobs.REQUEST, blobs.MAX_REQUEST_BYTES, "get_outline", "get_leaves"
    ),
    "outline message": message(
        blobs.OutlineOf, blobs.MAX_ANSWER_BYTES, sample("outline")
    ),
    "blobs donor": Target(
        told_by_a_donor,
        None,
        (
            frame(b"\0") + frame(codec.encode(blobs.Leaf(0, b"some bytes"))),
            frame(bytes([ResultCode.PRUNED])),
        ),
    ),
    "blobs client": Target(
        asked_by_a_client,
        None,
        tuple(
            frame(made.encode_message(name)) for name in ("get_outline", "get_leaves")
        ),
    ),
    "leaf": message(blobs.Leaf, blobs.MAX_ANSWER_BYTES, sample("leaf")),
    "expert request": choice(
        expert.REQUEST, expert.MAX_MESSAGE_BYTES, "forward", "forward_bf16"
    ),
    "expert answer": choice(expert.ANSWER, expert.MAX_MESSAGE_BYTES, "outputs"),
    "span request": choice(span.REQUEST, span.MAX_MESSAGE_BYTES, "open", "step", "end"),
    "span answer": choice(
        span.ANSWER, span.MAX_MESSAGE_BYTES, "opened", "stepped", "ended"
    ),
    "call frame of a client": call_frame(True),
    "call frame of a server": call_frame(False),
    "delta request": choice(delta.REQUEST, delta.MAX_BUNDLE_BYTES, "bundle"),
    "delta answer": choice(delta.ANSWER, delta.MAX_BUNDLE_BYTES, "receipt"),
    "edge request": choice(edge.REQUEST, edge.MAX_PARCEL_BYTES, "parcel", "get_pieces"),
    "edge answer": choice(edge.ANSWER, edge.MAX_PIECES_BYTES, "replies", "pieces"),
    "audit request": choice(audit.REQUEST, audit.MAX_REQUEST_BYTES, "ask"),
    "audit answer": choice(audit.ANSWER, audit.MAX_ANSWER_BYTES, "shown", "absent"),
    "audit proof": Target(proven_log, None, (codec.encode(sample("shown")),)),
    "cosign request": choice(cosign.REQUEST, cosign.MAX_REQUEST_BYTES, "draft"),
    "cosign answer": choice(
        cosign.ANSWER, cosign.MAX_ANSWER_BYTES, "cosigned", "declined"
    ),
    "receipts": message(Receipts, RECEIPT.max_bytes, made.RECEIPTS),
    "framing": Target(
        frames,
        lambda bodies: b"".join(map(frame, bodies)),
        (frame(b"") + frame(b"abc") + frame(bytes(300)),),
    ),
    "mux of a dialler": Target(
        mux(False), None, (MUX_STEPS[0] + MUX_STEPS[2], MUX_STEPS[2] + MUX_STEPS[7])
    ),
    "mux of a listener": Target(mux(True), None, (MUX_STEPS[4] + MUX_STEPS[6],)),
    "jsonrpc request": Target(
        request_line,
        None,
        (
            jsonrpc.line(jsonrpc.request(1, "node.status", {})),
            jsonrpc.line([jsonrpc.request("a", "infer.generate", {"prompt": "é"})]),
            b"[" * 5000 + b"\n",
        ),
    ),
    "jsonrpc reply": Target(
        reply_line,
        None,
        (
            jsonrpc.line(jsonrpc.result(1, {"peers": []})),
            jsonrpc.line(jsonrpc.item(1, {"text": "a"})),
            b'{"a":' * 5000,
        ),
    ),
    "http connection": Target(
        http_targets.connection, None, (http_targets.HTTP, http_targets.CHUNKED)
    ),
    "http completion": Target(
        http_targets.completion, None, (http_targets.COMPLETION,)
    ),
    "http chat": Target(
        http_targets.chat, None, (http_targets.CHAT, http_targets.CHAT_FORMAT)
    ),
    "http tool calls": Target(http_targets.answer_with_calls, None, http_targets.CALLS),
    "signature": Target(signature, None, (SIGNED,)),
    "merkle proof": Target(
        proof, None, (b"".join(merkle.prove(LEAVES, 3)) + merkle.root(LEAVES),)
    ),
    "safetensors header": Target(
        lambda raw: checkpoint.parse_header(raw, "file", 8 + len(raw) + 24),
        None,
        (SAFETENSORS, b'{"a": ' * 5000),
    ),
    "safetensors index": Target(
        checkpoint.parse_index,
        None,
        (b'{"metadata": {}, "weight_map": {"a": "x.safetensors"}}',),
    ),
    "tblock outline": Target(
        outline,
        outline_bytes,
        tuple(
            outline_bytes(tblock.outline_of(array))
            for array in (TENSOR, np.zeros(300_000, np.uint8), np.zeros(0, np.uint8))
        ),
    ),
    "delta codec": Target(
        encoded_tile,
        None,
        tuple(
            compress.encode(*sending.parse(form), TENSOR)[0]
            for form in "DENSE LR4:4 SC:64/1 SC:900/2 Q:1 Q:8 LRC:9 ROWS:LR4/3 ROWS:Q/4".split()
        ),
    ),
    **{name: Target(*parts) for name, parts in agreement_targets.TARGETS.items()},
    **{name: Target(*parts) for name, parts in state_targets.TARGETS.items()},
    **{name: Target(*parts) for name, parts in expert_targets.TARGETS.items()},
    **{name: Target(*parts) for name, parts in packed_targets.TARGETS.items()},
    **{name: Target(*parts) for name, parts in span_targets.TARGETS.items()},
    **{name: Target(*parts) for name, parts in language_targets.TARGETS.items()},
    **{name: Target(*parts) for name, parts in membership_targets.TARGETS.items()},
    **{f"payload {kind.name}": payload(code) for code, kind in KINDS.items()},
}
