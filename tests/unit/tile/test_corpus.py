"""Archives: deterministic, split by files, and safe to open from a stranger."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from blyan_proto.codec import encode
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_tile import tblock
from blyan_tile.baselines import baselines
from blyan_tile.corpus import (
    Archive,
    ArchiveJob,
    ArchiveResult,
    build,
    held_out_of,
    joined,
    pack,
)
from blyan_tile.duplicates import near_duplicates
from blyan_tile.tokenizer import ByteTokenizer, tokenizer_named

FILES = [
    ("a.txt", b"alpha", False),
    ("b/c.md", b"beta", True),
    ("b/d.txt", b"gamma", True),
    ("e.txt", b"", False),
    ("f.txt", b"delta", False),
]


def text(seed: int, lines: int = 30) -> str:
    generator = np.random.default_rng(seed)
    rows = generator.integers(97, 123, (lines, 20)).astype(np.uint8)
    return "\n".join(bytes(row).decode() for row in rows)


def job(directory: Path, out: Path, **changes: int) -> ArchiveJob:
    fields = {"max_bytes": 1 << 20, "held_out_ppm": 300_000, **changes}
    return ArchiveJob(str(directory), str(out), **fields)


def written(
    directory: Path, out: Path, **changes: int
) -> tuple[ArchiveResult, Archive]:
    result = build(job(directory, out, **changes), lambda _: None)
    with out.open("rb") as file:
        tblock.verify_file(file.fileno(), result.blob)
        return result, Archive(tblock.open_array(file.fileno()))


def test_sides_are_views_in_the_order_of_paths() -> None:
    array = tblock.bytes_array(pack(FILES[::-1]))
    archive = Archive(array)
    assert [file.path for file in archive.index.files] == [f[0] for f in FILES]
    assert [bytes(view) for view in archive.train] == [b"alpha", b"delta"]
    assert [bytes(view) for view in archive.held_out] == [b"betagamma"]
    assert bytes(joined(archive.train)) == b"alphadelta"
    assert bytes(archive.content(archive.index.files[1])) == b"beta"
    assert all(np.shares_memory(view, array) for view in archive.train)
    assert len(joined([])) == 0


def test_a_strangers_archive_is_checked() -> None:
    raw = pack(FILES)
    for broken in (b"", raw[:3], raw[:40], raw[:-1], raw + b"x"):
        with pytest.raises(DecodeError):
            Archive(tblock.bytes_array(broken))
    with pytest.raises(LimitExceeded):
        Archive(tblock.bytes_array(struct.pack("<I", 2**31) + raw[4:]))
    with pytest.raises(DecodeError):
        Archive(np.zeros((2, 2), np.uint8))
    for place in range(len(raw) - 19):  # the length and the index
        flipped = bytearray(raw)
        flipped[place] ^= 1
        try:
            archive = Archive(tblock.bytes_array(bytes(flipped)))
        except ProtocolError:
            continue
        assert encode(archive.index) == bytes(flipped[4:-19])


def test_a_directory_gives_the_same_archive_every_time(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    for index in range(12):
        (source / "deep" / f"{index}.txt").write_text(text(index))
    (source / "copy.txt").write_text(text(3))  # the same bytes as another file
    (source / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (source / "zero.txt").write_bytes(b"a\0b")
    (source / "empty.txt").write_bytes(b"")
    (source / "image.png").write_bytes(b"png")
    (source / "link.txt").symlink_to(source / "deep" / "1.txt")
    (source / ".hidden").mkdir()
    (source / ".hidden" / "x.txt").write_text("secret")
    result, archive = written(source, tmp_path / "one")
    again, _ = written(source, tmp_path / "two")
    assert result == again
    assert result.files == len(archive.index.files) == 12
    assert 0 < result.held_out_files < 12
    assert result.train_bytes + result.held_out_bytes == 12 * len(text(0))
    paths = [file.path for file in archive.index.files]
    assert paths == sorted(paths) and "copy.txt" in paths  # the first of two twins
    small, _ = written(source, tmp_path / "three", max_bytes=3 * len(text(0)))
    assert small.files == 3
    assert written(source, tmp_path / "four", held_out_ppm=0)[0].held_out_files == 0


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded):
        build(job(tmp_path, tmp_path / "out"), lambda _: None)


def test_one_file_at_least_is_held_out() -> None:
    paths = [f"{index}.txt" for index in range(5)]
    assert len(held_out_of(paths, 1)) == 1
    assert held_out_of(paths, 0) == frozenset()
    assert held_out_of(paths[:1], 1) == frozenset()
    assert held_out_of(paths, 1_000_000) == frozenset(paths)
    many = [f"{index}.txt" for index in range(2000)]
    assert 0.25 < len(held_out_of(many, 300_000)) / 2000 < 0.35


def test_near_duplicates_leave_the_training_side(tmp_path: Path) -> None:
    kept = [text(1).encode(), text(2).encode()]
    near = text(1).replace("a", "a", 1).encode() + b"\none more line"
    half = "\n".join(text(1).split("\n")[:10] + text(9).split("\n")).encode()
    assert near_duplicates(kept, [near, half, text(3).encode()]) == [True, False, False]
    assert near_duplicates([], [near]) == [False]


def test_baselines_order_themselves() -> None:
    words = "the cat sat on the mat and the rat ran to the hat ".split()
    generator = np.random.default_rng(5)
    train, held_out = (
        " ".join(generator.choice(words, size)).encode() for size in (4000, 800)
    )
    found = baselines(
        Archive(tblock.bytes_array(pack([("a", train, False), ("b", held_out, True)])))
    )
    assert math.log(256) > found.unigram > found.bigram > found.trigram > 0.3
    assert 0.3 < found.lzma < found.unigram
    nothing = Archive(tblock.bytes_array(pack([("a", train, False)])))
    assert math.isnan(baselines(nothing).lzma)


def test_bytes_are_tokens() -> None:
    tokenizer = tokenizer_named("bytes")
    assert isinstance(tokenizer, ByteTokenizer)
    tokens = tokenizer.encode("naïve €")
    assert tokenizer.decode(tokens) == "naïve €"
    stream = tokenizer.stream()
    pieces = [stream.add(token) for token in tokens[:-1]]
    assert "".join(pieces) == "naïve "
    assert stream.end() == "\ufffd"
    with pytest.raises(DecodeError):
        tokenizer_named("other")
