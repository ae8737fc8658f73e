"""Requests of our own protocols that break their formats, bounds or sense."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import trio

from blyan_proto.framing import frame
from blyan_proto.protocols import blobs, blocks
from blyan_proto.protocols import calls as calls_proto
from blyan_proto.protocols import delta, expert, hello, sync
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose
from tests.functional.attacks.attacker import (
    BEHAVIOURS,
    DISCONNECTED,
    GONE,
    HUGE,
    NO_MORE,
    REFUSED,
    RESET,
    THROTTLED,
    Attacker,
    behaviour,
    ended,
    exactly,
    repeated,
)

PROTOCOLS = {
    protocol.PROTOCOL_ID.split("/")[2]: protocol.PROTOCOL_ID
    for protocol in (hello, blocks, sync, blobs, expert, delta)
}
COMPARE = blocks.Compare((blocks.Range("", bytes(16)),))
TWO = blocks.Compare((blocks.Range("a", None), blocks.Range("b", None)))
TWICE = blocks.REQUEST.encode(TWO).replace(b"\xa1b", b"\xa1a")
REFUSALS = (None, ResultCode.INVALID_REQUEST, ResultCode.BUSY, ResultCode.UNAVAILABLE)


async def refused(attacker: Attacker, protocol: str, *pieces: bytes) -> None:
    """Ask; the answer has to be a refusal or a hang-up."""
    code = await attacker.ask(protocol, *pieces)
    assert code in REFUSALS, code


def broken(name: str, what: str, raw: Callable[[], bytes]) -> None:
    """Add a behaviour that sends the same broken frame over and over."""

    async def act(attacker: Attacker) -> str:
        async with attacker.connected():
            return await repeated(
                attacker, lambda: refused(attacker, PROTOCOLS[name], raw())
            )

    act.__name__ = f"{what}_{name}"
    BEHAVIOURS[act.__name__] = act


for _name in PROTOCOLS:
    broken(_name, "huge_length", lambda: HUGE)
    broken(_name, "garbage", lambda: frame(os.urandom(200)))
broken("blobs", "nested_map", lambda: frame(b"\x92\x01" + b"\x91" * 110 + b"\x01"))
broken("blocks", "too_many_ids", lambda: frame(_many_ids()))
broken("sync", "negative_height", lambda: frame(b"\x92\x01\x92\xff\x01"))
broken("blocks", "ranges_twice", lambda: frame(TWICE))


def _many_ids() -> bytes:
    ids = b"".join(b"\xc4\x20" + bytes([n]) * 32 for n in range(256)) + b"\xc4\x20"
    return b"\x92\x01\x91\xdc\x01\x01" + ids + bytes(32)


@behaviour
async def leaves_that_no_blob_has(attacker: Attacker) -> str:
    request = blobs.GetLeaves(attacker.victim.root, 4_000_000_000, 16)
    raw = frame(blobs.REQUEST.encode(request))
    async with attacker.connected():
        return await repeated(
            attacker, lambda: refused(attacker, blobs.PROTOCOL_ID, raw)
        )


@behaviour
async def blobs_that_nobody_has(attacker: Attacker) -> str:
    """No fault each, but many: told ABSENT, and made to wait."""
    async with attacker.connected():
        for number in range(8 * attacker.patience):
            wanted = blobs.GetOutline(number.to_bytes(32, "big"))
            code = await attacker.ask(
                blobs.PROTOCOL_ID, frame(blobs.REQUEST.encode(wanted))
            )
            assert code is not ResultCode.OK
    return REFUSED


@behaviour
async def before_hello(attacker: Attacker) -> str:
    request = frame(blocks.REQUEST.encode(COMPARE))
    async with attacker.connected(hello=False):
        for _ in range(3):
            code = await attacker.ask(blocks.PROTOCOL_ID, request)
            assert code in (ResultCode.UNAVAILABLE, ResultCode.BUSY, None), code
    return REFUSED


@behaviour
async def frames_in_drops(attacker: Attacker) -> str:
    """A byte at a time on as many streams as there may be."""
    async with attacker.connected():
        streams = [await attacker.stream(delta.PROTOCOL_ID) for _ in range(5)]
        try:
            for byte in b"\x00\x10\x00\x00" + bytes(8):
                for stream in streams[:4]:
                    await stream.write(bytes([byte]))
                await trio.sleep(0.2)
        except GONE:
            return DISCONNECTED
        return await ended(streams[4])  # told BUSY at once


@behaviour
async def streams_that_are_hoarded(attacker: Attacker) -> str:
    async with attacker.connected():
        busy = 0
        for _ in range(40):
            try:
                stream = await attacker.stream(blobs.PROTOCOL_ID)
                with trio.move_on_after(0.2):
                    busy += (await exactly(stream, 5))[4] == ResultCode.BUSY
            except GONE:
                busy += 1
            if busy >= 3:
                return THROTTLED
        raise AssertionError("forty streams of one peer are served")


@behaviour
async def flood_of_requests(attacker: Attacker) -> str:
    """As many requests at once as a connection carries."""
    raw = frame(blocks.REQUEST.encode(COMPARE))
    codes: list[ResultCode | None] = []

    async def ask() -> None:
        codes.append(await attacker.ask(blocks.PROTOCOL_ID, raw))

    async with attacker.connected():
        for _ in range(attacker.patience):
            async with trio.open_nursery() as nursery:
                for _ in range(30):
                    nursery.start_soon(ask)
    assert {ResultCode.BUSY, None} & set(codes), set(codes)
    return THROTTLED


@behaviour
async def words_after_the_request(attacker: Attacker) -> str:
    """A good request, and megabytes that nobody asked for."""
    raw = frame(sync.REQUEST.encode(sync.GetCheckpoints(0, 1)))
    async with attacker.connected():
        stream = await attacker.stream(sync.PROTOCOL_ID)
        try:
            await stream.write(raw)
            for _ in range(64):
                await stream.write(bytes(60_000))
        except GONE:
            return RESET
        return await ended(stream)


@behaviour
async def checkpoints_of_the_far_future(attacker: Attacker) -> str:
    raw = frame(sync.REQUEST.encode(sync.GetCheckpoints(2**64 - 1, 65535)))
    async with attacker.connected():
        for _ in range(attacker.patience):
            await attacker.ask(sync.PROTOCOL_ID, raw)
    return REFUSED


def forward(attacker: Attacker, **changes: object) -> bytes:
    rows = expert.ExpertRows(1, bytes(32), b"\0\0")
    fields: dict[str, object] = {
        "model": attacker.victim.model,
        "numerics": expert.Numerics.REFERENCE,
        "width": 64,
        "experts": (rows,),
        "activations": bytes(256),
    }
    call = expert.Forward(**(fields | changes))  # type: ignore[arg-type]
    return frame(calls_proto.head(calls_proto.Kind.CALL, 1)) + frame(
        expert.REQUEST.encode(call)
    )


async def calls(attacker: Attacker, *raws: bytes) -> str:
    """Send calls on one stream until the victim ends it, over and over."""

    async def once() -> None:
        stream = await attacker.stream(expert.PROTOCOL_ID)
        for raw in raws:
            await stream.write(raw)
        await stream.close_write()
        with trio.fail_after(12):
            while await stream.read(65536):
                pass

    async with attacker.connected():
        for _ in range(attacker.patience):
            try:
                await once()
            except GONE:
                pass
            try:
                if attacker.muxed.is_closed:
                    return DISCONNECTED
            except GONE:
                return DISCONNECTED
    return REFUSED


@behaviour
async def experts_that_nobody_has(attacker: Attacker) -> str:
    rows = expert.ExpertRows(65535, os.urandom(32), b"\0\0")
    return await calls(attacker, forward(attacker, experts=(rows,)))


@behaviour
async def rows_beyond_the_activations(attacker: Attacker) -> str:
    rows = expert.ExpertRows(1, bytes(32), b"\xff\x0f")
    return await calls(attacker, forward(attacker, experts=(rows,)))


@behaviour
async def width_of_four_billion(attacker: Attacker) -> str:
    return await calls(attacker, forward(attacker, width=2**32 - 1))


@behaviour
async def activations_that_are_no_numbers(attacker: Attacker) -> str:
    return await calls(attacker, forward(attacker, activations=b"\xff" * 256))


@behaviour
async def one_call_twice(attacker: Attacker) -> str:
    raw = forward(attacker)
    return await calls(attacker, raw + raw)


@behaviour
async def half_a_row(attacker: Attacker) -> str:
    raw = forward(attacker).replace(b"\xc4\x02\0\0", b"\xc4\x01\0")
    return await calls(attacker, raw)


def bundle(attacker: Attacker, tile: bytes, good: bool = True) -> bytes:
    """A bundle that decodes, of a run that there is not."""
    run = bytes(32)
    one = delta.Delta(1, run, 0, 0, attacker.key.account, (bytes(32),), 1, (tile,))
    manifest = delta.Manifest(
        run,
        0,
        attacker.key.account,
        (delta.Entry(0, one.digest),),
        bytes(32),
        bytes(32),
    )
    network = attacker.victim.genesis.id
    signature = attacker.key.sign(Purpose.DELTA_BUNDLE, network, manifest)
    if not good:
        signature = bytes(63) + b"\x01"
    made = delta.Bundle(manifest, attacker.key.public, signature, (one,))
    return frame(delta.REQUEST.encode(made))


@behaviour
async def bundles_of_garbage(attacker: Attacker) -> str:
    """A compressed payload that is none; the run is not ours either."""
    async with attacker.connected():
        for codec in range(2 * attacker.patience):
            raw = bundle(attacker, bytes([codec]) + os.urandom(4000))
            await attacker.ask(delta.PROTOCOL_ID, raw)
    return REFUSED


@behaviour
async def bundles_with_a_false_signature(attacker: Attacker) -> str:
    raw = bundle(attacker, bytes(100), good=False)
    async with attacker.connected():
        return await repeated(
            attacker, lambda: refused(attacker, delta.PROTOCOL_ID, raw)
        )


@behaviour
async def bundle_of_64_megabytes_that_never_comes(attacker: Attacker) -> str:
    async with attacker.connected():
        stream = await attacker.stream(delta.PROTOCOL_ID)
        try:
            await stream.write(struct.pack("!I", delta.MAX_BUNDLE_BYTES))
            for _ in range(20):
                await stream.write(bytes(50_000))
            await stream.reset()
        except GONE:
            return DISCONNECTED
    return RESET


# Hello


@behaviour
async def hello_of_another_network(attacker: Attacker) -> str:
    async with attacker.connected(hello=False):
        await attacker.greet(network=os.urandom(32))
        return await attacker.thrown_out()


@behaviour
async def hello_with_the_key_of_another(attacker: Attacker) -> str:
    other = Attacker(attacker.victim, attacker.address)
    async with attacker.connected(hello=False):
        for _ in range(4):
            code = await attacker.greet(other.key)
            assert code in REFUSALS, code
    return REFUSED


@behaviour
async def hello_replayed(attacker: Attacker) -> str:
    """The hello that another peer said, word by word."""
    other = Attacker(attacker.victim, attacker.address)
    async with attacker.connected(hello=False):
        raw = other.hello()
        return await repeated(
            attacker, lambda: refused(attacker, hello.PROTOCOL_ID, raw, NO_MORE)
        )


@behaviour
async def no_hello(attacker: Attacker) -> str:
    async with attacker.connected(hello=False):
        return await attacker.thrown_out()


@behaviour
async def hello_with_a_poisoned_list(attacker: Attacker) -> str:
    """Peers that are not there, at addresses that nobody should dial."""
    addresses = (
        "/ip4/10.0.0.1/tcp/22",
        "/ip4/169.254.169.254/tcp/80",
        "/dns4/example.org/tcp/1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/224.0.0.1/tcp/1",
        "/ip6/::1/tcp/1",
        "nonsense",
        "/ip4/127.0.0.1/tcp/0",
    )
    peers = [
        hello.Address(Attacker(attacker.victim, "").peer_id, addresses)
        for _ in range(31)
    ]
    peers.append(hello.Address(attacker.victim.peer_id, addresses))
    async with attacker.connected(hello=False):
        code = await attacker.ask(
            hello.PROTOCOL_ID, attacker.hello(), attacker.known(*peers)
        )
        assert code is ResultCode.OK
    return REFUSED  # nothing of it is dialled; the connection is as good as any


@behaviour
async def hello_that_names_one_peer_often(attacker: Attacker) -> str:
    peers = [hello.Address(attacker.peer_id, ("/ip4/9.9.9.9/tcp/1",))] * 32
    async with attacker.connected(hello=False):
        known = attacker.known(*peers)
        for _ in range(4):
            await attacker.ask(hello.PROTOCOL_ID, attacker.hello(), known)
    return REFUSED


@behaviour
async def hello_again_and_again(attacker: Attacker) -> str:
    async with attacker.connected():
        for _ in range(3 * attacker.patience):
            if await attacker.greet() is None:
                return DISCONNECTED
    return THROTTLED


@behaviour
async def hello_that_is_far_ahead(attacker: Attacker) -> str:
    """It claims checkpoints that there are not, and serves none of them."""
    async with attacker.connected(hello=False):
        await attacker.greet(finalised=2**63, checkpoint=os.urandom(32))
        await trio.sleep(1)
    return REFUSED
