"""The node's key, at rest: scrypt and ChaCha20-Poly1305 in one versioned file (KEY-01).

The secret leaves this file only inside a SigningKey. The passphrase comes from a file,
never from an argument or the environment itself. Where none is named, one is made at
``<home>/passphrase``: then whoever reads the home has the key, and only a copy of the
key file alone is protected.

An account keeps its name when its key changes (KEY-02). ``key`` is the current key,
``key.1``, ``key.2`` … are older ones, ``key.next`` is one that the chain has not taken
yet. A new key is durable before anybody hears of it, and takes its place in one rename
when state names it: whenever the process ends, every key that ever signed is there.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from blyan_proto.signing import SigningKey, account_of
from blyand.errors import ConfigFault
from blyand.home import Home

VERSION = 1
LOG2_N, R, P = 14, 8, 1  # scrypt: 16 MiB and about 70 ms of one core
MAX_LOG2_N = 18  # a file may ask for more, up to 256 MiB
MAX_FILE_BYTES = 4096
SECRET_BYTES, SALT_BYTES, NONCE_BYTES, TAG_BYTES = 32, 16, 12, 16
ACCOUNT_BYTES = 20


def create(home: Home, passphrase_file: Path | None = None) -> SigningKey:
    """Make a new key and its file (mode 0600, durable before the return).

    Without `passphrase_file` a random passphrase is made at ``<home>/passphrase``.
    Raises ConfigFault if the home has a key already: a key is never replaced.
    """
    if home.key.exists():
        raise ConfigFault(f"{home.key} exists already; a key is never overwritten")
    if passphrase_file is None:
        passphrase_file = home.passphrase
        if not passphrase_file.exists():
            _write_private(passphrase_file, f"{secrets.token_urlsafe(24)}\n".encode())
    key = SigningKey(secrets.token_bytes(SECRET_BYTES))
    _write_private(home.key, _seal(key, _read_passphrase(passphrase_file)))
    return key


def open(home: Home, passphrase_file: Path | None = None) -> SigningKey:
    """Return the home's key; takes about 0.1 s, so call it before the loop runs.

    Raises ConfigFault: no key, readable by others, damaged, or a wrong passphrase.
    """
    return _open(home, home.key, passphrase_file)


def open_next(home: Home, passphrase_file: Path | None = None) -> SigningKey:
    """Return the key that follows this home's, made and durable when there was none."""
    current = open(home, passphrase_file)
    if not home.next_key.exists():
        made = SigningKey(secrets.token_bytes(SECRET_BYTES), current.account)
        passphrase = _read_passphrase(passphrase_file or home.passphrase)
        _write_private(home.next_key, _seal(made, passphrase))
    return _open(home, home.next_key, passphrase_file)


def promote(home: Home) -> None:
    """Let the next key be the current one; the old one stays beside it. Durable."""
    number = 1 + max((number for number, _ in _older(home)), default=0)
    try:
        os.link(home.key, home.path / f"{home.key.name}.{number}")
        os.replace(home.next_key, home.key)
        _sync(home.path)
    except OSError as error:
        raise ConfigFault(f"cannot put the new key in its place: {error}") from error


def versions(home: Home, passphrase_file: Path | None = None) -> list[SigningKey]:
    """Return every key of this home's account: the current one, then the newest first."""
    older = sorted(_older(home), reverse=True)
    paths = [home.key, *(path for _, path in older)]
    found = [_open(home, path, passphrase_file) for path in paths]
    return list({key.public: key for key in found}.values())


def _older(home: Home) -> list[tuple[int, Path]]:
    found = []
    for path in home.path.glob(f"{home.key.name}.*"):
        if path.suffix[1:].isdigit():
            found.append((int(path.suffix[1:]), path))
    return found


def _open(home: Home, path: Path, passphrase_file: Path | None) -> SigningKey:
    raw = _read_private(path, "key")
    passphrase = _read_passphrase(passphrase_file or home.passphrase)
    return _unseal(raw, passphrase, path)


def _seal(key: SigningKey, passphrase: bytes) -> bytes:
    head = {
        "version": VERSION,
        "kdf": "scrypt",
        "log2_n": LOG2_N,
        "r": R,
        "p": P,
        "salt": secrets.token_hex(SALT_BYTES),
        "cipher": "chacha20-poly1305",
        "nonce": secrets.token_hex(NONCE_BYTES),
        "public": key.public.hex(),
    }
    if key.account != account_of(key.public):
        head["account"] = key.account.hex()
    sealed = _cipher(head, passphrase).encrypt(
        bytes.fromhex(str(head["nonce"])), key.secret, _bound(head)
    )
    return (json.dumps({**head, "sealed": sealed.hex()}, indent=1) + "\n").encode()


def _unseal(raw: bytes, passphrase: bytes, path: Path) -> SigningKey:
    try:
        file = json.loads(raw)
        if file["version"] != VERSION:
            raise ConfigFault(
                f"{path} has version {file['version']!r}, this software reads {VERSION}"
            )
        sealed = bytes.fromhex(file.pop("sealed"))
        nonce = bytes.fromhex(file["nonce"])
        if len(sealed) != SECRET_BYTES + TAG_BYTES or len(nonce) != NONCE_BYTES:
            raise ValueError("wrong length")
        secret = _cipher(file, passphrase).decrypt(nonce, sealed, _bound(file))
        account = bytes.fromhex(file["account"]) if "account" in file else None
        if account is not None and len(account) != ACCOUNT_BYTES:
            raise ValueError("wrong length")
        key = SigningKey(secret, account)
        if key.public.hex() != file["public"]:
            raise ValueError("another key")
    except InvalidTag:
        raise ConfigFault(
            f"the passphrase does not open {path}; name the right file with "
            "key.passphrase_file or BLYAND_PASSPHRASE_FILE"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        # The reason is left out on purpose: it could quote what the file holds.
        raise ConfigFault(f"{path} is damaged; restore it from your backup") from None
    return key


def _cipher(head: dict[str, Any], passphrase: bytes) -> ChaCha20Poly1305:
    if (
        (head["kdf"], head["cipher"]) != ("scrypt", "chacha20-poly1305")
        or type(head["log2_n"]) is not int
        or not 1 < head["log2_n"] <= MAX_LOG2_N
        or (head["r"], head["p"]) != (R, P)
    ):
        raise ValueError("unknown parameters")
    scrypt = Scrypt(
        salt=bytes.fromhex(head["salt"]), length=32, n=1 << head["log2_n"], r=R, p=P
    )
    return ChaCha20Poly1305(scrypt.derive(passphrase))


def _bound(head: dict[str, Any]) -> bytes:
    """The parameters and the public key are authenticated with the secret."""
    return json.dumps(head, sort_keys=True, separators=(",", ":")).encode()


def _read_passphrase(path: Path) -> bytes:
    passphrase = _read_private(path, "passphrase").rstrip(b"\r\n")
    if not passphrase:
        raise ConfigFault(f"the passphrase file {path} is empty")
    return passphrase


def _read_private(path: Path, what: str) -> bytes:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                raise ConfigFault(f"{path} is not a {what} file")
            if status.st_mode & 0o077:
                raise ConfigFault(
                    f"the {what} file {path} is open to others; run: chmod 600 {path}"
                )
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigFault(f"cannot read the {what} file {path}: {error}") from error


def _write_private(path: Path, raw: bytes) -> None:
    """Write a new file of mode 0600; it is whole and durable, or it is not there."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike rename, refuses to replace
        finally:
            draft.unlink()
        _sync(path.parent)
    except OSError as error:
        raise ConfigFault(f"cannot write {path}: {error}") from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
