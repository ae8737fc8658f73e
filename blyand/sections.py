"""Sections of the configuration that stand apart from `config`; see there."""

from __future__ import annotations

from dataclasses import dataclass

from blyand.options import option


@dataclass(frozen=True)
class NetSection:
    """Where peers reach this node, and whom it dials first."""

    listen: tuple[str, ...] = option(
        ("/ip4/0.0.0.0/tcp/4001",),
        "Addresses to listen on; port 0 takes a free one.",
        unit="multiaddr",
    )
    bootstrap: tuple[str, ...] = option(
        (),
        "Peers to dial at the start, with their /p2p/<peer id>.",
        unit="multiaddr",
    )
    announce: tuple[str, ...] = option(
        (),
        "Addresses to tell others instead of those listened on: /ip4/IP/tcp/PORT as seen "
        "from outside, where a router forwards a port.",
        unit="multiaddr",
    )
    relay: str = option(
        "auto",
        "Relays carry connections to nodes that cannot be dialled. auto: be one if others "
        "can dial this node, use up to two if they cannot. use: only use. serve: be one "
        "in any case. off: neither.",
        choices=("auto", "use", "serve", "off"),
    )
    relay_circuits: int = option(
        64, "Connections carried for others at once.", low=1, high=4096
    )
    relay_mib: int = option(
        512,
        "Bytes after which a connection that is carried for others ends.",
        unit="MiB",
        low=1,
    )
    mdns: bool = option(
        False,
        "Announce this node on the local network, and find others there, by multicast "
        "DNS.",
    )
    region: str = option(
        "", "Name of the place this node stands in; near peers are asked first."
    )
    upload_kib_s: int = option(
        0,
        "Blobs sent to all peers together, a second; equal shares for all who ask. "
        "0: no limit. Small messages are never limited.",
        unit="KiB/s",
    )
    upload_peer_kib_s: int = option(
        0, "Blobs sent to one peer, a second. 0: no limit.", unit="KiB/s"
    )
    uploads: int = option(
        32,
        "Requests for blobs answered at once; above it, and above a peer's share, BUSY.",
        low=1,
        high=4096,
    )
    max_peers: int = option(
        64, "Connected peers above which strangers are refused.", low=1, high=4096
    )
    max_per_group: int = option(
        16,
        "Inbound connections from one neighbourhood, a /24 of IPv4 or a /48 of IPv6; "
        "more are refused. A devnet, all of one address, is made with 4096.",
        low=1,
        high=4096,
    )
    max_per_key: int = option(
        3,
        "Connections that one peer may have and still open another.",
        low=1,
        high=64,
    )


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
