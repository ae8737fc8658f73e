"""The home: one private directory that holds everything a daemon owns.

It is marked as ours, readable by its owner alone, and locked before anything in it is
opened, so that two daemons never share a key or a database (DEC-C14).
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from blyand.errors import ConfigFault, DiskFull, StorageFault
from blyand.store.medium import Medium

log = logging.getLogger(__name__)

MARKER = "blyan-home"
LAYOUT = "1\n"  # content of the marker: the version of this layout


@dataclass(frozen=True)
class Home:
    """Where everything is. The paths need not exist yet."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def key(self) -> Path:
        return self.path / "key"

    @property
    def next_key(self) -> Path:
        """The key to which the account is being rotated."""
        return self.path / "key.next"

    @property
    def passphrase(self) -> Path:
        return self.path / "passphrase"

    @property
    def genesis(self) -> Path:
        return self.path / "genesis.json"

    @property
    def socket(self) -> Path:
        return self.path / "blyand.sock"

    @property
    def database(self) -> Path:
        return self.path / "db"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def intents(self) -> Path:
        return self.path / "intents"

    @property
    def poison(self) -> Path:
        return self.path / "poison"

    @property
    def bans(self) -> Path:
        """Who is refused, and until when."""
        return self.path / "bans"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def residuals(self) -> Path:
        """Error feedback and warm starts; may vanish (DEC-B14)."""
        return self.path / "residuals"

    @property
    def podl(self) -> Path:
        """Logs of the rounds that this node trained, to be shown to auditors."""
        return self.path / "podl"

    @property
    def scores(self) -> Path:
        """What this validator measured before gates, until it was shown."""
        return self.path / "scores"

    @property
    def work(self) -> Path:
        """Scratch of jobs; emptied by whoever uses it."""
        return self.path / "work"

    @property
    def restored(self) -> Path:
        """There while the home is a backup's and peers have not told what it signed."""
        return self.path / "restored"

    @property
    def http_token(self) -> Path:
        """What opens the HTTP gateway (DEC-C3)."""
        return self.path / "http.token"

    @property
    def http_place(self) -> Path:
        """Where the HTTP gateway listens; there while it does."""
        return self.path / "http.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"


def create_home(path: Path) -> Home:
    """Make `path` a home; a home that exists already is left as it is.

    Raises ConfigFault for a directory that holds something else, is another user's,
    or cannot be made.
    """
    home = Home(path.absolute())
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (home.path / MARKER).exists():
            if any(home.path.iterdir()):
                raise ConfigFault(
                    f"{home.path} is not empty and not a Blyan home; name another one"
                )
            _check_owner(home.path)
            home.path.chmod(0o700)
            (home.path / MARKER).write_text(LAYOUT)
        _check(home)
        for directory in (home.residuals, home.podl, home.scores, home.work):
            directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigFault(f"cannot make a home in {home.path}: {error}") from error
    return home


@contextmanager
def open_home(path: Path) -> Iterator[Home]:
    """Lock a home for as long as the block runs, and tighten its mode to 0700.

    Raises ConfigFault when there is none, when it is another user's, or when another
    daemon holds it.
    """
    home = Home(path.absolute())
    try:
        _check(home)
        if home.path.stat().st_mode & 0o077:
            home.path.chmod(0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.fdopen(os.open(home.lock, flags, 0o600), "r+")
    except OSError as error:
        raise ConfigFault(f"cannot open the home {home.path}: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(20).strip() or "unknown"
            raise ConfigFault(
                f"another daemon (pid {holder}) uses {home.path}; "
                "stop it first or name another home"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield home


def _check(home: Home) -> None:
    if not home.path.is_dir():
        raise ConfigFault(
            f"there is no home in {home.path}; make one with: "
            f"blyand init --home {home.path}"
        )
    _check_owner(home.path)
    try:
        layout = (home.path / MARKER).read_text()
    except FileNotFoundError:
        raise ConfigFault(
            f"{home.path} is not a Blyan home; make one with: "
            f"blyand init --home {home.path}"
        ) from None
    if layout != LAYOUT:
        raise ConfigFault(
            f"{home.path} has layout {layout.strip()[:20]!r}, this software reads "
            f"{LAYOUT.strip()}"
        )


def _check_owner(path: Path) -> None:
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise ConfigFault(
            f"{path} belongs to user {owner}, not to user {os.geteuid()}; "
            "run as its owner or name another home"
        )


def read_or_none(path: Path) -> bytes | None:
    """Return a small file's bytes; None if it is not there: it fills again."""
    try:
        return path.read_bytes()
    except OSError:
        return None


async def replace_file(path: Path, raw: bytes) -> None:
    """Put `raw` in a file's place, durable on return.

    A disk that refuses is logged: it can be lost.
    """

    def replace() -> None:
        medium = Medium(path.parent)
        try:
            medium.put(path.name, raw)
        finally:
            medium.close()

    try:
        await trio.to_thread.run_sync(replace)
    except (StorageFault, DiskFull) as error:
        log.warning("cannot save %s: %s", path, error)
