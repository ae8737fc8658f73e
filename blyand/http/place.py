"""Where the gateway is, and the secret that opens it: what the rest of the node may ask.

The token is 256 random bits in `<home>/http.token`, readable by the owner alone; it is
made once and stays until somebody removes the file. `<home>/http.json` tells programs of
the same owner where the gateway listens now.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from blyand.errors import ConfigFault, StorageFault
from blyand.home import Home

TOKEN_BYTES = 32
MIN_CHARACTERS, MAX_CHARACTERS = 32, 512  # of a token that the owner chose


@dataclass
class Place:
    """Changes when the gateway has bound its socket; without one it stays as it is."""

    url: str | None = None
    token: str = ""
    is_public: bool = False  # others than this machine can reach it

    @property
    def page(self) -> str | None:
        """The chat page, with the token in the fragment, which no server is sent."""
        return f"{self.url}/#token={self.token}" if self.url else None

    @property
    def owner(self) -> bytes:
        """Whose requests those with the token are (DEC-S2); tells nothing of it."""
        return hashlib.blake2b(self.token.encode(), digest_size=16).digest()

    def admits(self, token: str) -> bool:
        """Compare in constant time (DEC-C3)."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def warnings(self) -> list[str]:
        """Return what the operator should know."""
        if not self.is_public:
            return []
        return [
            f"{self.url} is open to other machines, and the token travels in the clear; put "
            "a proxy with TLS in front of it, or listen on 127.0.0.1"
        ]


def is_loopback(address: str) -> bool:
    """True when only this machine reaches an address."""
    return ipaddress.ip_address(address).is_loopback


def read_token(home: Home) -> str:
    """Return the token of a home, made now if there is none.

    ConfigFault when the file is not private or holds no token, StorageFault when it
    cannot be written.
    """
    path = home.http_token
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _make(path)
    except OSError as error:
        raise ConfigFault(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise ConfigFault(f"others may read {path}; run: chmod 600 {path}")
        token = file.read(MAX_CHARACTERS + 2).decode("ascii", "replace").strip()
    if not MIN_CHARACTERS <= len(token) <= MAX_CHARACTERS or not token.isprintable():
        raise ConfigFault(
            f"{path} holds no token of {MIN_CHARACTERS} to {MAX_CHARACTERS} characters; "
            "remove it, and a new one is made"
        )
    return token


def _make(path: Path) -> str:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w") as file:
            file.write(token + "\n")
    except OSError as error:
        raise StorageFault(f"cannot write {path}: {error}") from error
    return token


def write_place(home: Home, url: str) -> Path:
    """Say in the home where the gateway is; return the file, to be removed at the end."""
    path = home.http_place
    body = {"url": url, "pid": os.getpid(), "token_file": str(home.http_token)}
    try:
        path.write_text(json.dumps(body) + "\n")
        path.chmod(0o600)
    except OSError as error:
        raise StorageFault(f"cannot write {path}: {error}") from error
    return path
