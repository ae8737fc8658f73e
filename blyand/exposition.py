"""Metrics as Prometheus' text: HELP and TYPE, then the series of each name.

Counters end in ``_total``, spans of time are in seconds, every name begins with
``blyan_``. Format: text exposition 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blyand.metrics import Histogram, Metrics

Labels = tuple[tuple[str, str], ...]

# What a name means. A series whose name is not here is shown without a sentence.
ABOUT = {
    "blyan_net_bytes": "Bytes of streams and gossip, by protocol, link and way.",
    "blyan_net_streams_opened": "Streams opened to peers.",
    "blyan_net_streams_served": "Streams of peers that ended, by what became of them.",
    "blyan_net_streams_refused": "Streams of peers that were refused, by reason.",
    "blyan_net_streams_serving": "Streams of peers that are served now.",
    "blyan_net_exchange_seconds": "How long exchanges with peers took, by protocol.",
    "blyan_net_calls": "Calls to peers on long streams, by outcome.",
    "blyan_net_call_seconds": "How long calls to peers took.",
    "blyan_net_call_streams": "Calls that opened a stream, and that used an open one.",
    "blyan_net_connections": "Connections that are open now.",
    "blyan_net_connections_made": "Connections that were made since the start.",
    "blyan_net_admitted_peers": "Connected peers that said hello.",
    "blyan_blob_leaves": "Leaves of blobs that arrived, by what became of them.",
    "blyan_blob_uploads": "Requests of peers for blobs that are answered now.",
    "blyan_blob_uploads_refused": "Requests of peers for blobs answered BUSY.",
    "blyan_blob_upload_bytes": "Bytes of blobs sent to peers.",
    "blyan_blob_upload_wait_seconds": "How long pieces of blobs waited for their turn.",
    "blyan_expert_hits": "Experts that were ready when they were asked for.",
    "blyan_expert_misses": "Experts that had to be opened first.",
    "blyan_expert_evictions": "Experts that made room for others.",
    "blyan_expert_resident_bytes": "Bytes of experts kept ready.",
    "blyan_expert_calls_served": "Expert calls of peers that were answered.",
    "blyan_expert_rows_served": "Rows of activations computed for peers.",
    "blyan_expert_calls_refused": "Expert calls of peers that were refused.",
    "blyan_http_requests": "Requests over HTTP, by path and status.",
    "blyan_http_seconds": "How long requests over HTTP took, by path.",
    "blyan_http_requests_under_way": "Requests with the token that are answered now.",
    "blyan_uptime_seconds": "Seconds since the daemon was ready.",
    "blyan_open_files": "Open file descriptors of the daemon.",
    "blyan_resident_bytes": "Resident memory of the daemon.",
    "blyan_net_calls_under_way": "Calls to peers that wait for an answer.",
    "blyan_net_known_peers": "Peers in the book of addresses.",
    "blyan_pending_blocks": "Blocks that no checkpoint took yet.",
    "blyan_arrived_blocks": "Blocks of gossip that are checked and not stored yet.",
    "blyan_orphan_blocks": "Blocks that wait for their parents.",
    "blyan_waiting_writes": "Batches that wait for the database.",
    "blyan_wanted_blobs": "Blobs that are asked for in the background.",
    "blyan_fetched_blobs": "Blobs that are being fetched.",
    "blyan_checkpoints_behind": "Checkpoints of the network not executed here yet.",
    "blyan_finalised_height": "Height of the newest checkpoint executed here.",
    "blyan_cpu_seconds": "Processor time of the daemon, without its workers.",
}


def exposition(metrics: Metrics) -> str:
    """Return every series; empty without one."""
    lines: list[str] = []
    for name, kind, series in _families(metrics):
        shown = f"{name}_total" if kind == "counter" else name
        lines.append(f"# HELP {shown} {_escape_help(ABOUT.get(name, _words(name)))}")
        lines.append(f"# TYPE {shown} {kind}")
        for labels, one in sorted(series.items()):
            lines += _samples(shown, labels, one)
    return "".join(f"{line}\n" for line in lines)


def _families(metrics: Metrics) -> Iterator[tuple[str, str, dict[Labels, Any]]]:
    found: dict[tuple[str, str], dict[Labels, Any]] = {}
    kinds: tuple[tuple[str, dict[Any, Any]], ...] = (
        ("counter", metrics.counters()),
        ("gauge", metrics.gauges()),
        ("histogram", metrics.histograms()),
    )
    for kind, every in kinds:
        for (name, labels), one in every.items():
            whole = name if name.startswith("blyan_") else f"blyan_{name}"
            found.setdefault((whole.removesuffix("_total"), kind), {})[labels] = one
    for (name, kind), series in sorted(found.items()):
        yield name, kind, series


def _samples(name: str, labels: Labels, one: Any) -> Iterator[str]:
    if not isinstance(one, Histogram):
        yield f"{name}{_spell(labels)} {_number(one.value)}"
        return
    counts, total = one.read()
    for bound, count in zip((*one.BOUNDS_S, "+Inf"), counts):
        yield f"{name}_bucket{_spell((*labels, ('le', str(bound))))} {count}"
    yield f"{name}_sum{_spell(labels)} {_number(total)}"
    yield f"{name}_count{_spell(labels)} {counts[-1]}"


def _spell(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{label}="{_escape(value)}"' for label, value in labels)
    return f"{{{','.join(pairs)}}}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _words(name: str) -> str:
    return name.removeprefix("blyan_").replace("_", " ").capitalize() + "."
