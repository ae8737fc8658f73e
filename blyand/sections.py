"""Sections of the configuration that stand apart from `config`; see there."""

from __future__ import annotations

from dataclasses import dataclass

from blyand.options import option


@dataclass(frozen=True)
class SyncSection:
    """How this node comes to the state of the network, and to its history."""

    checkpoint: str = option(
        "",
        "The checkpoint that you vouch for, HEIGHT:HASH, as `blyanctl sync checkpoint` "
        "shows it on a node that you trust. own: the whole network was off, go on from "
        "what is here. Empty: what is here, or the genesis, is trusted while it is young.",
    )
    far: int = option(
        256,
        "Checkpoints behind from which on a state is fetched in place of all blocks.",
        unit="checkpoints",
        low=2,
    )
    backfill_kib_s: int = option(
        1024,
        "History fetched after joining by a state, a second. 0: no limit.",
        unit="KiB/s",
    )


@dataclass(frozen=True)
class LogSection:
    """What is written to stderr and to <home>/log."""

    level: str = option(
        "info",
        "Least level written.",
        choices=("debug", "info", "warning", "error"),
    )
    json: bool = option(False, "One JSON object per record instead of text.")
    file_mib: int = option(
        16, "Size at which the log file is rotated.", unit="MiB", low=1, high=4096
    )
    files: int = option(4, "Log files kept, the current one included.", low=1, high=99)
    events: str = option(
        "off",
        "File for one JSON line per connection, stream, offence and ban, without what "
        "was said; relative to the home, rotated like the log. off: none.",
        unit="path",
    )
