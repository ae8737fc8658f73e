"""The reader of foreign checkpoints: what is true is read, and every lie is named."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_tile import checkpoint
from blyan_tile.checkpoint import INDEX, SINGLE, is_finite, open_checkpoint

RNG = np.random.default_rng(7)
MATRIX = RNG.standard_normal((6, 5), np.float32)
VECTOR = RNG.standard_normal(7, np.float32).astype(np.float16)


def opened(folder):
    with open_checkpoint(str(folder)) as made:
        made.find_tensors()
        return dict(made.tensors), made.fingerprint


def refusal(folder, kind: type[Exception] = DecodeError) -> str:
    with pytest.raises(kind) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(folder, header, data=b"", length=None, name=SINGLE):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(raw) if length is None else length
    (folder / name).write_bytes(struct.pack("<Q", length) + raw + data)
    return folder


def entry(start, end, shape=None, dtype="F32"):
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_what_the_reference_writes_is_read_block_by_block(tmp_path):
    save_file({"m": MATRIX, "v": VECTOR}, tmp_path / SINGLE, {"format": "pt"})
    with open_checkpoint(str(tmp_path)) as made:
        made.find_tensors()
        assert made.tensors["m"].shape == (6, 5) and made.tensors["m"].dtype == "F32"
        for rows in ((0, 6), (2, 3)):
            for columns in ((0, 5), (1, 4)):
                block = made.block("m", *rows, *columns)
                assert (block == MATRIX[slice(*rows), slice(*columns)]).all()
        part = made.block("v", 2, 7, 0, 1)
        assert part.dtype == np.float16 and (part[:, 0] == VECTOR[2:]).all()
        assert made.small("none.json", 10) is None
        with pytest.raises(LimitExceeded, match="model.safetensors has"):
            made.small(SINGLE, 10)


def test_shards_are_read_through_their_index(tmp_path):
    for name, part in (("a", {"m": MATRIX}), ("b", {"v": VECTOR})):
        save_file(part, tmp_path / f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": {"m": "a.safetensors", "v": "b.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    tensors, fingerprint = opened(tmp_path)
    assert {name: one.file for name, one in tensors.items()} == index["weight_map"]
    assert opened(tmp_path)[1] == fingerprint
    os.utime(tmp_path / "a.safetensors", ns=(1, 1))
    assert opened(tmp_path)[1] != fingerprint


@pytest.mark.parametrize(
    "placed, said",
    [
        ({"m": "../a.safetensors"}, "places 'm' outside the folder"),
        ({"m": "/etc/passwd"}, "places 'm' outside the folder"),
        ({"m": 7}, "places 'm' outside the folder"),
        ({"m": ".a.safetensors"}, "outside the folder"),
        ({"m": "c.safetensors"}, "names c.safetensors, but it is not in the folder"),
        ({"m": "a.safetensors", "x": "a.safetensors"}, "a.safetensors has no tensor"),
        ({"m": "a.safetensors", "v": "a.safetensors"}, "a.safetensors has no tensor"),
        ({"v": "b.safetensors"}, "b.safetensors: .* does not name 'w'"),
        ({"m": "a.safetensors", "v": "b.safetensors"}, "does not name 'w'"),
        ({"m": "a.safetensors", "q": "d.safetensors"}, "'m' is in both"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path, placed, said):
    save_file({"m": MATRIX}, tmp_path / "a.safetensors")
    save_file({"v": VECTOR, "w": VECTOR}, tmp_path / "b.safetensors")
    save_file({"m": MATRIX}, tmp_path / "d.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(DecodeError, match=said):
        opened(tmp_path)


def test_headers_that_lie(tmp_path):
    def told(header, data=b"", **more):
        return refusal(written(tmp_path, header, data, **more), ProtocolError)

    data = bytes(16)
    assert "12 bytes of" not in told({"a": entry(0, 12)}, data)
    assert "4 bytes that no tensor accounts for" in told({"a": entry(0, 12)}, data)
    assert "16 bytes that no tensor" in told({}, data)
    gap = {"a": entry(0, 4), "b": entry(8, 16)}
    assert "tensor 'b' leaves a gap" in told(gap, data)
    both = {"a": entry(0, 12), "b": entry(8, 16)}
    assert "tensor 'b' overlaps another" in told(both, data)
    assert "ends at byte" in told({"a": entry(0, 20)}, data)
    assert "truncated" in told({"a": entry(0, 20)}, data)
    assert "takes 16 bytes, its shape and dtype 24" in told(
        {"a": entry(0, 16, [2, 3])}, data
    )
    assert "takes -8 bytes" in told({"a": entry(12, 4, [2])}, data)
    # a tensor without elements bridges no gap
    bridge = {"a": entry(0, 4), "z": entry(8, 8, [0]), "b": entry(8, 16)}
    assert "leaves a gap" in told(bridge, data)
    for shape in ("x", [1.0], [-1], [True], [2**60, 2**60, 2**60], [1] * 9, None):
        assert "no sound shape" in told({"a": entry(0, 16) | {"shape": shape}}, data)
    for offsets in ([0], [0, 1, 2], "ab", [-1, 15], [0.0, 16], None):
        wrong = {"a": entry(0, 16) | {"data_offsets": offsets}}
        assert "no sound data_offsets" in told(wrong, data)
    for dtype in ("F33", "f32", 7, None, []):
        assert "unknown dtype" in told({"a": entry(0, 16) | {"dtype": dtype}}, data)
    for wrong in ([], 1, {"dtype": "F32"}, entry(0, 16) | {"more": 1}):
        assert "has no dtype, shape" in told({"a": wrong}, data)
    assert "has a name twice" in told(b'{"a": {}, "a": {}}')
    for raw in (b"", b"[]", b"\xff", b"[" * 9999, b'{"a": ' + b"1" * 9999 + b"}"):
        assert "JSON" in told(raw) or "has no dtype" in told(raw)
    assert "claims a header of" in told(b"{}", length=checkpoint.MAX_HEADER_BYTES + 1)
    assert "claims a header of" in told(b"{}", length=2**64 - 1)
    assert "ends within its header" in told(b"{}", length=3)
    (tmp_path / SINGLE).write_bytes(b"1234567")
    assert "7 bytes: it is truncated" in refusal(tmp_path)
    name = "\x1b[2J" + "é" * 1000
    sentence = told({name: entry(0, 20)}, data)
    assert sentence.isprintable() and len(sentence.encode()) < 512


def test_files_that_are_none(tmp_path):
    folder = tmp_path / "folder"
    assert "cannot be opened: No such file" in refusal(folder)
    folder.mkdir()
    assert "there is neither" in refusal(folder)
    save_file({"m": MATRIX}, tmp_path / "elsewhere")
    (folder / SINGLE).symlink_to(tmp_path / "elsewhere")
    assert "it is a link" in refusal(folder)
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)  # and nobody waits for a writer
    assert "not a regular file" in refusal(folder)
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()
    assert "not a regular file" in refusal(folder)
    assert "cannot be opened" in refusal(tmp_path / "elsewhere")
    assert "cannot be opened" in refusal("a\0b")
    (tmp_path / "linked").symlink_to(folder)  # the operator's own choice
    assert "not a regular file" in refusal(tmp_path / "linked")


def test_a_file_that_shrinks_is_an_error_and_no_crash(tmp_path):
    save_file({"m": MATRIX}, tmp_path / SINGLE)
    with open_checkpoint(str(tmp_path)) as made:
        made.find_tensors()
        os.truncate(tmp_path / SINGLE, 80)
        with pytest.raises(DecodeError, match="model.safetensors ends early"):
            made.block("m", 0, 6, 0, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_what_is_finite(dtype):
    array = np.zeros(9, np.float32)
    stored = np.uint16 if dtype is np.uint16 else dtype

    def as_stored(values):
        if dtype is np.uint16:
            return (values.view(np.uint32) >> 16).astype(stored)
        return values.astype(stored)

    for value in (0.0, -1.5, 6e4):
        array[4] = value
        assert is_finite(as_stored(array))
    for value in (np.inf, -np.inf, np.nan):
        array[4] = value
        assert not is_finite(as_stored(array))
