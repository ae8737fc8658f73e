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
class HttpSection:
    """The HTTP gateway: the OpenAI-compatible API, /rpc, /metrics and the chat page."""

    listen: str = option(
        "",
        "HOST:PORT to serve HTTP on, with an IP address; port 0 takes a free one. "
        "127.0.0.1 reaches nobody but this machine. Empty: no gateway.",
    )
    names: tuple[str, ...] = option(
        (),
        "Further hosts, with or without port, under which a proxy makes it reachable; "
        "requests for any other name are refused.",
    )
    max_connections: int = option(
        256, "Clients connected at once; more are told 429.", low=1, high=4096
    )
    max_requests: int = option(
        64,
        "Requests with the token answered at once; more are told 429.",
        low=1,
        high=4096,
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
