"""Bytes on the port: strangers without a key."""

from __future__ import annotations

import os
import ssl

import trio

from tests.functional.attacks.attacker import (
    DISCONNECTED,
    REFUSED,
    Attacker,
    behaviour,
    hung_up,
)

MULTISTREAM = b"\x13/multistream/1.0.0\n"


async def say(attacker: Attacker, *pieces: bytes) -> str:
    """Send bytes on a new connection and wait until it is ended."""
    stream = await attacker.tcp()
    try:
        for raw in pieces:
            await stream.send_all(raw)
    except trio.BrokenResourceError:
        await stream.aclose()
        return DISCONNECTED
    return await hung_up(stream)


@behaviour
async def silence(attacker: Attacker) -> str:
    return await say(attacker)


@behaviour
async def random_bytes(attacker: Attacker) -> str:
    return await say(attacker, os.urandom(8192))


@behaviour
async def http_request(attacker: Attacker) -> str:
    return await say(attacker, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


@behaviour
async def tls_without_negotiation(attacker: Attacker) -> str:
    context = ssl.create_default_context()
    sending = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sending, server_hostname="x")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return await say(attacker, sending.read())


@behaviour
async def endless_varint(attacker: Attacker) -> str:
    return await say(attacker, b"\xff" * 64)


@behaviour
async def line_of_two_gigabytes(attacker: Attacker) -> str:
    return await say(attacker, MULTISTREAM, b"\xff\xff\xff\xff\x07", bytes(1 << 20))


@behaviour
async def line_of_exabytes(attacker: Attacker) -> str:
    return await say(attacker, b"\xff" * 8 + b"\x7f", bytes(65536))


@behaviour
async def line_without_utf8(attacker: Attacker) -> str:
    return await say(attacker, MULTISTREAM, b"\x05\xff\xfe\xfd\xfc\n")


@behaviour
async def empty_lines(attacker: Attacker) -> str:
    return await say(attacker, MULTISTREAM, b"\0" * 1000)


@behaviour
async def questions_for_ever(attacker: Attacker) -> str:
    return await say(attacker, MULTISTREAM, b"\x03ls\n" * 2000)


@behaviour
async def protocols_that_nobody_has(attacker: Attacker) -> str:
    return await say(attacker, MULTISTREAM, b"\x0b/nonsense1\n"[:12] * 500)


@behaviour
async def plaintext(attacker: Attacker) -> str:
    return await say(attacker, MULTISTREAM, b"\x11/plaintext/2.0.0\n")


@behaviour
async def one_byte_at_a_time(attacker: Attacker) -> str:
    stream = await attacker.tcp()
    with trio.fail_after(12):
        try:
            for byte in MULTISTREAM * 4:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.4)
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    return DISCONNECTED


@behaviour
async def many_half_open(attacker: Attacker) -> str:
    """One address keeps at most 32 of them."""
    streams = [await attacker.tcp() for _ in range(60)]
    ended = 0
    for stream in streams[32:]:
        with trio.fail_after(3):
            try:
                while await stream.receive_some(4096):
                    pass
            except trio.BrokenResourceError:
                pass
        ended += 1
    for stream in streams:
        await stream.aclose()
    assert ended == 28
    return REFUSED


@behaviour
async def connections_that_end_at_once(attacker: Attacker) -> str:
    """No fault, only a nuisance; nothing of them may stay."""
    for _ in range(40):
        await (await attacker.tcp()).aclose()
    return REFUSED


@behaviour
async def half_closed(attacker: Attacker) -> str:
    stream = await attacker.tcp()
    await stream.send_all(MULTISTREAM)
    await stream.send_eof()
    return await hung_up(stream)
