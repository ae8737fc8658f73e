"""Delta codecs: exact decoding, hostile bytes, quality of the low-rank encoder."""

import json
import runpy
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.model import Codec
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_tile import compress

VECTORS = Path(__file__).parents[2] / "vectors"


make_tile = SimpleNamespace(**runpy.run_path(str(VECTORS / "make_tile.py")))


def test_decode_is_the_integer_product_times_a_power_of_two():
    golden = json.loads((VECTORS / "tile_delta.json").read_text())
    assert make_tile.build_delta() == golden
    for name, (shape, rank, exponent) in make_tile.CASES.items():
        parts = make_tile.lr4_parts(name, shape, rank, exponent)
        raw, whole = make_tile.lr4(*parts), make_tile.product(*parts)
        assert len(raw) == golden[name]["bytes"]
        assert len(raw) == compress.encoded_bytes(Codec.LR4, rank, shape)
        values = compress.decode(raw, shape)
        assert values.dtype == np.float64
        assert (values * 2.0**-exponent == whole).all()
        norm, scale = compress.norm_squared(raw, shape)
        assert scale == 2 * exponent
        assert norm == sum(int(row @ row) for row in whole)


def test_extreme_factors_stay_exact():
    p, q = np.full((256, 255), 7), np.full((300, 255), -7)
    raw = make_tile.lr4(96, np.full(255, 255), p, q)
    whole = -7 * 255 * 7 * 255
    values = compress.decode(raw, (256, 300))
    assert (values == whole * 2.0**96).all()
    assert np.isfinite(values.astype(np.float32)).all()
    norm, scale = compress.norm_squared(raw, (256, 300))
    assert norm == 256 * 300 * whole**2 and scale == 192


def test_rows_alone_equal_rows_of_the_whole():
    shape, rank, exponent = make_tile.CASES["384x256 r16"]
    _, scales, p, q = make_tile.lr4_parts("rows", shape, rank, exponent)
    whole = compress.decode(make_tile.lr4(exponent, scales, p, q), shape)
    for start, stop in ((0, 16), (16, 117), (117, 384)):
        part = make_tile.lr4(exponent, scales, p[start:stop], q)
        alone = compress.decode(part, (stop - start, shape[1]))
        assert alone.tobytes() == whole[start:stop].tobytes()


def decaying(m: int, n: int, power: float, seed: int) -> np.ndarray:
    """A matrix with singular values k^-power and Gaussian-like entries of about 2e-3."""
    generator = np.random.default_rng(seed)
    u, _ = np.linalg.qr(generator.standard_normal((m, min(m, n))))
    v, _ = np.linalg.qr(generator.standard_normal((n, min(m, n))))
    values = (1.0 + np.arange(min(m, n))) ** -power
    return (u * values @ v.T * 0.3).astype(np.float32)


def error_of(raw: bytes, x: np.ndarray) -> float:
    return float(np.linalg.norm(compress.decode(raw, x.shape) - x) / np.linalg.norm(x))


@pytest.mark.parametrize("shape", [(384, 256), (256, 384), (512, 130)])
@pytest.mark.parametrize("power", [0.5, 0.7])
def test_error_is_close_to_the_truncated_svd(shape, power):
    x = decaying(*shape, power, 1)
    values = np.linalg.svd(x, compute_uv=False)
    for rank in (4, 16):
        best = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        cold, warm = compress.encode(Codec.LR4, rank, x)
        again, _ = compress.encode(Codec.LR4, rank, x, warm)
        assert best < error_of(cold, x) < 1.10 * best + 0.02
        assert error_of(again, x) < 1.08 * best + 0.01


def test_warm_start_of_another_delta_helps_or_does_no_harm():
    x, other = decaying(384, 256, 0.7, 1), decaying(384, 256, 0.7, 2)
    _, unrelated = compress.encode(Codec.LR4, 16, other)
    cold, _ = compress.encode(Codec.LR4, 16, x)
    raw, _ = compress.encode(Codec.LR4, 16, x, unrelated)
    assert error_of(raw, x) < 1.25 * error_of(cold, x)
    for useless in (np.zeros((256, 16), np.float32), np.full((256, 16), np.nan)):
        raw, _ = compress.encode(Codec.LR4, 16, x, useless.astype(np.float32))
        compress.decode(raw, x.shape)
    raw, _ = compress.encode(Codec.LR4, 16, x, np.ones((3, 3), np.float32))
    assert raw == cold


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_magnitudes(magnitude):
    x = decaying(96, 64, 0.7, 3)
    reference = error_of(compress.encode(Codec.LR4, 8, x)[0], x)
    scaled = (x.astype(np.float64) * magnitude).astype(np.float32)
    raw, _ = compress.encode(Codec.LR4, 8, scaled)
    assert abs(error_of(raw, scaled.astype(np.float64)) - reference) < 0.01


