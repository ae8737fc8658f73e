"""LRC: low rank as LR4, its factors with one loss for all components and Rice-coded.

X = 2^e * sum over k of s_k * p_k * q_k^T. A component's step is the finer the larger its
singular value, so that each loses the same; what lies below that loss is not sent. The
tile takes at most 8 bytes more than LR4 with the same setting, and the sender looks for the
finest steps that fit. docs/tile-layout.md, decision 0028.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.block.sending import MAX_RANK
from blyan_proto.errors import DecodeError
from blyan_tile.compress import lr4, rice
from blyan_tile.compress.exponent import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    lifted,
    scales_of,
)
from blyan_tile.compress.scheme import Scheme

_HEADER = struct.Struct("<BBhB")  # codec, setting, exponent, components
_MORE = 8  # bytes beside those of LR4, so that the smallest tile is sent
_TOP = 127  # largest level
_MAX_LOW = 7
_LARGEST_SUM = 1 << 21  # of an element: exact as float32, its square sums as int64
_COARSEST = 1.6  # step over the spread of a factor: beyond it a component is not sent
_WIDER = 2  # components looked for, per rank of LR4
_ENOUGH = 512  # rows of the factors to look for the step with
_TINY = np.float32(2.0**-126)
_NEARER = 0.01  # logarithmic width of the bracket where the search ends


Factors = tuple[np.ndarray, np.ndarray, np.ndarray]  # U (m, r), values (r,), V (n, r)


@dataclass(frozen=True)
class _Coded:
    """Integer factors p (m, t), q (n, t), scales (t,), and the bits of their code."""

    p: np.ndarray
    q: np.ndarray
    scales: np.ndarray
    exponent: int
    lows: np.ndarray  # (2, t) low bits of p and of q
    bits: int


def encoded_bytes(setting: int, shape: tuple[int, ...]) -> int:
    """Return the bound on the length of an encoding. ValueError."""
    return lr4.encoded_bytes(lr4.rank_of(setting, shape), shape) + _MORE


def encode(
    setting: int, x: np.ndarray, warm: np.ndarray | None
) -> tuple[bytes, np.ndarray | None]:
    """Return the bytes of `x` (m, n) float32 and what to start from next time.

    ValueError if `x` is not finite or beyond the exponent's range.
    """
    most = encoded_bytes(setting, x.shape)
    y, lift = lifted(x)
    if not y.any():
        return _HEADER.pack(Codec.LRC, setting, 0, 0), warm
    width = min(_WIDER * setting, MAX_RANK, *x.shape)
    basis = lr4.basis_of(y, width, warm)
    inside, values, right = np.linalg.svd(basis.T @ y, full_matrices=False)
    factors = basis @ inside, values, right.T.copy()
    found = _finest(factors, lift, most)
    after = right.T * values
    if found is None:
        return _HEADER.pack(Codec.LRC, setting, 0, 0), after
    head = _HEADER.pack(Codec.LRC, setting, found.exponent, len(found.scales))
    numbers = _folded(np.concatenate([found.p, found.q])).T.ravel()
    parts = rice.written(numbers, _widths(found.lows, x.shape))
    lows = (found.lows[0] | found.lows[1] << 4).astype(np.uint8)
    return b"".join((head, found.scales.tobytes(), lows.tobytes(), *parts)), after


def _finest(factors: Factors, lift: int, most: int) -> _Coded | None:
    """Return the factors in the finest steps that fit into `most` bytes, None if none."""
    left, values, right = factors
    lengths = len(left), len(right)
    stride = -(-sum(lengths) // _ENOUGH)
    few = left[::stride], values, right[::stride]
    share = sum(lengths) / (len(few[0]) + len(few[2]))
    fine, coarse = np.log(values[0] / 64), np.log(values[0] * _COARSEST)
    while coarse - fine > _NEARER:
        middle = (fine + coarse) / 2
        if _fits(_coded(few, lengths, np.exp(middle), lift), share, most):
            coarse = middle
        else:
            fine = middle
    while np.exp(coarse) <= values[0] * _COARSEST:
        found = _coded(factors, lengths, np.exp(coarse), lift)
        if _fits(found, 1.0, most):
            return found
        coarse += _NEARER  # the sample was off by a little
    return None


def _fits(coded: _Coded, share: float, most: int) -> bool:
    tops = [
        np.abs(levels).max(axis=0).astype(np.int64) for levels in (coded.p, coded.q)
    ]
    if int((tops[0] * tops[1] * coded.scales).sum()) >= _LARGEST_SUM:
        return False
    # the low and the unary parts end in a byte of their own
    size = _HEADER.size + 2 * len(coded.scales) + share * coded.bits / 8 + 2
    return bool(size <= most)


def _coded(
    factors: Factors, lengths: tuple[int, int], step: float, lift: int
) -> _Coded:
    """Quantise the components that `step` leaves; at least the first is one.

    A component that is k times larger gets steps k times finer. `lengths` are those of
    the whole factors; the rows given may be a sample.
    """
    count = int(np.count_nonzero(factors[1] * _COARSEST >= step))
    left, values, right = (part[..., :count] for part in factors)
    steps = (
        np.float32(step) / values / np.sqrt(np.array(lengths, np.float32))[:, None]
    )  # (2, t)
    p = _levels(left, np.maximum(steps[0], np.abs(left).max(axis=0) / _TOP))
    gain = values * _inner(left, p) / np.maximum(_inner(p, p), 1)
    partner = right * gain
    wanted = np.maximum(steps[1] * gain, np.abs(partner).max(axis=0) / _TOP)
    scales, sent, exponent = scales_of(wanted, lift, least=1)
    q = _levels(partner, sent)
    # coarse levels lie off the middle of what they stand for: fit the scales once more
    ratio = _inner(partner, q) / np.maximum(_inner(q, q) * sent, _TINY)
    scales = np.clip(np.rint(scales * ratio), 0, 255).astype(np.uint8)
    costs = np.stack([_costs(p), _costs(q)])  # (2, _MAX_LOW + 1, t)
    bits = int(costs.min(axis=1).sum())
    return _Coded(p, q, scales, exponent, costs.argmin(axis=1), bits)


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the products of columns."""
    products: np.ndarray = np.einsum("ij,ij->j", a, b)
    return products


