"""Matrix products in which a row's bits do not depend on the other rows (DEC-S1, S2).

Strategy. The usual BLAS takes other kernels, with other last bits, for other numbers of
rows. oneDNN adds up every element in one order, for one row fewer than two and all above,
on any number of threads (docs/decisions/0021); so rows are padded to two, and further only
to keep few shapes, since it compiles a kernel for each. Where it is not at hand, or for
matrices that are too small for it to pay, rows are padded to what BLAS treats alike.

Letters: n rows, in and out the widths of a matrix (out, in).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 16_384  # elements of a matrix; below it oneDNN's call costs more than it saves
BLOCK_ROWS = 256  # rows of one product by oneDNN
BLAS_ROWS = 8  # measured equal for multiples of it up to BLAS_BLOCK_ROWS
BLAS_BLOCK_ROWS = 64  # BLAS divides larger products between threads in ways that show


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T; a row's bits do not depend on the other rows.

    x (n, in), weight (out, in), maybe `packed`, both of one type -> (n, out).
    """
    if weight.is_mkldnn or is_packable(weight):
        block, multiply = BLOCK_ROWS, _by_onednn
    else:
        block, multiply = BLAS_BLOCK_ROWS, _by_blas
    if len(x) <= block:
        return multiply(x, weight)
    return torch.cat([multiply(part, weight) for part in torch.split(x, block)])


def packed(weight: Tensor) -> Tensor:
    """Return a matrix in the order in which it is multiplied; the same bits, sooner.

    A copy, readable by `linear` only; the matrix itself where it is not packable.
    """
    if not is_packable(weight):
        return weight
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, BLAS_ROWS)
    return made


def is_packable(weight: Tensor) -> bool:
    """True for matrices (out, in) that oneDNN multiplies, packed or not."""
    return (
        weight.numel() >= SMALL
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and _has_onednn(weight.dtype)
    )


def _by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, in), n at most BLOCK_ROWS."""
    rows = len(x)
    missing = _shape_rows(rows) - rows
    if not missing or (rows == 1 and _one_row_agrees(weight)):
        return _multiplied(x, weight)  # (n, out)
    padded = F.pad(x, (0, 0, 0, missing))  # (n rounded up, in)
    return _multiplied(padded, weight)[:rows]  # (n, out)


def _multiplied(x: Tensor, weight: Tensor) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return made


def _one_row_agrees(weight: Tensor) -> bool:
    """True where one row alone is computed like one of two; tried once per shape."""
    key = weight.shape, weight.is_mkldnn
    if key not in _agreeing:
        x = torch.linspace(-3, 3, 2 * weight.shape[1]).sin().view(2, -1)  # (2, in)
        both = _multiplied(x, weight)  # (2, out)
        _agreeing[key] = torch.equal(_multiplied(x[:1], weight), both[:1])
    return _agreeing[key]


_agreeing: dict[tuple[torch.Size, bool], bool] = {}


def _by_blas(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, in), n at most BLAS_BLOCK_ROWS."""
    missing = -len(x) % BLAS_ROWS
    if not missing:
        return F.linear(x, weight)  # (n, out)
    padded = F.pad(x, (0, 0, 0, missing))  # (n rounded up, in)
    return F.linear(padded, weight)[: len(x)]  # (n, out)


def _shape_rows(rows: int) -> int:
    """Return the rows that a product of `rows` is computed with."""
    step = 2 if rows <= 8 else 8 if rows <= 64 else 32
    return -(-rows // step) * step


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """True where oneDNN is there and does what this file relies on."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False  # this processor has no instructions for it
    x = torch.linspace(-1, 1, 64 * 2048).sin().view(64, 2048).to(dtype)
    weight = torch.linspace(-2, 2, 40 * 2048).cos().view(40, 2048).to(dtype)
    ready = torch.ops.mkldnn._reorder_linear_weight(weight, BLAS_ROWS)
    whole = _by_onednn(x, ready)  # (64, 40)
    return all(
        torch.equal(_by_onednn(x[start:end], matrix), whole[start:end])
        for start, end in ((0, 1), (1, 3), (3, 8), (8, 24), (0, 64))
        for matrix in (weight, ready)
    )
