"""The poison box: foreign items on which our own code fell over (DEC-C2).

Such an item is dropped, remembered and kept for whoever mends the bug; the daemon
goes on. Nothing of it is believed and nobody is blamed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blyan_proto.errors import ProtocolError
from blyand.errors import LocalFault, Unavailable
from blyand.log import broken
from blyand.rules.verdict import Ignore, Reject

log = logging.getLogger(__name__)

REMEMBERED = 4096  # ids; the oldest is forgotten
MAX_FILES = 128
MAX_FILE_BYTES = 1 << 20  # of a longer item, the beginning


class Poisoned(Ignore):
    """Our own code fell over on an item; it is dropped and nobody is blamed."""

    def __init__(self, what: str, identity: bytes) -> None:
        super().__init__(f"this node cannot handle {what} {identity.hex()[:16]}")
        self.identity = identity


class PoisonBox:
    """Remembers item ids and keeps item bytes in a directory, both bounded."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, identity: bytes) -> bool:
        """True if the item with this id is to be dropped unseen."""
        return identity in self._known

    def put(self, what: str, identity: bytes, raw: bytes, error: Exception) -> None:
        """Remember an item, write its bytes to ``<blake2b of them>.bin``, log BROKEN.

        Never fails: a disk that refuses costs the copy, not the daemon.
        """
        known = identity in self._known
        self._known[identity] = None
        self._known.move_to_end(identity)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if known:
            return
        name = f"{hashlib.blake2b(raw, digest_size=32).hexdigest()}.bin"
        broken(log, f"on a foreign {what}", error, item=identity, kept=name)
        try:
            self._keep(name, raw[:MAX_FILE_BYTES])
        except OSError as refused:
            log.error("cannot keep a poisonous %s: %s", what, refused)

    @contextmanager
    def containing(
        self, what: str, item: Callable[[], tuple[bytes, bytes]]
    ) -> Iterator[None]:
        """Turn a bug in the block into Poisoned; what is no bug passes through.

        The per-item boundary of DEC-C2. `item` gives (identity, bytes) when asked.
        """
        try:
            yield
        except (ProtocolError, Reject, Ignore, Unavailable, LocalFault):
            raise
        except Exception as error:
            identity, raw = item()
            self.put(what, identity, raw, error)
            raise Poisoned(what, identity) from error

    def _keep(self, name: str, raw: bytes) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / name
        if path.exists():
            return
        stored = sorted(self._directory.glob("*.bin"), key=lambda p: p.stat().st_mtime)
        for oldest in stored[: max(0, len(stored) - MAX_FILES + 1)]:
            oldest.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "wb") as file:
            file.write(raw)