def _levels(columns: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return integers in float32, -_TOP.._TOP."""
    levels: np.ndarray = np.clip(np.rint(columns / steps), -_TOP, _TOP)
    return levels


def _folded(levels: np.ndarray) -> np.ndarray:
    """Return 0, -1, 1, -2, 2 … as 0, 1, 2, 3, 4 …, int64."""
    whole = levels.astype(np.int64)
    return (whole << 1) ^ (whole >> 63)


def _costs(levels: np.ndarray) -> np.ndarray:
    """Return the bits of each column by the low bits of its code, (_MAX_LOW + 1, t)."""
    folded = _folded(levels)
    return np.stack(
        [
            (folded >> low).sum(axis=0) + (low + 1) * len(folded)
            for low in range(_MAX_LOW + 1)
        ]
    )


def _widths(lows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the low bits of each number, component by component, first p then q."""
    return np.repeat(lows.T.ravel(), np.tile(shape, lows.shape[1]))


def _factors(
    raw: bytes, shape: tuple[int, ...]
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return (exponent, scales (t,), P^T (t, m), Q^T (t, n)), int64. DecodeError."""
    if len(shape) != 2 or len(raw) < _HEADER.size:
        raise DecodeError(f"{len(raw)} bytes of LRC for {shape}")
    codec, setting, exponent, count = _HEADER.unpack_from(raw)
    if codec != Codec.LRC or not setting or count > min(shape):
        raise DecodeError(f"{count} components of LRC {setting} for {shape}")
    if len(raw) > encoded_bytes(setting, shape):
        raise DecodeError(f"{len(raw)} bytes of LRC {setting} for {shape}")
    if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
        raise DecodeError(f"exponent {exponent} of LRC")
    numbers = sum(shape) * count
    fields = np.frombuffer(raw[_HEADER.size : _HEADER.size + 2 * count], np.uint8)
    if len(fields) < 2 * count:
        raise DecodeError(f"{len(raw)} bytes of LRC with {count} components")
    scales, pairs = fields[:count].astype(np.int64), fields[count:]
    lows = np.stack([pairs & 0xF, pairs >> 4]).astype(np.int64)
    if lows.max(initial=0) > _MAX_LOW:
        raise DecodeError(f"{lows.max()} low bits of LRC")
    view = memoryview(raw)[_HEADER.size + 2 * count :]
    length = (int((lows * np.array(shape)[:, None]).sum()) + 7) // 8
    # a number takes a bit at least, so that what is made stays in proportion
    if len(view) < length or numbers > 8 * (len(view) - length):
        raise DecodeError(f"{len(raw)} bytes of LRC with {count} components")
    if not count:
        if len(view):
            raise DecodeError(f"{len(view)} bytes of LRC without a component")
        return exponent, scales, *(np.zeros((0, side), np.int64) for side in shape)
    widths = _widths(lows, shape)
    folded = rice.read(view[:length], view[length:], numbers, widths)
    if folded.max() > 2 * _TOP:
        raise DecodeError(f"level code {folded.max()} of LRC")
    levels = ((folded >> 1) ^ -(folded & 1)).reshape(count, sum(shape))
    p, q = levels[:, : shape[0]], levels[:, shape[0] :]
    if (
        int((scales * np.abs(p).max(axis=1) * np.abs(q).max(axis=1)).sum())
        >= _LARGEST_SUM
    ):
        raise DecodeError("the sums of LRC are too large to be exact")
    return exponent, scales, p, q


def decode(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the exact values, float64 of `shape`. DecodeError."""
    exponent, scales, p, q = _factors(raw, shape)
    left = (p * scales[:, None]).astype(np.float32)
    product = left.T @ q.astype(np.float32)  # integers below 2^21: exact in any order
    wide: np.ndarray = product.astype(np.float64)
    np.multiply(wide, 2.0**exponent, out=wide)
    return wide


def norm_squared(raw: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n, e) with the squared norm being exactly n * 2^e. DecodeError."""
    exponent, scales, p, q = _factors(raw, shape)
    wide_p, wide_q = p.astype(np.float64), q.astype(np.float64)
    grams = (wide_p @ wide_p.T).astype(np.int64) * (wide_q @ wide_q.T).astype(np.int64)
    # the magnitudes in a row add up to less than 2^21 * 2^21 * 2^20
    rows = (grams * scales[:, None] * scales[None, :]).sum(axis=1)
    return sum(rows.tolist()), 2 * exponent


SCHEME = Scheme(encode, decode, encoded_bytes, norm_squared, exact=False)
