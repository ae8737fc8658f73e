"""Near-duplicates: training files that would give a held-out file away (DEC-B17)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from blake3 import blake3

_LINES = 3  # of a shingle
_THRESHOLD = 0.5  # of the Jaccard similarity of two files' shingles
_COMMON = 32  # a shingle in more held-out files than this is boilerplate


def shingles(raw: bytes) -> frozenset[bytes]:
    """Return the digests of every three successive lines that are not blank."""
    lines = [line for part in raw.splitlines() if (line := part.strip())]
    return frozenset(
        blake3(b"\n".join(lines[at : at + _LINES])).digest(8)
        for at in range(max(1, len(lines) - _LINES + 1))
    )


def near_duplicates(kept: Sequence[bytes], judged: Sequence[bytes]) -> list[bool]:
    """Say of each `judged` text whether it is nearly one of `kept`.

    Linear in the size of all texts: they meet only through a table of shingles.
    """
    sets = [shingles(raw) for raw in kept]
    owners: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, own in enumerate(sets):
        for shingle in own:
            owners[shingle].append(index)
    return [_meets(shingles(raw), sets, owners) for raw in judged]


def _meets(
    own: frozenset[bytes],
    sets: Sequence[frozenset[bytes]],
    owners: defaultdict[bytes, list[int]],
) -> bool:
    shared: Counter[int] = Counter()
    for shingle in own:
        found = owners.get(shingle, ())
        if len(found) <= _COMMON:
            shared.update(found)
    return any(
        common / (len(own) + len(sets[index]) - common) > _THRESHOLD
        for index, common in shared.items()
    )
