"""Backups: whole or not at all, made while others write, restored without the intents."""

from __future__ import annotations

import os

import numpy as np
import pytest

from blyan_tile.tblock import outline_of
from blyand.backup import MARKER, UNFINISHED, back_up, restore
from blyand.errors import ConfigFault, StorageFault
from blyand.home import create_home
from blyand.store.blobs import BlobStore
from blyand.store.db import open_store
from blyand.store.schema import PAYLOAD

TILE = np.arange(100_000, dtype=np.float32)


@pytest.fixture
def node(tmp_path):
    """(home, database, blobs) with 2,500 entries, one durable and one derived blob."""
    home = create_home(tmp_path / "home")
    for path in (home.key, home.passphrase, home.genesis, home.config):
        path.write_text(path.name)
    database, blobs = open_store(home.database), BlobStore(home.blobs)
    entries = [(PAYLOAD + n.to_bytes(4, "big"), b"x" * 10) for n in range(2500)]
    database.write_batch(entries, sync=True)
    blobs.put_array(TILE)
    blobs.put_array(TILE + 1, durable=False)
    yield home, database, blobs
    database.close()
    blobs.close()


def quiet(stage, done, total):
    """A report that nobody reads."""


def test_a_home_comes_back_without_its_intents(node, tmp_path):
    home, database, blobs = node
    (home.path / "intents").mkdir()
    told = []
    late = PAYLOAD + b"late"

    def report(stage, done, total):
        told.append(stage)
        database.write_batch([(late, b"y")], sync=True)  # in the middle of the copy

    to = tmp_path / "saved"
    count, size = back_up(home, database, blobs, to, report)
    root = outline_of(TILE).root
    assert (count, size) == (1, blobs.path(root).stat().st_size)
    assert told.count("database") == 3 and told[-1] == "blobs"
    assert database.get(late) == b"y"
    assert os.stat(to / "blobs" / root.hex()[:2]).st_mode & 0o777 == 0o700
    back = restore(to, tmp_path / "again", quiet)
    assert back.restored.exists() and not back.intents.exists()
    assert back.key.read_text() == "key" and back.config.exists()
    copy, files = open_store(back.database), BlobStore(back.blobs)
    assert copy.was_clean and not copy.repaired
    assert len(list(copy.scan(PAYLOAD))) == 2500 and copy.get(late) is None
    assert files.verify(root) and len(files.roots(durable=False)) == 0
    copy.close()
    files.close()


def test_a_disk_without_links_gets_copies(node, tmp_path, monkeypatch):
    def refuse(*args, **named):
        raise OSError(18, "another disk")

    monkeypatch.setattr("os.link", refuse)
    home, database, blobs = node
    count, _ = back_up(home, database, blobs, tmp_path / "saved", quiet)
    assert count == 1


def test_a_full_disk_leaves_nothing_behind(node, tmp_path, monkeypatch):
    def refuse(*args, **named):
        raise OSError(28, "No space left on device")

    home, database, blobs = node
    monkeypatch.setattr("os.link", refuse)
    to = tmp_path / "saved"
    with pytest.raises(StorageFault, match="No space left"):
        back_up(home, database, blobs, to, quiet)
    assert not to.exists() and not to.with_name("saved.partial").exists()


def test_an_unfinished_backup_is_replaced_and_a_foreign_folder_is_not(node, tmp_path):
    home, database, blobs = node
    to = tmp_path / "saved"
    partial = tmp_path / "saved.partial"
    partial.mkdir()
    (partial / "letter").write_text("dear")
    with pytest.raises(ConfigFault, match="not ours"):
        back_up(home, database, blobs, to, quiet)
    assert (partial / "letter").exists()
    (partial / UNFINISHED).write_text("")
    assert back_up(home, database, blobs, to, quiet)[0] == 1
    assert not (to / "letter").exists() and not (to / UNFINISHED).exists()


def test_places_that_cannot_be_a_backup_or_a_home(node, tmp_path):
    home, database, blobs = node
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter").write_text("dear")
    with pytest.raises(ConfigFault, match="empty"):
        back_up(home, database, blobs, full, quiet)
    with pytest.raises(ConfigFault, match="inside"):
        back_up(home, database, blobs, home.path / "saved", quiet)
    with pytest.raises(ConfigFault, match="no backup"):
        restore(full, tmp_path / "new", quiet)
    saved = tmp_path / "saved"
    saved.mkdir()  # an empty folder will do
    back_up(home, database, blobs, saved, quiet)
    with pytest.raises(ConfigFault, match="in use"):
        restore(saved, home.path, quiet)
    (saved / MARKER).write_text("2\n")
    with pytest.raises(ConfigFault, match="another version"):
        restore(saved, tmp_path / "new", quiet)
