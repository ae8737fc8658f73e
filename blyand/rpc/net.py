"""Answers about the network: net.status, and node.metrics with its gauges."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio

from blyan_proto.rpc import net as spec
from blyan_proto.rpc import node as node_spec
from blyan_proto.topics import TOPICS
from blyand.exposition import exposition
from blyand.metrics import Metrics
from blyand.net.host import Host
from blyand.net.wires import Wire
from blyand.rpc.bind import Answers


@dataclass(frozen=True)
class Sights:
    """What the network's status is read from; all but `host` are looked at when asked."""

    host: Host
    metrics: Metrics
    peers: Callable[[], int]  # greeted
    known_peers: Callable[[], int]  # in the book
    calls: Callable[[], dict[str, int]]  # under way, by protocol
    gauges: Callable[[], dict[str, float]]  # of the rest of the daemon, by name
    reach: Callable[[], tuple[str, str]]  # state, reason
    bans: Callable[[], Iterable[tuple[str, int | None, str]]] = tuple


def bind(answers: Answers, sights: Sights) -> None:
    """Bind net.status and node.metrics."""
    ready = trio.current_time()

    @answers(spec.status)
    async def status(params: spec.GetStatus) -> spec.Status:
        host = sights.host
        state, reason = sights.reach()
        return spec.Status(
            peer_id=host.peer_id,
            listen=list(host.listening),
            announced=list(host.addresses),
            reachability=state,
            reason=reason,
            peers=sights.peers(),
            known_peers=sights.known_peers(),
            calls=sum(sights.calls().values()),
            links=list(links_of(host.wires())),
            traffic=list(protocols_of(sights)),
            gossip=list(topics_of(sights)),
            bans=[spec.Ban(*ban) for ban in sights.bans()],
        )

    @answers(node_spec.metrics)
    async def metrics(params: node_spec.GetMetrics) -> node_spec.Metrics:
        made = sights.metrics
        made.gauge("blyan_uptime_seconds").set(trio.current_time() - ready)
        set_gauges(sights)
        return node_spec.Metrics(text=exposition(made))


def links_of(wires: Iterable[Wire]) -> Iterator[spec.Link]:
    """Yield the connections by kind."""
    connections: Counter[tuple[str, str, str]] = Counter()
    streams: Counter[tuple[str, str, str]] = Counter()
    for wire in wires:
        key = ("in" if wire.inbound else "out", wire.link, transport_of(wire))
        connections[key] += 1
        streams[key] += wire.streams
    for key in sorted(connections):
        yield spec.Link(*key, connections=connections[key], streams=streams[key])


def transport_of(wire: Wire) -> str:
    """Return security and muxer for people, as ``noise yamux/1.0.0``."""
    return f"{wire.security.lstrip('/') or '?'} {wire.muxer.lstrip('/') or '?'}"


def protocols_of(sights: Sights) -> Iterator[spec.Protocol]:
    """Yield what each protocol carried, those with most bytes first."""
    opened = _sums(sights.metrics, "blyan_net_streams_opened", "protocol")
    served = _sums(sights.metrics, "blyan_net_streams_served", "protocol")
    refused = _sums(sights.metrics, "blyan_net_streams_refused", "protocol")
    bytes_ = sights.host.traffic()
    now = sights.host.serving()
    names = {*opened, *served, *refused, *bytes_}
    for name in sorted(names, key=lambda name: (-sum(bytes_.get(name, ())), name)):
        up, down = bytes_.get(name, (0, 0))
        yield spec.Protocol(
            name,
            opened[name],
            served[name],
            refused[name],
            now.get(name, 0),
            up,
            down,
        )


def topics_of(sights: Sights) -> Iterator[spec.GossipTopic]:
    """Yield what each topic of gossip looks like."""
    gossip = sights.host.gossip
    dropped = _sums(sights.metrics, "blyan_net_gossip_drops_total", "topic")
    for topic in TOPICS:
        mesh, listeners = len(gossip.mesh(topic)), len(gossip.peers(topic))
        yield spec.GossipTopic(topic.name, mesh, listeners, dropped[topic.name])


def set_gauges(sights: Sights) -> None:
    """Bring the gauges up to date: they are only looked at when somebody asks."""
    made = sights.metrics
    for (name, labels), gauge in made.gauges().items():
        if name in ("blyan_net_connections", "blyan_net_calls_under_way"):
            gauge.set(0)  # its kind may have no member any more
    for link in links_of(sights.host.wires()):
        made.gauge(
            "blyan_net_connections",
            way=link.direction,
            link=link.link,
            transport=link.transport,
        ).set(link.connections)
    for protocol, count in sights.calls().items():
        made.gauge("blyan_net_calls_under_way", protocol=protocol).set(count)
    made.gauge("blyan_net_admitted_peers").set(sights.peers())
    made.gauge("blyan_net_known_peers").set(sights.known_peers())
    for name, value in sights.gauges().items():
        made.gauge(name).set(value)
    used = resource.getrusage(resource.RUSAGE_SELF)
    made.gauge("blyan_cpu_seconds").set(used.ru_utime + used.ru_stime)
    try:
        made.gauge("blyan_open_files").set(len(os.listdir("/proc/self/fd")))
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        made.gauge("blyan_resident_bytes").set(pages * resource.getpagesize())
    except OSError:
        pass  # this system tells neither


def _sums(metrics: Metrics, name: str, label: str) -> Counter[str]:
    """Return the counters of one name, summed by one of their labels."""
    found: Counter[str] = Counter()
    for (series, labels), counter in metrics.counters().items():
        if series == name:
            found[dict(labels).get(label, "")] += counter.value
    return found
