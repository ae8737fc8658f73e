"""Frames of our own multiplexer, past its driver, from a peer that said hello."""

from __future__ import annotations

import logging
import struct
from typing import Any

import trio

from blyan_proto.protocols import blobs
from blyand.net.mux.frames import MAX_DATA_BYTES, Kind
from tests.functional.attacks.attacker import (
    DISCONNECTED,
    GONE,
    RESET,
    THROTTLED,
    Attacker,
    behaviour,
)

log = logging.getLogger(__name__)


def framed(
    kind: int, stream: int, body: bytes = b"", length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    return struct.pack(">II", kind << 24 | size, stream) + body


def number(value: int) -> bytes:
    return struct.pack(">I", value)


async def push(muxed: Any, raw: bytes, times: int = 1) -> str:
    """Write bytes as they are until they are all out or the connection ends."""
    try:
        with trio.move_on_after(6) as scope:
            for _ in range(times):
                await muxed.secured_conn.write(raw)
        await trio.sleep(0.3)
    except GONE:
        return DISCONNECTED
    if muxed.is_closed:
        return DISCONNECTED
    return THROTTLED if scope.cancelled_caught else ""


async def broken(attacker: Attacker, raw: bytes) -> str:
    """Break the format on one connection after the other."""
    attacker.accountable = True
    for _ in range(attacker.patience):
        try:
            async with attacker.connected(mux=True) as muxed:
                await push(muxed, raw)
                await attacker.thrown_out()
        except Exception as error:
            if attacker.let_in:
                raise
            log.debug("not let in any more: %r", error)
            break
    return DISCONNECTED


@behaviour
async def mux_frame_of_no_kind(attacker: Attacker) -> str:
    return await broken(attacker, framed(99, 1, bytes(8)))


@behaviour
async def mux_frame_beyond_the_bound(attacker: Attacker) -> str:
    return await broken(attacker, framed(Kind.DATA, 1, b"", MAX_DATA_BYTES + 1))


@behaviour
async def mux_credit_of_a_wrong_size(attacker: Attacker) -> str:
    return await broken(attacker, framed(Kind.CREDIT, 1, bytes(3)))


@behaviour
async def mux_data_for_no_stream(attacker: Attacker) -> str:
    return await broken(attacker, framed(Kind.DATA, 9_999, bytes(100)))


@behaviour
async def mux_credit_without_end(attacker: Attacker) -> str:
    async with attacker.connected(mux=True) as muxed:
        stream = await attacker.stream()
        raw = framed(Kind.CREDIT, stream.muxed_stream.identity, number(2**32 - 1))
        return await push(muxed, raw, 50) or RESET


@behaviour
async def mux_window_overrun(attacker: Attacker) -> str:
    async with attacker.connected(mux=True) as muxed:
        stream = await attacker.stream(blobs.PROTOCOL_ID)
        body = bytes(MAX_DATA_BYTES)
        raw = framed(Kind.DATA, stream.muxed_stream.identity, body)
        return await push(muxed, raw, 400) or await attacker.thrown_out()


@behaviour
async def mux_flood_of_pings(attacker: Attacker) -> str:
    async with attacker.connected(mux=True) as muxed:
        raw = framed(Kind.PING, 0, bytes(8)) * 1000
        return await push(muxed, raw, 100) or THROTTLED


@behaviour
async def mux_flood_of_opens(attacker: Attacker) -> str:
    async with attacker.connected(mux=True) as muxed:
        raws = [
            framed(Kind.OPEN, 20_001 + 2 * at, number(1 << 18)) for at in range(4000)
        ]
        return await push(muxed, b"".join(raws)) or RESET
