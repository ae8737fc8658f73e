"""What is checked of expert calls and answers: (decode, encode, samples) by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from blyan_proto.block.model import Dtype, Model
from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import (
    ANSWER,
    MAX_MESSAGE_BYTES,
    REQUEST,
    ExpertRows,
    Forward,
    Numerics,
    Outputs,
)
from blyan_tile.activations import read_rows, write_rows
from blyan_tile.layout import layout_of
from blyan_tile.slice import Slice
from blyand.errors import WrongAnswer
from blyand.inference.call import read_outputs
from blyand.inference.serve import check_call
from tests.vectors import make_proto as made

LAYOUT = layout_of(Model(1, "tiny", made.ARCHITECTURE, "bytes", Dtype.F32, 2, ""))
WIDTH = made.ARCHITECTURE.width
X = np.random.default_rng(0).standard_normal((3, WIDTH), np.float32)


def call_of(numerics: Numerics) -> Forward:
    rows = np.array([0, 2], "<u2").tobytes()
    return Forward(
        model=made.MODEL_ID,
        numerics=numerics,
        width=WIDTH,
        experts=tuple(
            ExpertRows(group.index, bytes(32), rows)
            for group in LAYOUT.expert_groups[:2]
        ),
        activations=write_rows(X, numerics),
        slice=numerics.value,
        slices=1 + 3 * numerics.value,
    )


def called(raw: bytes) -> Any:
    """What a server looks at before it computes."""
    call: Forward = REQUEST.decode(raw, MAX_MESSAGE_BYTES)
    works = check_call(call, LAYOUT, WIDTH)
    x = read_rows(call.activations, WIDTH, call.numerics)
    assert x.dtype == np.float32 and np.isfinite(x).all()
    hidden = made.ARCHITECTURE.expert_width
    first, end = Slice(call.slice, call.slices).units(hidden)
    assert 0 <= first < end <= hidden
    for _, _, rows in works:
        assert x[rows].shape == (len(rows), WIDTH)
    return call


def answered(numerics: Numerics) -> Callable[[bytes], Any]:
    call = call_of(numerics)

    def read(raw: bytes) -> Any:
        """What a client looks at before it combines."""
        answer: Outputs = ANSWER.decode(raw, MAX_MESSAGE_BYTES)
        try:
            outputs = read_outputs(answer, call)
        except WrongAnswer as error:
            raise DecodeError(str(error)) from error
        for one in outputs:
            assert one.shape == (2, WIDTH) and np.isfinite(one).all()
        return answer

    return read


def answer_of(numerics: Numerics) -> bytes:
    return ANSWER.encode(Outputs(5, (write_rows(X[:2], numerics),) * 2))


TARGETS: dict[str, tuple[Any, Any, tuple[bytes, ...]]] = {
    "expert call checked": (
        called,
        REQUEST.encode,
        tuple(REQUEST.encode(call_of(numerics)) for numerics in Numerics),
    ),
    **{
        f"expert answer checked, {numerics.name.lower()}": (
            answered(numerics),
            ANSWER.encode,
            (answer_of(numerics),),
        )
        for numerics in (Numerics.REFERENCE, Numerics.BF16)
    },
}
