"""The doctor's look at a home: is its port free, and how is the daemon that runs there?

What a running daemon knows (peers, reachability, the chain's time) it is asked for.
"""

from __future__ import annotations

import errno
import socket
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blyan_proto.rpc.errors import RpcError
from blyan_proto.rpc.spec import JsonObject
from blyanctl.client import Client, NoAnswer, NoDaemon
from blyanctl.finding import FAIL, OK, WARN, Finding
from blyanctl.render import duration, size

ASK_S = 3.0
SKEW_S = 5.0  # a block whose time is a minute ahead is not carried


def examine(home: Path) -> Iterator[Finding]:
    """Yield what concerns a home; nothing where there is none."""
    if not (home / "config.toml").exists():
        return
    try:
        with Client(home, timeout_s=ASK_S) as client:
            status = client.call("node.status")
            yield Finding("daemon", OK, f"runs, process {status['pid']}")
            yield from warnings(status)
            yield gateway(status)
            yield tier(status)
            yield connected(status)
            yield budget(client.call("node.resources"))
            yield reachable(client.call("net.status"))
            yield skew(client.call("chain.checkpoint"), time.time())
    except NoDaemon:
        yield Finding("daemon", OK, "none runs in this home")
        yield from ports(home)
    except (NoAnswer, RpcError) as error:
        advice = f"look at the end of {home / 'log'}; then stop it and start it again"
        yield Finding("daemon", FAIL, f"does not answer: {error}", advice)


def warnings(status: JsonObject) -> Iterator[Finding]:
    """Yield what the daemon itself would tell its operator."""
    for text in status["warnings"]:
        yield Finding("daemon", WARN, text, "see `blyanctl node status`")


def gateway(status: JsonObject) -> Finding:
    """Tell where the HTTP gateway is; what is wrong with it stands in the warnings."""
    found = f"at {status['http']}" if status["http"] else "off"
    return Finding("http", OK, found)


def tier(status: JsonObject) -> Finding:
    """Tell the class of the hardware."""
    found = status["hardware"]
    if found is None:
        return Finding("hardware", OK, "not measured yet")
    text = (
        f"tier {found['tier']}, {found['score']:.1f} points: {found['tflops']:.3f} TFLOPS, "
        f"{found['read_gb_per_s']:.0f} GB/s; {found['device']}"
    )
    return Finding("hardware", OK, text)


def connected(status: JsonObject) -> Finding:
    """Judge the number of peers."""
    count = status["peers"]
    if count:
        return Finding("peers", OK, f"{count} connected")
    advice = "give one address that works: blyanctl peer connect ADDRESS"
    return Finding("peers", WARN, "none is connected", advice)


def budget(resources: JsonObject) -> Finding:
    """Judge what the home takes against what it may take."""
    used, limit = resources["disk_bytes"], resources["disk_limit_bytes"]
    if limit is None:
        free = size(resources["disk_free_bytes"])
        return Finding("disk budget", OK, f"{size(used)} used, no limit, {free} free")
    found = f"{size(used)} of {size(limit)} used"
    if used >= limit - limit // 8:
        advice = "raise store.disk_mib, or let go of something: blyanctl pin list"
        return Finding("disk budget", WARN, found, advice)
    return Finding("disk budget", OK, found)


def reachable(net: JsonObject) -> Finding:
    """Judge whether others can dial this node."""
    state, reason = net["reachability"], net["reason"]
    if state != "private":
        return Finding("reachability", OK, f"{state}: {reason}")
    port = net["listen"][0].rsplit("/", 1)[-1] if net["listen"] else "of the node"
    advice = f"forward TCP port {port} in the router, or go on through a relay"
    return Finding("reachability", WARN, f"{state}: {reason}", advice)


def skew(checkpoint: JsonObject, now_s: float) -> Finding:
    """Compare our clock with the newest checkpoint: it cannot be of the future."""
    ahead_s = checkpoint["time_ms"] / 1000 - now_s
    if ahead_s > SKEW_S:
        text = f"{duration(ahead_s)} behind the network's"
        advice = "set the clock; blocks made here look old and may expire"
        return Finding("clock skew", FAIL, text, advice)
    return Finding("clock skew", OK, "not behind the network's")


def ports(home: Path) -> Iterator[Finding]:
    """Try the addresses that the daemon of a home would listen on."""
    try:
        config: dict[str, Any] = tomllib.loads((home / "config.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        advice = "mend it, or `blyand init` another home and compare"
        yield Finding("configuration", FAIL, f"cannot be read: {error}", advice)
        return
    listen = config.get("net", {}).get("listen", [])
    for address in listen if isinstance(listen, list) else []:
        parts = str(address).split("/")
        if len(parts) >= 5 and parts[1] in ("ip4", "ip6") and parts[4].isdecimal():
            yield port(parts[1], parts[2], int(parts[4]))


def port(kind: str, host: str, number: int) -> Finding:
    """Try to listen on one address."""
    family = socket.AF_INET if kind == "ip4" else socket.AF_INET6
    name = f"{host} port {number}"
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, number))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = "stop the program that listens there, or: blyand run --listen …"
            return Finding("port", FAIL, f"{name} is in use", advice)
        advice = "name an address of this machine: blyand run --listen …"
        return Finding("port", FAIL, f"{name}: {error.strerror}", advice)
    return Finding("port", OK, f"{name} is free")
