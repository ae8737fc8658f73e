"""A disk that does not give back what it took: typed, named, and fetched again."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from blyan_tile import tblock
from blyand.errors import NotHere, StorageFault
from blyand.store.blobs import BlobStore
from blyand.store.intents import IntentLog


def array(number):
    return np.full(1 << 18, number, np.float32)  # four leaves


@pytest.fixture
def bad_sectors(monkeypatch):
    """Return what makes the disk fail when it is read."""

    def fail(fd, size, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    return lambda: monkeypatch.setattr(os, "pread", fail)


@pytest.mark.parametrize(
    "read",
    [
        lambda blobs, root: blobs.read_leaf(root, 0),
        lambda blobs, root: blobs.open_array(root),
    ],
)
def test_a_blob_that_cannot_be_read_is_lost_and_named(
    tmp_path, bad_sectors, caplog, monkeypatch, read
):
    blobs = BlobStore(tmp_path)
    root = blobs.put_array(array(1))
    bad_sectors()
    with pytest.raises(NotHere):
        read(blobs, root)
    assert blobs.lost == {root} and not blobs.has(root)
    assert f"blob {root.hex()} is damaged" in caplog.text
    monkeypatch.undo()
    assert blobs.put_array(array(1)) == root and blobs.lost == frozenset()
    blobs.close()


def test_verifying_a_blob_that_cannot_be_read(tmp_path, bad_sectors):
    blobs = BlobStore(tmp_path)
    root = blobs.put_array(array(1))
    bad_sectors()
    assert not blobs.verify(root) and blobs.lost == {root}
    blobs.close()


def test_an_intent_log_that_cannot_be_read(tmp_path, bad_sectors):
    IntentLog(tmp_path).close()
    bad_sectors()
    with pytest.raises(StorageFault, match="cannot read"):
        IntentLog(tmp_path)


MAPPED = """
import os, sys
from pathlib import Path
from blyand.store.blobs import BlobStore
blobs = BlobStore(Path(sys.argv[1]))
root = bytes.fromhex(sys.argv[2])
array = blobs.open_array(root)
print(float(array[-1]), flush=True)
os.truncate(blobs.path(root), 5000)
print(float(array[-1]), flush=True)
"""


def test_a_file_cut_under_its_mapping_kills_and_the_next_start_knows(tmp_path):
    """DEC-C6: the kernel says it with SIGBUS, which no Python can answer."""
    blobs = BlobStore(tmp_path)
    root = blobs.put_array(array(2))
    blobs.close()
    os.chmod(blobs.path(root), 0o600)
    child = subprocess.run(
        [sys.executable, "-c", MAPPED, str(tmp_path), root.hex()],
        capture_output=True,
        text=True,
    )
    assert (child.returncode, child.stdout) == (-signal.SIGBUS, "2.0\n")
    blobs = BlobStore(tmp_path)
    assert not blobs.has(root) and blobs.lost == {root}
    assert tblock.root_of(array(2)) == blobs.put_array(array(2)) == root
    blobs.close()
