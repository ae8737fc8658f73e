"""Blobs: every way in, every kind of damage, resumed arrivals."""

import os
import threading

import numpy as np
import pytest

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.errors import BadProof, ProtocolError
from blyan_tile import tblock
from blyand.errors import Busy, NotHere, StorageFault
from blyand.store.blobs import CHECKED_S, BlobStore

RNG = np.random.default_rng(7)
SMALL = RNG.standard_normal((20, 30), np.float32)
LARGE = RNG.standard_normal(LEAF_BYTES // 2 + 5, np.float32)  # 3 leaves, the last short


@pytest.fixture
def blobs(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    yield store
    store.close()


def path_of(tmp_path, root):
    text = root.hex()
    return tmp_path / "blobs" / text[:2] / f"{text[2:]}.tblk"


def reopened(blobs, tmp_path):
    blobs.close()
    return BlobStore(tmp_path / "blobs")


def flip(path, offset):
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize(
    "array",
    [
        SMALL,
        LARGE,
        np.empty(0, np.uint8),
        SMALL.astype(np.float16),
        SMALL.T,
        np.arange(6, dtype=np.uint16).reshape(1, 2, 3),
    ],
)
def test_put_and_open(blobs, tmp_path, array, durable):
    root = blobs.put_array(array, durable=durable)
    assert root == tblock.root_of(array)
    assert blobs.put_array(array, durable=durable) == root
    assert blobs.roots(durable=durable) == (root,)
    assert blobs.is_durable(root) is durable
    again = reopened(blobs, tmp_path)
    assert again.has(root) and again.is_durable(root) is durable
    opened = again.open_array(root)
    assert opened.shape == array.shape and opened.dtype == array.dtype
    assert np.array_equal(opened, array)
    assert not opened.flags.writeable or not opened.size
    assert again.open_array(root) is opened
    assert again.outline(root).shape == array.shape
    assert again.total_bytes == again.outline(root).file_bytes
    again.close()


def test_the_file_is_the_canonical_one(blobs, tmp_path):
    root = blobs.put_bytes(b"some bytes")
    path = path_of(tmp_path, root)
    assert path.read_bytes() == tblock.to_bytes(tblock.bytes_array(b"some bytes"))
    assert path.stat().st_mode & 0o777 == 0o444
    assert not list((tmp_path / "blobs" / "tmp").iterdir())


def test_durable_replaces_derived(blobs, tmp_path):
    root = blobs.put_array(SMALL, durable=False)
    assert blobs.put_array(SMALL) == root and blobs.is_durable(root)
    assert blobs.put_array(SMALL, durable=False) == root and blobs.is_durable(root)
    assert blobs.roots(durable=False) == ()
    again = reopened(blobs, tmp_path)
    assert again.is_durable(root)
    assert not list((tmp_path / "blobs" / "derived").iterdir())


def test_who_was_told_of_a_derived_file_may_open_it_once_it_is_durable(blobs):
    root = blobs.put_array(SMALL, durable=False)
    told = blobs.path(root)
    blobs.put_array(SMALL)
    assert tblock.verify_file(os.open(told, os.O_RDONLY), root).root == root
    blobs.delete(root)
    assert not told.exists() and not blobs.has(root)


def test_delete_keeps_what_is_mapped(blobs):
    root = blobs.put_array(LARGE)
    opened = blobs.open_array(root)
    blobs.delete(root)
    blobs.delete(root)
    assert not blobs.has(root) and blobs.total_bytes == 0
    assert np.array_equal(opened, LARGE)
    with pytest.raises(NotHere):
        blobs.open_array(root)


def test_put_file_adopts(blobs, tmp_path):
    path = tmp_path / "work"
    path.write_bytes(tblock.to_bytes(LARGE))
    root = blobs.put_file(path)
    assert not path.exists() and blobs.is_durable(root)
    assert path_of(tmp_path, root).stat().st_mode & 0o777 == 0o444
    path.write_bytes(tblock.to_bytes(LARGE))
    assert blobs.put_file(path) == root and not path.exists()


def test_put_file_refuses_what_is_wrong(blobs, tmp_path):
    path = tmp_path / "work"
    path.write_bytes(tblock.to_bytes(LARGE))
    flip(path, 5000)
    with pytest.raises(BadProof):
        blobs.put_file(path)
    assert path.exists()
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(path)
    os.mkfifo(pipe)
    for other in (link, pipe, tmp_path, tmp_path / "absent"):
        with pytest.raises(StorageFault):
            blobs.put_file(other)
    path.write_bytes(b"short")
    with pytest.raises(ProtocolError):
        blobs.put_file(path)
    assert blobs.total_bytes == 0


@pytest.mark.parametrize("damage", ["truncated", "longer", "header", "leaf", "gone"])
def test_damaged_files_count_as_absent(blobs, tmp_path, damage):
    root = blobs.put_array(LARGE)
    path = path_of(tmp_path, root)
    path.chmod(0o644)
    if damage == "truncated":
        os.truncate(path, 100_000)
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif damage == "header":
        flip(path, 24)
    elif damage == "leaf":
        flip(path, path.stat().st_size - 1)
    again = reopened(blobs, tmp_path)
    if damage == "gone":
        path.unlink()
    assert not again.has(root)
    with pytest.raises(NotHere):
        again.open_array(root)
    assert not path.exists() and again.lost == {root}
    assert again.put_array(LARGE) == root and again.has(root) and not again.lost
    again.close()


def test_links_and_foreign_names_are_no_blobs(blobs, tmp_path):
    root = blobs.put_array(SMALL)
    path = path_of(tmp_path, root)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (path.parent / "README.tblk").write_text("hello")
    assert not blobs.verify(root)
    again = reopened(blobs, tmp_path)
    assert not again.has(root) and again.roots(durable=True) == ()
    assert (tmp_path / "elsewhere").exists()
    again.close()


def test_a_flipped_bit_is_not_served(blobs, tmp_path):
    root = blobs.put_array(LARGE)
    data = LARGE.tobytes()
    assert blobs.read_leaf(root, 2) == data[2 * LEAF_BYTES :]
    with pytest.raises(IndexError):
        blobs.read_leaf(root, 3)
    assert blobs.verify(root)
    flip(path_of(tmp_path, root), 4096 + LEAF_BYTES + 3)
    assert blobs.read_leaf(root, 0) == data[:LEAF_BYTES]
    with pytest.raises(NotHere):
        blobs.read_leaf(root, 1)
    assert not blobs.has(root) and blobs.lost == {root}


def rooms_of(outline, indices):
    return [(i, memoryview(bytearray(outline.leaf_span(i)[1]))) for i in indices]


def test_leaves_are_read_into_memory_and_checked(blobs, tmp_path):
    root = blobs.put_array(LARGE)
    rooms = rooms_of(blobs.outline(root), (0, 2))
    assert blobs.read_leaves(root, rooms)
    assert [bytes(room) for _, room in rooms] == [chunks(LARGE)[0], chunks(LARGE)[2]]
    again = rooms_of(blobs.outline(root), (1, 2))
    if blobs.read_leaves(root, again, wait=False):  # as far as the kernel can tell
        assert [bytes(room) for _, room in again] == chunks(LARGE)[1:]
    with pytest.raises(NotHere):
        blobs.read_leaves(bytes(32), rooms)
    flip(path_of(tmp_path, root), 4096 + LEAF_BYTES + 3)
    assert blobs.read_leaves(root, rooms)
    with pytest.raises(NotHere):
        blobs.read_leaves(root, again)
    assert blobs.lost == {root}


def test_a_hot_leaf_is_hashed_once_a_minute(blobs, monkeypatch):
    root = blobs.put_array(LARGE)
    rooms = rooms_of(blobs.outline(root), (0, 1))
    hashed, now, check = [], [1000.0], tblock.check_leaf

    def counting(outline, index, chunk):
        hashed.append(index)
        check(outline, index, chunk)

    monkeypatch.setattr(tblock, "check_leaf", counting)
    monkeypatch.setattr("blyand.store.blobs.time.monotonic", lambda: now[0])
    if not blobs.read_leaves(root, rooms, wait=False):
        pytest.skip("this file system does not tell what is in memory")
    blobs.read_leaves(root, rooms, wait=False)
    assert hashed == [0, 1]
    blobs.read_leaves(root, rooms)  # from the disk, perhaps
    now[0] += CHECKED_S
    blobs.read_leaves(root, rooms, wait=False)
    assert hashed == [0, 1] * 3


def test_a_truncated_file_is_not_served(blobs, tmp_path):
    root = blobs.put_array(LARGE)
    rooms = rooms_of(blobs.outline(root), (0, 1))
    path = path_of(tmp_path, root)
    path.chmod(0o644)
    os.truncate(path, 4096 + LEAF_BYTES + 5)
    assert not blobs.read_leaves(root, rooms, wait=False)  # nothing is said of it yet
    with pytest.raises(NotHere):
        blobs.read_leaves(root, rooms)
    assert blobs.lost == {root}


def test_derived_blobs_are_hashed_after_a_restart(blobs, tmp_path):
    root = blobs.put_array(LARGE, durable=False)
    flip(tmp_path / "blobs" / "derived" / f"{root.hex()}.tblk", 4096 + LEAF_BYTES)
    again = reopened(blobs, tmp_path)
    with pytest.raises(NotHere):
        again.open_array(root)
    again.close()


def chunks(array):
    data = array.tobytes()
    return [data[at : at + LEAF_BYTES] for at in range(0, len(data), LEAF_BYTES)]


def test_fetch_resumes_after_a_restart(blobs, tmp_path):
    outline = tblock.outline_of(LARGE)
    partial = blobs.begin_fetch(outline)
    with pytest.raises(Busy):
        blobs.begin_fetch(outline)
    assert partial.missing() == (0, 1, 2)
    partial.write_leaf(1, chunks(LARGE)[1])
    partial.write_leaf(2, chunks(LARGE)[2])
    for index, chunk in ((0, bytes(LEAF_BYTES)), (0, b""), (3, b"x"), (-1, b"x")):
        with pytest.raises(BadProof):
            partial.write_leaf(index, chunk)
    with pytest.raises(ValueError):
        partial.finish()
    partial.close()
    part = tmp_path / "blobs" / "partial" / f"{outline.root.hex()}.part"
    flip(part, 4096 + 2 * LEAF_BYTES)  # as a torn write would leave it
    again = reopened(blobs, tmp_path)
    assert not again.has(outline.root)
    partial = again.begin_fetch(outline)
    assert partial.missing() == (0, 2)
    threads = [
        threading.Thread(target=partial.write_leaf, args=(index, chunks(LARGE)[index]))
        for index in (0, 2, 0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert partial.finish() == outline.root
    partial.close()
    assert np.array_equal(again.open_array(outline.root), LARGE)
    assert again.is_durable(outline.root) and not part.exists()
    again.close()


def test_a_part_of_another_outline_begins_anew(blobs, tmp_path):
    outline = tblock.outline_of(LARGE)
    part = tmp_path / "blobs" / "partial" / f"{outline.root.hex()}.part"
    part.write_bytes(tblock.to_bytes(SMALL))
    partial = blobs.begin_fetch(outline)
    assert partial.missing() == (0, 1, 2)
    partial.discard()
    assert not part.exists()
    blobs.begin_fetch(outline).close()


def test_an_empty_blob_arrives_at_once(blobs):
    outline = tblock.outline_of(np.empty(0, np.uint8))
    root = blobs.begin_fetch(outline).finish(durable=False)
    assert blobs.open_array(root).shape == (0,)


def test_sweeps(blobs, tmp_path):
    (tmp_path / "blobs" / "tmp" / "orphan").write_bytes(b"x")
    again = reopened(blobs, tmp_path)
    assert not list((tmp_path / "blobs" / "tmp").iterdir())
    again.begin_fetch(tblock.outline_of(SMALL)).close()
    busy = again.begin_fetch(tblock.outline_of(LARGE))
    assert again.sweep_partials(before_s=0) == 0
    assert again.sweep_partials(before_s=2**40) == 1
    busy.close()
    again.close()


def test_views_are_bounded(tmp_path):
    blobs = BlobStore(tmp_path / "few", open_views=2)
    roots = [blobs.put_array(np.full(5, n, np.float32)) for n in range(4)]
    before = len(os.listdir("/proc/self/fd"))
    arrays = [blobs.open_array(root)[0] for root in roots * 3]
    assert [float(x) for x in arrays] == [0, 1, 2, 3] * 3
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    blobs.close()
