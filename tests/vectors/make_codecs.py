"""Regenerates tile_codecs.json: encoded tiles of SC, Q and ROWS and what they mean.

    python -m tests.vectors.make_codecs

The bytes are written and read by tests/second/delta.py, from integers of blake3 streams.
"""

from __future__ import annotations

import json
from pathlib import Path

from blake3 import blake3

from tests.second import delta

SC = {  # name -> shape, kept, bits, low, exponent
    "sc 1x1": ((1, 1), 1, 1, 0, 0),
    "sc 3x5 all": ((3, 5), 1024, 2, 0, -20),
    "sc 64x64": ((64, 64), 64, 2, 5, -25),
    "sc 90x130 two chunks and a part": ((90, 130), 100, 1, 4, -149),
    "sc 5x4097 long gaps": ((5, 4097), 3, 2, 10, 96),
}
Q = {  # name -> shape, bits, exponent
    "q 1x1": ((1, 1), 1, 0),
    "q 3x5 odd": ((3, 5), 2, -30),
    "q 7x129": ((7, 129), 4, -149),
    "q 40x33": ((40, 33), 8, 96),
    "q 16x40": ((16, 40), 1, -22),
}
LRC = (
    ("lrc 1x1", (1, 1), 1, [(0, 1)], 0),
    ("lrc 40x33", (40, 33), 5, [(3, 4), (2, 2), (1, 2), (0, 1), (0, 0)], -149),
    ("lrc 96x130", (96, 130), 8, [(4, 4), (3, 3), (3, 2), (2, 1), (0, 0)], -20),
    ("lrc 9x130 nothing", (9, 130), 7, [], 96),
)


def stream(label: str, length: int) -> bytes:
    return blake3(label.encode()).digest(length=length)


def numbers(label: str, count: int, below: int) -> list[int]:
    """Return `count` integers below `below`."""
    raw = stream(label, 4 * count)
    return [
        int.from_bytes(raw[i : i + 4], "little") % below for i in range(0, len(raw), 4)
    ]


def make_sc(
    label: str, shape: tuple[int, int], kept: int, bits: int, low: int, exponent: int
) -> bytes:
    elements, setting = shape[0] * shape[1], bits << 12 | kept
    count = delta.sc_count(setting, elements)
    order = numbers(f"{label} order", elements, 2**32)
    positions = sorted(sorted(range(elements), key=order.__getitem__)[:count])
    return delta.sc(
        setting,
        exponent,
        low,
        stream(f"{label} scales", bits * -(-elements // 4096)),
        numbers(f"{label} values", count, 2**bits),
        positions,
    )


def make_q(label: str, shape: tuple[int, int], bits: int, exponent: int) -> bytes:
    elements = shape[0] * shape[1]
    scales = stream(f"{label} scales", -(-elements // 128))
    return delta.q(bits, exponent, scales, numbers(label, elements, 2**bits))


def make_lr4(label: str, shape: tuple[int, int], rank: int, exponent: int) -> bytes:
    head = bytes((2, rank)) + delta.two(exponent) + stream(f"{label} scales", rank)
    nibbles = (
        [(v - 7) % 16 for v in numbers(label, side * rank, 15)] for side in shape
    )
    return head + b"".join(delta.fields(one, 4) for one in nibbles)


def make_lrc(shape: tuple[int, int], setting: int, lows: list, exponent: int) -> bytes:
    """Components with levels of about 2^low, so that they take few bytes."""
    factors = []
    for place, pair in enumerate(lows):
        sides = []
        for at, (low, side) in enumerate(zip(pair, shape)):
            some = numbers(f"lrc {shape} {place} {at}", side, 2 ** (low + 1) + 1)
            sides.append([value - 2**low for value in some])
        factors.append((sides[0], sides[1]))
    scales = stream(f"lrc {shape} scales", len(lows))
    return delta.lrc(setting, exponent, scales, lows, factors)


def encoded() -> dict[str, tuple[tuple[int, int], bytes]]:
    """Return name -> (shape, bytes)."""
    made = {name: (parts[0], make_sc(name, *parts)) for name, parts in SC.items()}
    made |= {name: (parts[0], make_q(name, *parts)) for name, parts in Q.items()}
    for name, shape, setting, lows, exponent in LRC:
        made[name] = shape, make_lrc(shape, setting, lows, exponent)
    some = [1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]
    inside = make_lr4("rows lr4", (4, 9), 4, -21)
    made["rows 11x9 lr4 6"] = (11, 9), delta.rows(2 << 8 | 6, some, inside)
    inside = make_q("rows q", (4, 50), 4, -21)
    made["rows 11x50 q 4"] = (11, 50), delta.rows(4 << 8 | 4, some, inside)
    made["rows 11x9 none"] = (11, 9), delta.rows(4 << 8 | 1, [0] * 11, b"")
    return made


def build() -> dict[str, dict[str, object]]:
    vectors: dict[str, dict[str, object]] = {}
    for name, (shape, raw) in encoded().items():
        whole, exponent = delta.read(raw, shape)
        vectors[name] = {
            "shape": list(shape),
            "raw": raw.hex(),
            "exponent": exponent,
            "norm_squared": str(sum(v * v for v in whole)),
            "integers_blake3": blake3(
                b"".join(v.to_bytes(4, "little", signed=True) for v in whole)
            ).hexdigest(),
        }
    return vectors


if __name__ == "__main__":
    path = Path(__file__).with_name("tile_codecs.json")
    path.write_text(json.dumps(build(), indent=1) + "\n")
