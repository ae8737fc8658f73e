"""A stranger's delta as a primary takes it: (decode, encode, samples) by name."""

from __future__ import annotations

from blyan_proto import codec
from blyan_proto.protocols.delta import MAX_BUNDLE_BYTES, Delta
from blyand.training.membership import Taken, look_at
from tests.unit.daemon.test_membership import GROUP, RUN, SECRET, delta, encoded

USUAL = 1 << 28  # near the samples' norms


def looked_at(raw: bytes) -> Taken:
    """Form, finiteness, norm and sketch; whatever is wrong, Refused says so."""
    return look_at(
        GROUP, RUN, USUAL, codec.decode(Delta, raw, MAX_BUNDLE_BYTES), SECRET
    )


SAMPLES = tuple(codec.encode(delta(encoded(size))) for size in (1.0, 0.0, 500.0))

TARGETS = {"delta looked at": (looked_at, None, SAMPLES)}
