"""Seeded mutations of valid bytes: bit flips, cuts, repeats, splices, hostile prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

# MessagePack bytes that announce much: arrays, maps, bytes, text, extensions, nesting.
HOSTILE = tuple(
    bytes.fromhex(text)
    for text in (
        "dd7fffffff ddffffffff dcffff df7fffffff deffff c6ffffffff c5ffff c9ffffff7f00 "
        "dbffffffff d7ff0000000000000000 cb7ff8000000000000 ca7fc00000 c0 c1 c2 c3 90 80 "
        "cfffffffffffffffff d38000000000000000 cc00 cd0000 ce00000000 d900 c400 a0 a1ff"
    ).split()
)


def mutate(random: Random, samples: Sequence[bytes]) -> bytes:
    """Return a changed copy of one of `samples`; 1 to 4 changes, at most twice as long."""
    raw = bytearray(random.choice(samples))
    longest = 2 * len(raw) + 64
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(raw) + 1)
        span = random.randrange(1, 9)
        match random.randrange(8):
            case 0 | 1 if place < len(raw):
                raw[place] ^= 1 << random.randrange(8)
            case 2 if place < len(raw):
                raw[place] = random.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, raw[place] - 1 & 255)
                )
            case 3:
                del raw[place:]
            case 4:
                del raw[place : place + span]
            case 5:
                raw[place:place] = random.choice(HOSTILE) * random.choice((1, 1, span))
            case 6:
                raw[place : place + span] = random.choice(HOSTILE)
            case _:
                other = random.choice(samples)
                start = random.randrange(len(other) + 1)
                raw[place : place + span] = other[start : start + 4 * span]
    return bytes(raw[:longest])


def cuts(raw: bytes) -> Iterator[bytes]:
    """Yield every proper prefix."""
    return (raw[:length] for length in range(len(raw)))


def flips(raw: bytes) -> Iterator[bytes]:
    """Yield `raw` with each single bit changed."""
    for place in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << (place % 8)
        yield bytes(changed)
