"""The node itself: is it well, how is it set, what does it transfer, stop."""

from __future__ import annotations

from blyan_proto.rpc.errors import BACKUP_REFUSED, GATEWAY_OFF
from blyan_proto.rpc.parts import Hosted, Progress
from blyan_proto.rpc.spec import (
    LONG_DEADLINE_S,
    Address,
    Id,
    Method,
    arg,
    declare,
    record,
)


@record
class GetStatus:
    """Tell how this node is doing."""


@record
class Hardware:
    """What this machine can do, by a micro-benchmark at its first start."""

    device: str = arg("its name, threads and library")
    tier: int = arg("class of hardware, 0 to 9")
    score: float = arg("points that make the tier")
    tflops: float = arg("10^12 operations a second in large products")
    read_gb_per_s: float = arg("gigabytes of weights read a second")
    copy_gb_per_s: float = arg("gigabytes copied to an accelerator a second; 0: none")
    memory_bytes: int = arg("memory of the device")
    most_copies: int = arg("experts that the tier allows beyond placement")


@record
class Status:
    """A node at a glance (DEC-E4)."""

    peer_id: str = arg("libp2p peer id")
    account: Address = arg("this node's account")
    pid: int = arg("process id of the daemon")
    network: Id = arg("id of the genesis")
    network_name: str = arg("name of the network, from the genesis")
    version: str = arg("version of the software")
    listen: list[str] = arg("multiaddrs with /p2p under which others reach this node")
    peers: int = arg("peers connected and greeted")
    roles: list[str] = arg("learn, serve, validate, archive")
    hosted: list[Hosted] = arg("what this node holds and serves")
    height: int = arg("largest height of a block held, over all chains")
    finalised: int = arg("height of the newest finalised checkpoint, 0 for the genesis")
    training: str = arg("why training runs, pauses or is off")
    disk_bytes: int = arg("bytes that the home takes on its disk")
    disk_limit_bytes: int | None = arg("most that it may take; null: no limit")
    http: str | None = arg("where the HTTP gateway listens; null: off")
    hardware: Hardware | None = arg("what it can do; null: not measured yet")
    warnings: list[str] = arg("what the operator should know; empty when all is well")
    uptime_s: float = arg("seconds since the daemon was ready")


status = declare(Method("node.status", GetStatus, Status, public=True))


@record
class Stop:
    """Stop the daemon cleanly."""


@record
class Stopping:
    """The daemon is about to end."""

    pid: int = arg("process that ends; wait for it to be gone")


stop = declare(Method("node.stop", Stop, Stopping))


@record
class GetConfig:
    """Tell every option with its value and where the value comes from."""


@record
class Option:
    """One option."""

    name: str = arg("section.option")
    value: object = arg("its value")
    source: str = arg("default, the file, the variable or the flag that set it")
    help: str = arg("what it does")


@record
class Config:
    """All options, by name."""

    options: list[Option] = arg("options, by section")


config = declare(Method("node.config", GetConfig, Config))


@record
class GetTraffic:
    """Tell how many bytes went over the network, by protocol."""


@record
class ProtocolTraffic:
    """Bytes of one stream protocol or gossip topic since the start."""

    protocol: str = arg("protocol id or topic")
    up_bytes: int = arg("bytes sent")
    down_bytes: int = arg("bytes received")


@record
class Traffic:
    """Bytes since the daemon started."""

    up_bytes: int = arg("bytes sent, all protocols")
    down_bytes: int = arg("bytes received, all protocols")
    protocols: list[ProtocolTraffic] = arg("by protocol")


traffic = declare(Method("node.traffic", GetTraffic, Traffic))


@record
class Backup:
    """Save this node into a folder while it runs; `blyand restore` makes a home of it.

    The folder holds the key and its passphrase: keep it as safe as the home.
    """

    directory: str = arg(
        "new folder on the daemon's machine", positional=True, path=True
    )


@record
class BackedUp:
    """A backup that is complete."""

    directory: str = arg("where it is")
    blobs: int = arg("blobs in it, linked to this node's where the disk allows")
    blob_bytes: int = arg("bytes of these blobs")
    finalised: int = arg("height of the newest checkpoint when it began")


backup = declare(
    Method(
        "node.backup",
        Backup,
        BackedUp,
        streams=Progress,
        errors=(BACKUP_REFUSED,),
        deadline_s=LONG_DEADLINE_S,
    )
)


@record
class GetPage:
    """Tell the address of the chat page, with the token that opens it."""


@record
class Page:
    """The chat page. Whoever has the address can ask this node: keep it to yourself."""

    url: str = arg("address for a browser; the part after # never leaves it")
    token_file: str = arg("file with the token, for API clients: their API key")


page = declare(Method("node.page", GetPage, Page, errors=(GATEWAY_OFF,)))


@record
class GetMetrics:
    """Tell every metric, as Prometheus reads it."""


@record
class Metrics:
    """Counters, gauges and histograms."""

    text: str = arg("text exposition format 0.0.4")


metrics = declare(Method("node.metrics", GetMetrics, Metrics, public=True))


@record
class GetResources:
    """Tell what the daemon itself takes: a number that only grows is a leak."""


@record
class Resources:
    """What a daemon holds at this moment."""

    tasks: int = arg("tasks of the event loop")
    threads: int = arg("threads of the process")
    connections: int = arg("connected peers, greeted or not")
    resident_bytes: int = arg("memory in use")
    files: int = arg("open files and sockets")
    disk_bytes: int = arg("bytes that the home takes on its disk")
    disk_limit_bytes: int | None = arg("most that it may take; null: no limit")
    disk_free_bytes: int = arg("bytes free on that disk")


resources = declare(Method("node.resources", GetResources, Resources))
