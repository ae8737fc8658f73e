"""From the decoder that a tokenizer.json describes to a table of pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile.pieces import MAX_PIECES_BYTES, Kind, Table


def components(part: Any, name: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a component and all inside it."""
    if not isinstance(part, dict) or depth > 8:
        raise DecodeError(f"tokenizer.json: no readable {name}")
    yield part
    for inner in ("normalizers", "pretokenizers", "processors", "decoders"):
        nested = part.get(inner, [])
        for one in nested if isinstance(nested, list) else [nested]:
            yield from components(one, name, depth + 1)


def table_of(
    decoder: Any, tokens: Mapping[int, str], special: set[int], count: int
) -> Table:
    """Return the table that a decoder comes to. DecodeError names what has none."""
    if decoder is None:
        raise DecodeError("tokenizer.json has no decoder")
    steps = [one for one in components(decoder, "decoder") if one["type"] != "Sequence"]
    lossy = [one["type"] for one in steps] == ["ByteLevel"]
    strip = 0 if lossy else _spaces_off(steps)
    pieces, marks = [], bytearray([Kind.SILENT]) * count
    for id in range(count):
        text = tokens.get(id)
        piece = b""
        if text is not None and id not in special:
            piece, marks[id] = _piece(text, steps, lossy)
        pieces.append(piece)
    if sum(map(len, pieces)) > MAX_PIECES_BYTES:
        raise LimitExceeded("tokenizer.json: the tokens are too long")
    return Table(
        lengths=np.array([len(piece) for piece in pieces], "<u4").tobytes(),
        text=b"".join(pieces),
        kinds=bytes(marks),
        lossy=lossy,
        strip=strip,
        bare_start=any(
            one["type"] == "Metaspace" and one.get("prepend_scheme") != "never"
            for one in steps
        ),
    )


def _spaces_off(steps: list[dict[str, Any]]) -> int:
    """Return the spaces that a text loses in front. DecodeError: no table can say it."""
    strip, fused = 0, False
    for one in steps:
        kind = one["type"]
        if kind == "Strip" and fused and (one["content"], one["stop"]) == (" ", 0):
            strip += one["start"]
        elif kind == "Fuse":
            fused = True
        elif fused or kind not in ("Replace", "ByteFallback", "Metaspace"):
            raise DecodeError(
                f"tokenizer.json: a decoder {kind} is not supported there"
            )
        elif kind == "Replace" and "String" not in one["pattern"]:
            raise DecodeError("tokenizer.json: its decoder replaces by a pattern")
    return min(strip, 255)


def _piece(text: str, steps: list[dict[str, Any]], lossy: bool) -> tuple[bytes, Kind]:
    """Return what a token adds to a text."""
    if lossy:
        numbers = [_BYTES.get(character) for character in text]
        if None in numbers:
            return text.encode(), Kind.TEXT
        return bytes(n for n in numbers if n is not None), Kind.TEXT
    kind = Kind.LITERAL if " " in text else Kind.TEXT
    for one in steps:
        if one["type"] == "Replace":
            text = text.replace(one["pattern"]["String"], one["content"])
        elif one["type"] == "Metaspace":
            text = text.replace(one.get("replacement", "\u2581"), " ")
        elif one["type"] == "ByteFallback":
            if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
                return bytes([int(text[3:5], 16)]), Kind.BYTE
    return text.encode(), kind


def byte_characters() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable ones as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(others)},
    }


_BYTES = byte_characters()
