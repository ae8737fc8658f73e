"""BLAKE3 in key-derivation mode, from its specification; slow and independent."""

from __future__ import annotations

import struct

IV = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
QUARTERS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
START, END, PARENT, ROOT, CONTEXT, MATERIAL = 1, 2, 4, 8, 32, 64
BLOCK, CHUNK = 64, 1024
MASK = 0xFFFFFFFF


def _rotated(word: int, bits: int) -> int:
    return ((word >> bits) | (word << (32 - bits))) & MASK


def _compress(chain, block, counter, length, flags):
    words = struct.unpack("<16I", block.ljust(BLOCK, b"\0"))
    state = [*chain, *IV[:4], counter & MASK, counter >> 32, length, flags]
    for round in range(7):
        for place, (a, b, c, d) in enumerate(QUARTERS):
            for word, (first, second) in (
                (words[2 * place], (16, 12)),
                (words[2 * place + 1], (8, 7)),
            ):
                state[a] = (state[a] + state[b] + word) & MASK
                state[d] = _rotated(state[d] ^ state[a], first)
                state[c] = (state[c] + state[d]) & MASK
                state[b] = _rotated(state[b] ^ state[c], second)
        words = [words[at] for at in PERMUTATION]
    return [state[i] ^ state[i + 8] for i in range(8)]


def _chunk(key, raw, counter, flags, root):
    blocks = [raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK)] or [b""]
    chain = key
    for number, block in enumerate(blocks):
        mode = flags | (START if number == 0 else 0)
        if number == len(blocks) - 1:
            mode |= END | root
        chain = _compress(chain, block, counter, len(block), mode)
    return chain


def _tree(key, raw, counter, flags, root):
    if len(raw) <= CHUNK:
        return _chunk(key, raw, counter, flags, root)
    chunks = -(-len(raw) // CHUNK)
    left = CHUNK << ((chunks - 1).bit_length() - 1)
    pair = [
        *_tree(key, raw[:left], counter, flags, 0),
        *_tree(key, raw[left:], counter + left // CHUNK, flags, 0),
    ]
    return _compress(key, struct.pack("<16I", *pair), 0, BLOCK, flags | PARENT | root)


def derive(context: str, material: bytes) -> bytes:
    """Return 32 bytes derived from `material` in the named context."""
    key = _tree(IV, context.encode(), 0, CONTEXT, ROOT)
    return struct.pack("<8I", *_tree(key, material, 0, MATERIAL, ROOT))
