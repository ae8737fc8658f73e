"""TBLOCK: one file per tensor, hostile files refused, views without copies."""

import json
import os
import runpy
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.model import Dtype
from blyan_proto.constants import LEAF_BYTES, MAX_BLOB_BYTES
from blyan_proto.errors import BadProof, DecodeError, LimitExceeded, ProtocolError
from blyan_tile import tblock

VECTORS = Path(__file__).parents[2] / "vectors"


make_tile = SimpleNamespace(**runpy.run_path(str(VECTORS / "make_tile.py")))
SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)


@contextmanager
def opened(raw: bytes):
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        file.flush()
        yield file.fileno()


def test_vectors():
    golden = json.loads((VECTORS / "tile_tblock.json").read_text())
    inputs = make_tile.tblock_inputs()
    assert golden.keys() == inputs.keys()
    for name, expected in golden.items():
        array = inputs[name]
        raw = tblock.to_bytes(array)
        assert blake3(raw).hexdigest() == expected["file_blake3"]
        assert raw[:128].hex() == expected["header"]
        leaves = tuple(map(bytes.fromhex, expected["leaves"]))
        outline = tblock.parse_outline(raw[:128], b"", leaves)
        assert outline.root.hex() == expected["root"] == tblock.root_of(array).hex()
        assert outline.dtype.name == expected["dtype"]
        assert list(outline.shape) == expected["shape"]
        assert outline.file_bytes == expected["file_bytes"] == len(raw)
        with opened(raw) as fd:
            assert tblock.verify_file(fd, outline.root) == outline
            view = tblock.open_array(fd)
        assert view.dtype == array.dtype and view.shape == array.shape
        assert view.tobytes() == array.tobytes()


def test_header_bytes_are_where_the_page_says():
    raw = tblock.to_bytes(SMALL)
    assert struct.unpack_from("<8sIIQQIIQQQ", raw) == (
        *(b"TBLOCK01", 1, 4, 2, 3, 0, 0, 0),
        *(4096, 4096 + 32),
    )
    assert struct.unpack_from("<IIQQQ", raw, 64) == (2, 262_144, 0, 0, 24)
    assert not any(raw[104:4096])
    assert raw[4096:4120] == SMALL.tobytes()


def test_every_flip_of_header_and_leaves_is_refused():
    raw = tblock.to_bytes(SMALL)
    root = tblock.root_of(SMALL)
    with opened(raw) as fd:
        for at in (*range(128), 128, 4095, *range(4096, len(raw))):
            for bit in range(8):
                os.pwrite(fd, bytes([raw[at] ^ 1 << bit]), at)
                with pytest.raises(ProtocolError):
                    tblock.verify_file(fd, root)
            os.pwrite(fd, raw[at : at + 1], at)
        tblock.verify_file(fd, root)


def test_every_truncation_and_any_addition_is_refused():
    raw = tblock.to_bytes(SMALL)
    for length in range(len(raw) - 1, -1, -7):
        with opened(raw[:length]) as fd, pytest.raises(DecodeError):
            tblock.verify_file(fd)
    with opened(raw + b"\0") as fd, pytest.raises(DecodeError):
        tblock.read_outline(fd)


def test_a_pipe_is_no_tblock():
    out, into = os.pipe()
    try:
        with pytest.raises(DecodeError):
            tblock.read_outline(out)
    finally:
        os.close(out)
        os.close(into)


def test_view_shares_memory_with_the_file():
    with opened(tblock.to_bytes(SMALL)) as fd:
        view = tblock.open_array(fd)
        os.pwrite(fd, np.float32(42).tobytes(), 4096)
        assert view[0, 0] == 42
    assert not view.flags.writeable and view.ctypes.data % 64 == 0
    tensor = tblock.to_torch(view, Dtype.F32)
    assert tensor.data_ptr() == view.ctypes.data
    assert tensor.tolist() == view.tolist()


def test_bf16_reaches_torch_and_widens_exactly():
    torch = pytest.importorskip("torch")
    bits = np.array([0x3F80, 0xC000, 0x0001, 0x7F7F], np.uint16)
    with opened(tblock.to_bytes(bits)) as fd:
        tensor = tblock.to_torch(tblock.open_array(fd), Dtype.BF16)
    assert tensor.dtype == torch.bfloat16
    assert (tensor.float().numpy() == tblock.widened(bits)).all()
    assert tblock.widened(np.float16([0.1]))[0] == np.float32(np.float16(0.1))
    with pytest.raises(ValueError):
        tblock.widened(np.zeros(1, np.int8))


