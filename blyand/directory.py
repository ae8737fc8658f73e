"""The directory of a node: how it reaches others, and what the node has to tell."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from blyan_proto.protocols.providers import expert_key
from blyand.foundation import Base
from blyand.net.dht import Directory, Remote
from blyand.net.dialer import WANTED_PEERS, Dialer
from blyand.net.host import Host
from blyand.net.peers import PeerBook
from blyand.parts import Models
from blyand.protocols.meeting import Meeting
from blyand.protocols.providers import Client
from blyand.replica import Replica
from blyand.rules.records import MODELS


def build_directory(
    host: Host, network: bytes, book: PeerBook, meeting: Meeting, dialer: Dialer
) -> Directory:
    """Return the directory of the network whose genesis id is `network`."""

    def has_spare_peers() -> bool:
        outbound = sum(not info.inbound for info in host.peers())
        return outbound > WANTED_PEERS

    client = Client(host)
    remote = Remote(
        addresses=lambda: host.addresses,
        met=lambda: meeting.peers,
        info=host.info,
        reach=dialer.dial,
        leave=host.disconnect,
        provide=client.provide,
        find=client.find,
        spare=has_spare_peers,
    )
    return Directory(host.peer_id, network, book, remote, Random())


def holdings(base: Base, replica: Replica, models: Models) -> Iterator[bytes]:
    """Yield the keys of what this node has: durable blobs, and groups of models."""
    yield from base.stores.blobs.roots(durable=True)
    for record in MODELS.scan(replica.view):
        for group in models.holder.held(record.id):
            yield expert_key(record.id, group)