def test_subnormal_deltas_do_not_fail():
    x = np.full((40, 30), 2.0**-149, np.float32)
    compress.decode(compress.encode(Codec.LR4, 4, x)[0], x.shape)


def test_zero_matrix():
    x = np.zeros((12, 7), np.float32)
    warm = np.ones((7, 4), np.float32)
    raw, after = compress.encode(Codec.LR4, 4, x, warm)
    assert after is warm and not compress.decode(raw, x.shape).any()
    assert compress.norm_squared(raw, x.shape) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32))
def test_small_and_odd_shapes(m, n, rank, seed):
    x = np.random.default_rng(seed).standard_normal((m, n), np.float32)
    raw, _ = compress.encode(Codec.LR4, rank, x)
    assert compress.header_of(raw) == (Codec.LR4, min(rank, m, n))
    assert len(raw) == compress.encoded_bytes(Codec.LR4, rank, (m, n))
    limit = 1.0 if rank < min(m, n) else 0.45
    assert error_of(raw, x) <= limit


def test_not_finite_is_not_encoded():
    for bad in (np.nan, np.inf, -np.inf):
        for shape in ((4, 4), (4,)):
            x = np.zeros(shape, np.float32)
            x[0] = bad
            with pytest.raises(ValueError):
                compress.encode(Codec.LR4, 2, x)
    with pytest.raises(ValueError):
        compress.encode(Codec.DENSE, 0, np.full(3, 7e4, np.float32))
    with pytest.raises(ValueError):
        compress.encode(Codec.LR4, 2, np.full((4, 4), 3e38, np.float32))
    for setting in (0, 256):
        with pytest.raises(ValueError):
            compress.encode(Codec.LR4, setting, np.ones((300, 300), np.float32))


def test_vectors_go_dense():
    x = np.float32([0.5, -2, 0.001])
    raw, warm = compress.encode(Codec.LR4, 16, x)
    assert raw[:2] == b"\1\0" and warm is None
    assert (compress.decode(raw, (3,)) == x.astype(np.float16)).all()
    assert compress.encoded_bytes(Codec.LR4, 16, (3,)) == len(raw) == 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-60_000, 60_000, width=16), min_size=1, max_size=30))
def test_dense_norm_is_exact(values):
    x = np.array(values, np.float32)
    raw, _ = compress.encode(Codec.DENSE, 0, x)
    norm, scale = compress.norm_squared(raw, x.shape)
    exact = sum(Fraction(float(v)) ** 2 for v in x)
    assert Fraction(norm) * Fraction(2) ** scale == exact


def test_foreign_dense():
    for half in (0x7C00, 0xFC00, 0x7E00):
        with pytest.raises(DecodeError):
            compress.decode(b"\1\0" + half.to_bytes(2, "little"), (1,))
    with pytest.raises(DecodeError):
        compress.decode(b"\1\1\0\0", (1,))


def test_codecs_of_other_versions_are_refused_by_name():
    with pytest.raises(DecodeError, match="codec NONE is not in this version"):
        compress.decode(bytes(4), (1, 1))
    for raw in (b"", b"\2", b"\6\1", b"\xff\xff"):
        with pytest.raises(DecodeError):
            compress.decode(raw, (1, 1))


def test_foreign_lr4():
    shape = (3, 5)
    raw = make_tile.lr4(*make_tile.lr4_parts("3x5 r3 odd", shape, 3, -10))
    compress.decode(raw, shape)
    for length in range(len(raw)):
        with pytest.raises(DecodeError):
            compress.decode(raw[:length], shape)
    with pytest.raises(DecodeError):
        compress.decode(raw + b"\0", shape)
    for other in ((5, 4), (2, 5), (15,), (3, 5, 1)):
        with pytest.raises(DecodeError):
            compress.decode(raw, other)
    for exponent in (-150, 97, 32_767, -32_768):
        bad = raw[:2] + exponent.to_bytes(2, "little", signed=True) + raw[4:]
        with pytest.raises(DecodeError):
            compress.decode(bad, shape)
    with pytest.raises(DecodeError, match="-8"):
        compress.decode(raw[:7] + b"\x08" + raw[8:], shape)
    with pytest.raises(DecodeError, match="padding"):
        compress.decode(raw[:-1] + bytes([raw[-1] & 0x0F | 0x10]), shape)
    with pytest.raises(LimitExceeded):
        compress.decode(raw, (2**20, 2**20))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 6), st.integers(1, 6))
def test_random_bytes_only_raise_protocol_errors(raw, m, n):
    try:
        assert np.isfinite(compress.decode(raw, (m, n))).all()
        compress.norm_squared(raw, (m, n))
    except ProtocolError:
        pass