def test_a_leaf_verifies_alone():
    data = np.frombuffer(make_tile.stream("leaf", 2 * LEAF_BYTES + 5), np.uint8)
    outline = tblock.outline_of(data)
    raw = tblock.to_bytes(data)
    for index in range(3):
        start, length = outline.leaf_span(index)
        chunk = raw[start : start + length]
        tblock.check_leaf(outline, index, chunk)
        for other in (0, 1, 2):
            if other != index:
                with pytest.raises(BadProof):
                    tblock.check_leaf(outline, other, chunk)
        with pytest.raises(BadProof):
            tblock.check_leaf(outline, index, chunk[:-1])
    assert outline.leaf_span(2) == (4096 + 2 * LEAF_BYTES, 5)
    with pytest.raises(BadProof):
        tblock.check_leaf(outline, 3, b"")
    with pytest.raises(IndexError):
        outline.leaf_span(3)


def header(code, dims, **changes):
    """A header for `dims` with every derived field right, then changed."""
    rows, columns, dim2, dim3 = (list(dims) + [1] * (len(dims) == 1) + [0] * 4)[:4]
    size = int(np.prod(dims, dtype=object)) * Dtype(code).bytes
    fields = dict(
        magic=b"TBLOCK01",
        version=1,
        dtype=code,
        rows=rows,
        columns=columns,
        layout=0,
        quant=0,
        scales=0,
        data=4096,
        merkle=(4096 + -(-size // 32) * 32) % 2**64,
        ndim=len(dims),
        leaf=262_144,
        dim2=dim2,
        dim3=dim3,
        length=size % 2**64,
        zeros=bytes(32),
    )
    fields.update(changes)
    return struct.pack("<8sIIQQIIQQQIIQQQ32s", *fields.values())


def test_hostile_headers_are_refused():
    assert header(4, (2, 3)) == tblock.to_bytes(SMALL)[:128]
    for bad in (
        dict(magic=b"TBLOCK02"),
        dict(version=2),
        dict(dtype=0),
        dict(dtype=7),
        dict(layout=1),
        dict(quant=1),
        dict(scales=128),
        dict(data=128),
        dict(data=8192),
        dict(merkle=4096),
        dict(merkle=0),
        dict(ndim=0),
        dict(ndim=5),
        dict(ndim=2**32 - 1),
        dict(leaf=4096),
        dict(dim2=1),
        dict(dim3=1),
        dict(length=0),
        dict(length=23),
        dict(rows=0),
        dict(rows=3),
        dict(zeros=b"\1" + bytes(31)),
    ):
        with pytest.raises(ProtocolError):
            tblock.parse_outline(header(4, (2, 3), **bad), b"", (bytes(32),))
    for dims in ((2**63, 2), (2**32, 2**32), (2**64 - 1,), (2**31, 2**31, 2**31, 4)):
        with pytest.raises(LimitExceeded):
            tblock.parse_outline(header(4, dims))
    for dims in ((0, 5), (5, 0), (2, 3, 0)):
        with pytest.raises(ProtocolError):
            tblock.parse_outline(header(4, dims))
    with pytest.raises(LimitExceeded):
        tblock.parse_outline(header(6, (MAX_BLOB_BYTES + 1,)))


def test_leaves_are_counted_before_they_are_used():
    plain = tblock.outline_of(SMALL)
    for leaves in ((), plain.leaves * 2, (bytes(31),)):
        with pytest.raises(DecodeError):
            tblock.parse_outline(plain.header, b"", leaves)
    with pytest.raises(DecodeError):
        tblock.parse_outline(plain.header, b"q", plain.leaves)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=0, max_size=200), st.booleans())
def test_random_headers_only_raise_protocol_errors(raw, marked):
    if marked:
        raw = (b"TBLOCK01\1\0\0\0\4\0\0\0" + raw)[:128].ljust(128, b"\0")
    with pytest.raises(ProtocolError):
        tblock.parse_outline(raw, b"", ())


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["f4", "f2", "i1", "u1", "u2"]),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_round_trip(code, dims):
    count = int(np.prod(dims))
    array = np.arange(count).astype(code).reshape(dims)
    with opened(tblock.to_bytes(array)) as fd:
        assert tblock.verify_file(fd).root == tblock.root_of(array)
        assert (tblock.open_array(fd) == array).all()


def test_f8_has_to_be_named():
    raw = np.arange(5, dtype=np.uint8)
    assert tblock.outline_of(raw).dtype is Dtype.U8
    assert tblock.outline_of(raw, Dtype.F8).dtype is Dtype.F8
    assert tblock.root_of(raw) != tblock.root_of(raw, Dtype.F8)
    for unfit in (np.zeros(3), np.zeros(3, np.int32), np.zeros(3, ">f4")):
        with pytest.raises(ValueError):
            tblock.outline_of(unfit)


def test_layout_in_memory_does_not_matter():
    turned = np.asfortranarray(SMALL)
    assert tblock.to_bytes(turned) == tblock.to_bytes(SMALL)
