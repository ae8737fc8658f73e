"""A slow reader and writer of encoded tiles, bit by bit, from docs/tile-layout.md 3.

Values are Python integers and an exponent, so that nothing can round.
"""

from __future__ import annotations

from collections.abc import Sequence

Values = tuple[list[int], int]  # row-major integers, exponent


def fields(values: Sequence[int], width: int) -> bytes:
    """Return `values` as fields of `width` bits."""
    whole = 0
    for place, value in enumerate(values):
        assert 0 <= value < 1 << width
        whole |= value << place * width
    return whole.to_bytes((len(values) * width + 7) // 8, "little")


def fields_of(raw: bytes, count: int, width: int) -> list[int]:
    """Return `count` fields of `width` bits."""
    assert len(raw) == (count * width + 7) // 8
    whole, mask = int.from_bytes(raw, "little"), (1 << width) - 1
    assert whole >> count * width == 0
    return [whole >> place * width & mask for place in range(count)]


def signed(nibbles: Sequence[int]) -> list[int]:
    return [nibble - 16 if nibble > 7 else nibble for nibble in nibbles]


def sc_count(setting: int, elements: int) -> int:
    kept = setting % 4096
    return kept * (elements // 4096) + -(-kept * (elements % 4096) // 4096)


def sc(
    setting: int,
    exponent: int,
    low: int,
    scales: bytes,
    values: Sequence[int],
    positions: Sequence[int],
) -> bytes:
    """Write SC."""
    head = bytes((3, *setting.to_bytes(2, "little"))) + two(exponent) + bytes((low,))
    before, high, gaps = -1, 0, []
    bits = 0
    for position in positions:
        gap = position - before - 1
        before = position
        gaps.append(gap % 2**low)
        bits += gap >> low
        high |= 1 << bits
        bits += 1
    tail = high.to_bytes((bits + 7) // 8, "little")
    return head + scales + fields(values, setting >> 12) + fields(gaps, low) + tail


def q(bits: int, exponent: int, scales: bytes, levels: Sequence[int]) -> bytes:
    """Write Q."""
    return bytes((4, bits)) + two(exponent) + scales + fields(levels, bits)


def rows(setting: int, sent: Sequence[int], inside: bytes) -> bytes:
    """Write ROWS."""
    return bytes((5, *setting.to_bytes(2, "little"))) + fields(sent, 1) + inside


def lrc(
    setting: int,
    exponent: int,
    scales: bytes,
    lows: Sequence[tuple[int, int]],
    factors: Sequence[tuple[list[int], list[int]]],
) -> bytes:
    """Write LRC: per component the low bits and the levels of p and of q."""
    head = bytes((6, setting)) + two(exponent) + bytes((len(scales),)) + scales
    head += bytes(one | other << 4 for one, other in lows)
    low_parts, high, width, bits = 0, 0, 0, 0
    for pair, levels in zip(lows, factors):
        for low, side in zip(pair, levels):
            for level in side:
                number = 2 * level if level >= 0 else -2 * level - 1
                low_parts |= number % 2**low << width
                width += low
                bits += number >> low
                high |= 1 << bits
                bits += 1
    plain = low_parts.to_bytes((width + 7) // 8, "little")
    return head + plain + high.to_bytes((bits + 7) // 8, "little")


def two(exponent: int) -> bytes:
    return exponent.to_bytes(2, "little", signed=True)


def read(raw: bytes, shape: tuple[int, int]) -> Values:
    """Return what any encoded matrix but a DENSE one means."""
    return {2: _lr4, 3: _sc, 4: _q, 5: _rows, 6: _lrc}[raw[0]](raw, shape)


def _exponent(raw: bytes) -> int:
    exponent = int.from_bytes(raw, "little", signed=True)
    assert -149 <= exponent <= 96
    return exponent


def _lr4(raw: bytes, shape: tuple[int, int]) -> Values:
    (m, n), rank = shape, raw[1]
    middle = 4 + rank + (m * rank + 1) // 2
    p = signed(fields_of(raw[4 + rank : middle], m * rank, 4))
    q = signed(fields_of(raw[middle:], n * rank, 4))
    scales = raw[4 : 4 + rank]
    whole = [
        sum(scales[k] * p[k * m + i] * q[k * n + j] for k in range(rank))
        for i in range(m)
        for j in range(n)
    ]
    return whole, _exponent(raw[2:4])


def _sc(raw: bytes, shape: tuple[int, int]) -> Values:
    elements = shape[0] * shape[1]
    setting, low = int.from_bytes(raw[1:3], "little"), raw[5]
    bits, chunks = setting >> 12, -(-elements // 4096)
    count = sc_count(setting, elements)
    ends = [6, 6 + bits * chunks]
    ends.append(ends[-1] + (count * bits + 7) // 8)
    ends.append(ends[-1] + (count * low + 7) // 8)
    scales = raw[ends[0] : ends[1]]
    values = fields_of(raw[ends[1] : ends[2]], count, bits)
    lows = fields_of(raw[ends[2] : ends[3]], count, low)
    high = int.from_bytes(raw[ends[3] :], "little")
    assert raw[-1] and high.bit_count() == count
    whole, position = [0] * elements, -1
    for value, part in zip(values, lows):
        zeros = (high & -high).bit_length() - 1
        high >>= zeros + 1
        position += 1 + zeros * 2**low + part
        magnitude = scales[position // 4096 * bits + value // 2]
        whole[position] = -magnitude if value % 2 else magnitude
    return whole, _exponent(raw[3:5])


def _lrc(raw: bytes, shape: tuple[int, int]) -> Values:
    (m, n), count = shape, raw[4]
    scales, pairs = raw[5 : 5 + count], raw[5 + count : 5 + 2 * count]
    widths = [low for pair in pairs for low in (pair % 16, pair // 16)]
    bits = sum(widths[::2]) * m + sum(widths[1::2]) * n
    start = 5 + 2 * count
    plain = int.from_bytes(raw[start : start + (bits + 7) // 8], "little")
    high = int.from_bytes(raw[start + (bits + 7) // 8 :], "little")
    sides: list[list[int]] = []
    for place, low in enumerate(widths):
        sides.append([])
        for _ in range(n if place % 2 else m):
            zeros = (high & -high).bit_length() - 1
            high >>= zeros + 1
            number = zeros * 2**low + plain % 2**low
            plain >>= low
            level = -(number + 1) // 2 if number % 2 else number // 2
            sides[-1].append(level)
    assert not high and not plain
    whole = [
        sum(s * sides[2 * k][i] * sides[2 * k + 1][j] for k, s in enumerate(scales))
        for i in range(m)
        for j in range(n)
    ]
    return whole, _exponent(raw[2:4])


def _q(raw: bytes, shape: tuple[int, int]) -> Values:
    elements, bits = shape[0] * shape[1], raw[1]
    start = 4 + -(-elements // 128)
    levels = fields_of(raw[start:], elements, bits)
    whole = [
        (2 * level - (2**bits - 1)) * raw[4 + place // 128]
        for place, level in enumerate(levels)
    ]
    return whole, _exponent(raw[2:4])


def _rows(raw: bytes, shape: tuple[int, int]) -> Values:
    m, n = shape
    start = 3 + (m + 7) // 8
    sent = fields_of(raw[3:start], m, 1)
    if not any(sent):
        assert not raw[start:]
        return [0] * (m * n), 0
    assert raw[2] == raw[start]  # the codec inside
    inside, exponent = read(raw[start:], (sum(sent), n))
    whole, at = [], 0
    for bit in sent:
        whole += inside[at : at + n] if bit else [0] * n
        at += n * bit
    return whole, exponent
