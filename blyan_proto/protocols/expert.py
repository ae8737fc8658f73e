"""/blyan/expert/1: activations in, activations out; calls on one long stream.
docs/protocols/expert.md"""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.codec import U16, U32, Choice, Range, Size, message
from blyan_proto.constants import KIB, MIB
from blyan_proto.types import Hash

PROTOCOL_ID = "/blyan/expert/1"
MAX_ROWS = 4096  # tokens in one call
MAX_ACTIVATION_BYTES = 16 * MIB
MAX_MESSAGE_BYTES = MAX_ACTIVATION_BYTES + 64 * KIB
MAX_EXPERTS_PER_CALL = 64
MAX_SLICES = 64  # of one expert
MAX_IN_FLIGHT_BYTES = 4 * MAX_MESSAGE_BYTES  # requests and outputs of one peer's calls
DEADLINE_S = 20.0


class Numerics(enum.IntEnum):
    """How activations travel and are computed (DEC-S1).

    Weights of a better recipe than the named one may be used: its order is that here.
    """

    REFERENCE = 0  # float32 on the wire, float32 weights, GEMMs padded to >= 8 rows
    BF16 = 1  # bfloat16 on the wire, weights of at least 16 bits
    INT8 = 2  # bfloat16 on the wire, weights of at least 8 bits
    INT4 = 3  # bfloat16 on the wire, weights of at least 4 bits

    @property
    def element_bytes(self) -> int:
        """Bytes of one number of a hidden state on the wire."""
        return 4 if self is Numerics.REFERENCE else 2


@message
class ExpertRows:
    """Which rows of the call's activations go through one expert."""

    group: U16
    root: Hash  # exactly this version, or STALE_VERSION (DEC-B8)
    rows: Annotated[bytes, Size(2, 2 * MAX_ROWS)]  # u16 little-endian, ascending

    def __post_init__(self) -> None:
        if len(self.rows) % 2:
            raise ValueError("half a row number")


@message
class Forward:
    """One batch of hidden states for several experts of one layer."""

    model: Hash
    numerics: Numerics
    width: U32  # d; a row is d little-endian values, float32 or bfloat16
    experts: Annotated[tuple[ExpertRows, ...], Size(1, MAX_EXPERTS_PER_CALL)]
    activations: Annotated[bytes, Size(2, MAX_ACTIVATION_BYTES)]
    slice: U16 = 0  # of `slices`: the part of every expert's hidden units that is meant
    slices: Annotated[int, Range(1, MAX_SLICES)] = 1  # 1: whole experts

    def __post_init__(self) -> None:
        if self.slice >= self.slices:
            raise ValueError(f"slice {self.slice} of {self.slices}")


@message
class Outputs:
    """Each expert's output rows, unsummed, in the order of the call."""

    waiting_ms: U16  # work that waits at the server before a call that comes now
    outputs: Annotated[
        tuple[Annotated[bytes, Size(2, MAX_ACTIVATION_BYTES)], ...],
        Size(1, MAX_EXPERTS_PER_CALL),
    ]


REQUEST = Choice("expert request", {1: Forward})
ANSWER = Choice("expert answer", {1: Outputs})
