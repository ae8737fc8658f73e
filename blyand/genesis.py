"""The genesis of a home: a JSON file of the typed message, read and checked once."""

from __future__ import annotations

import json
from pathlib import Path

from blyan_proto.codec import from_plain, to_plain
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import MAX_GENESIS_BYTES, Genesis
from blyand.errors import ConfigFault


def load(path: Path) -> Genesis:
    """Return the genesis in a file; ConfigFault in one sentence when it is none."""
    try:
        if path.stat().st_size > 4 * MAX_GENESIS_BYTES:
            raise ConfigFault(f"{path} is too large for a genesis")
        return from_plain(Genesis, json.loads(path.read_text()))
    except OSError as error:
        raise ConfigFault(
            f"cannot read the genesis {path}: {error.strerror}; get the network's file "
            "and run: blyand init --genesis FILE"
        ) from error
    except (ValueError, ProtocolError) as error:
        raise ConfigFault(f"{path} is not a genesis: {error}") from error


def save(genesis: Genesis, path: Path) -> None:
    """Write a genesis. ConfigFault when the disk refuses."""
    try:
        path.write_text(json.dumps(to_plain(genesis), indent=1) + "\n")
    except OSError as error:
        raise ConfigFault(f"cannot write {path}: {error}") from error
