"""Frames of the multiplexer that everybody speaks, from a peer that said hello."""

from __future__ import annotations

import struct
from typing import Any

import trio

from blyan_proto.framing import frame
from blyan_proto.protocols import blobs
from tests.functional.attacks.attacker import (
    DISCONNECTED,
    GONE,
    RESET,
    THROTTLED,
    Attacker,
    behaviour,
    ended,
    let_go,
)

DATA, WINDOW, PING, GOAWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def head(kind: int, flags: int, stream: int, length: int, version: int = 0) -> bytes:
    return struct.pack("!BBHII", version, kind, flags, stream, length)


async def push(muxed: Any, raw: bytes, times: int = 1) -> str:
    """Write frames until they are all out or the victim ends the connection."""
    try:
        with trio.move_on_after(6) as scope:
            for _ in range(times):
                await muxed._write_frame(raw)
        return THROTTLED if scope.cancelled_caught else ""
    except GONE:
        return DISCONNECTED


@behaviour
async def oversized_frame(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        await push(muxed, head(DATA, 0, 1, 0xFFFFFFFF))
        return await attacker.thrown_out()


@behaviour
async def window_overrun(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        stream = await attacker.stream(blobs.PROTOCOL_ID)
        body = bytes(60_000)
        chunk = head(DATA, 0, stream.muxed_stream.stream_id, len(body)) + body
        await stream.write(b"\x00")  # half a prefix: the server waits for the rest
        if await push(muxed, chunk, 400) == DISCONNECTED or muxed.is_closed:
            return DISCONNECTED
        return await ended(stream)


@behaviour
async def many_full_windows(attacker: Attacker) -> str:
    """More bytes than anybody reads, in windows that were granted each."""
    async with attacker.connected() as muxed:
        body = bytes(62_000)
        for number in range(200):
            stream = 10_001 + 2 * number
            raw = head(WINDOW, SYN, stream, 0)
            raw += (head(DATA, 0, stream, len(body)) + body) * 3
            if await push(muxed, raw) or muxed.is_closed:
                return DISCONNECTED
        return DISCONNECTED if muxed.is_closed else RESET


@behaviour
async def flood_of_opens(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        for number in range(2000):
            if await push(muxed, head(WINDOW, SYN, 20_001 + 2 * number, 0)):
                return DISCONNECTED
        await trio.sleep(1)
        return DISCONNECTED if muxed.is_closed else RESET


@behaviour
async def flood_of_pings(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        return await push(muxed, head(PING, SYN, 0, 7) * 1000, 200) or THROTTLED


@behaviour
async def flood_of_empty_frames(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        return await push(muxed, head(DATA, 0, 1, 0) * 1000, 200) or THROTTLED


@behaviour
async def frames_of_no_kind(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        return await push(muxed, head(9, 0xFFFF, 3, 0, 200) * 1000, 200) or THROTTLED


@behaviour
async def bytes_for_no_stream(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        raw = head(DATA, 0, 99_999, 60_000) + bytes(60_000)
        return await push(muxed, raw, 50) or RESET


@behaviour
async def body_that_never_comes(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        stream = await attacker.stream()
        number = stream.muxed_stream.stream_id
        await push(muxed, head(DATA, 0, number, 60_000) + bytes(10))
        return await push(muxed, b"x") or RESET  # what follows is taken for the body


@behaviour
async def talk_after_goodbye(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        await push(muxed, head(GOAWAY, 0, 0, 1))
        return await attacker.thrown_out()


@behaviour
async def credit_without_end(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        stream = await attacker.stream()
        number = stream.muxed_stream.stream_id
        await push(muxed, head(WINDOW, 0, number, 0xFFFFFFFF), 100)
        await let_go(stream)
        return RESET


@behaviour
async def opens_and_resets(attacker: Attacker) -> str:
    async with attacker.connected() as muxed:
        for number in range(1500):
            stream = 30_001 + 2 * number
            raw = head(WINDOW, SYN, stream, 0) + head(WINDOW, RST, stream, 0)
            if told := await push(muxed, raw):
                return told
        return THROTTLED


@behaviour
async def a_reader_that_does_not_read(attacker: Attacker) -> str:
    """Asks for as much as it may, takes none of it, and asks again."""
    async with attacker.connected() as muxed:
        request = blobs.GetLeaves(attacker.victim.root, 0, 1)
        raw = frame(blobs.REQUEST.encode(request))
        streams = []
        try:
            for _ in range(12):
                stream = await attacker.stream(blobs.PROTOCOL_ID)
                await stream.write(raw)
                streams.append(stream)
        except GONE:
            return DISCONNECTED
        await trio.sleep(1)
        return DISCONNECTED if muxed.is_closed else THROTTLED
