"""Bounds on what a stranger says before a protocol is chosen, and on foreign keys.

Mended: a line of negotiation could be of any length and there could be any number of
them; bad UTF-8 ended the host; an RSA "public" key could be a private one of a megabyte,
whose primality was tested for minutes on the loop. docs/protocols/streams.md
"""

from __future__ import annotations

from typing import Any

from libp2p.crypto import serialization
from libp2p.crypto.keys import PublicKey
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.exceptions import BaseLibp2pError, ParseError
from libp2p.io.exceptions import IOException
from libp2p.io.utils import read_exactly
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import decode_uvarint_from_stream

LINE_BYTES = 1024  # of one line of negotiation
LINES = 64  # of one negotiation; a host asks for one protocol after the other
RSA_KEY_BYTES = 1024  # a public key of 4096 bits takes 550


class BadNegotiation(BaseLibp2pError):  # type: ignore[misc]
    """The peer broke the format of multistream-select, or its bounds."""


async def _read_line(self: Any) -> str:
    """MultiselectCommunicator.read, bounded. BadNegotiation is the peer's fault."""
    self.lines = getattr(self, "lines", 0) + 1
    if self.lines > LINES:
        raise BadNegotiation(f"more than {LINES} lines")
    try:
        length = await decode_uvarint_from_stream(self.read_writer)
        if not 0 < length <= LINE_BYTES:
            raise BadNegotiation(f"a line of {length} bytes")
        line: bytes = await read_exactly(self.read_writer, length, LINE_BYTES)
    except ParseError as error:
        raise BadNegotiation(str(error)) from error
    except IOException as error:
        raise MultiselectCommunicatorError("the other side is gone") from error
    if not line.endswith(b"\n"):
        raise BadNegotiation("a line without an end")
    try:
        return line[:-1].decode()
    except UnicodeDecodeError as error:
        raise BadNegotiation("not UTF-8") from error


def _short_rsa_key(raw: bytes) -> PublicKey:
    if len(raw) > RSA_KEY_BYTES:
        raise ValueError(f"an RSA key of {len(raw)} bytes")
    return RSAPublicKey.from_bytes(raw)


def mend_negotiation() -> None:
    """Put the guarded functions in stock's place; libp2p names them, not its caller."""
    MultiselectCommunicator.read = _read_line
    readers = serialization.key_type_to_public_key_deserializer
    readers[crypto_pb2.KeyType.RSA] = _short_rsa_key
