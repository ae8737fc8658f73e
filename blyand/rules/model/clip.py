"""How large a delta may be: the norm of the others, held against what was usual (DEC-B15).

Norms are exact integers in units of 2^-24, so every node gets the same factors. A clip
bounds what one delta can do; its direction stays its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from blyan_proto.constants import PPM

ABSURD = 1000  # norms beyond so many of the running median are not taken at all
INERTIA = 4  # the running median moves by a quarter of the way in a round


def reference(norms: Sequence[int], running: int) -> int:
    """Return the norm to clip to before the prior: the median of those that are not 0.

    The running median, where there is one, takes part among an even number: so one of
    two cannot set it alone. 0 without any norm.
    """
    values = sorted(norm for norm in norms if norm)
    if running and len(values) % 2 == 0:
        values = sorted((*values, running))
    return values[(len(values) - 1) // 2] if values else 0


def limit(norms: Sequence[int], running: int, most_ppm: int) -> int:
    """Return the norm to clip to: the reference, at most `most_ppm` of the running median.

    `running` 0: nothing is known yet, the first deltas are measured by each other only.
    """
    found = reference(norms, running)
    return min(found, running * most_ppm // PPM) if running else found


def factors(norms: Sequence[int], running: int, most_ppm: int) -> list[int]:
    """Return each delta's clip factor in ppm; 10^6 for all in a run that does not clip."""
    if not most_ppm:
        return [PPM] * len(norms)
    most = limit(norms, running, most_ppm)
    return [PPM if norm <= most else most * PPM // norm for norm in norms]


def running_after(norms: Sequence[int], running: int, most_ppm: int) -> int:
    """Return the running median after an update; it stays where nobody sent a change.

    It follows slowly and within `most_ppm`, so that no single round moves it far.
    """
    found = reference(norms, running) if most_ppm else 0
    if not found or not running:
        return found or running
    low, high = running * PPM // most_ppm, running * most_ppm // PPM
    near = min(max(found, low), high)
    return max(1, ((INERTIA - 1) * running + near) // INERTIA)


def is_absurd(norm: int, running: int) -> bool:
    """True for a delta that no honest learner sends."""
    return bool(running) and norm > ABSURD * running
