"""Answers about the node itself: is it well, how is it set, what does it transfer."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from blyan_proto.rpc import node as spec
from blyan_proto.rpc.errors import GATEWAY_OFF, RpcError
from blyan_proto.rpc.parts import Hosted
from blyand import __version__
from blyand.chain.follow import Follower
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.compute import Threads
from blyand.config import OPTIONS, Config
from blyand.home import Home
from blyand.net.host import Host
from blyand.protocols.meeting import Meeting
from blyand.rpc.bind import Answers
from blyand.rules.model.model import layout_for
from blyand.rules.records import MODELS, NODES, TIPS
from blyand.rules.view import View
from blyand.store.budget import Budget
from blyand.training.holder import Holder
from blyand.training.learner import Learner

if TYPE_CHECKING:  # torch is imported when a node is built, not when it is named
    from blyand.inference.hardware import Hardware

MANY_BEHIND = 8  # checkpoints that gossip and one poll may leave open


@dataclass(frozen=True)
class Standing:
    """What a node's status is read from."""

    machine: Machine
    follower: Follower
    pool: Pool
    meeting: Meeting
    holder: Holder
    learner: Learner | None  # None where this node does not learn
    warnings: Callable[[], Sequence[str]]  # what others found at the start or since
    budget: Budget
    hardware: Hardware
    most_copies: Callable[[int], int]  # of experts, by their bytes
    home: Path
    account: bytes  # this node's


def bind(
    answers: Answers,
    *,
    config: Config,
    host: Host,
    standing: Standing,
    roles: Sequence[str],
    stop: Callable[[], None],
    disk_lane: Threads,
    url: Callable[[], str | None] = lambda: None,
    page: Callable[[], str | None] = lambda: None,
) -> None:
    """Bind node.*. `stop` makes the daemon end soon after it returned.

    `url` is where the HTTP gateway listens, `page` its chat page with the token; None
    without a gateway.
    """
    ready = trio.current_time()

    @answers(spec.status)
    async def status(params: spec.GetStatus) -> spec.Status:
        machine = standing.machine
        account = standing.account
        return spec.Status(
            peer_id=host.peer_id,
            account=account,
            pid=os.getpid(),
            network=machine.genesis.id,
            network_name=machine.genesis.name,
            version=__version__,
            listen=list(host.addresses),
            peers=len(standing.meeting.peers),
            roles=list(roles),
            hosted=hosted_by(machine.view, standing.holder),
            height=height_of(machine.view, standing.pool),
            finalised=machine.clock.height,
            training=(
                standing.learner.status
                if standing.learner
                else "off: this node does not learn; see node.roles and training.enabled"
            ),
            disk_bytes=await disk_lane.run(standing.budget.used_bytes),
            disk_limit_bytes=standing.budget.limit_bytes,
            http=url(),
            hardware=hardware_of(standing),
            warnings=list(warnings_of(standing, account)),
            uptime_s=trio.current_time() - ready,
        )

    @answers(spec.stop)
    async def stop_daemon(params: spec.Stop) -> spec.Stopping:
        stop()
        return spec.Stopping(pid=os.getpid())

    @answers(spec.page)
    async def chat_page(params: spec.GetPage) -> spec.Page:
        address = page()
        if address is None:
            text = "this node serves no HTTP; start it with: blyand run --http 127.0.0.1:8080"
            raise RpcError(GATEWAY_OFF, text)
        return spec.Page(url=address, token_file=str(Home(standing.home).http_token))

    @answers(spec.config)
    async def config_of(params: spec.GetConfig) -> spec.Config:
        return spec.Config(options=list(options_of(config)))

    @answers(spec.traffic)
    async def traffic(params: spec.GetTraffic) -> spec.Traffic:
        return traffic_of(host.traffic())

    @answers(spec.resources)
    async def resources(params: spec.GetResources) -> spec.Resources:
        return spec.Resources(
            tasks=trio.lowlevel.current_statistics().tasks_living,
            threads=threading.active_count(),
            connections=len(host.peers()),
            resident_bytes=resident_bytes(),
            files=len(os.listdir("/proc/self/fd")),
            disk_bytes=await disk_lane.run(standing.budget.used_bytes),
            disk_limit_bytes=standing.budget.limit_bytes,
            disk_free_bytes=shutil.disk_usage(standing.home).free,
        )


def hardware_of(standing: Standing) -> spec.Hardware | None:
    """Return what was measured of this machine; None before that."""
    speed = standing.hardware.speed
    if speed is None:
        return None
    return spec.Hardware(
        device=speed.device,
        tier=speed.tier,
        score=speed.score,
        tflops=speed.tflops,
        read_gb_per_s=speed.read_gb_per_s,
        copy_gb_per_s=speed.copy_gb_per_s,
        memory_bytes=speed.memory_bytes,
        most_copies=standing.most_copies(1),
    )


def resident_bytes() -> int:
    """Return the memory that this process has in use, by the kernel's account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hosted_by(view: View, holder: Holder) -> list[Hosted]:
    """Return what this node holds, model by model."""
    hosted = []
    for record in MODELS.scan(view):
        groups = layout_for(record.model).groups
        names = [groups[index].name for index in sorted(holder.held(record.id))]
        if names:
            hosted.append(Hosted(model=record.model.name, groups=names))
    return hosted


def height_of(view: View, pool: Pool) -> int:
    """Return the largest height of a block held, over all chains; 0 without blocks."""
    heights = [block.header.height for block in pool]
    for tips in TIPS.scan(view):
        heights += [tip.height for tip in tips.tips]
    return max(heights, default=0)


def warnings_of(standing: Standing, account: bytes) -> Iterator[str]:
    """Yield what the operator should know, the worst first."""
    machine, learner = standing.machine, standing.learner
    if machine.halted:
        yield machine.halted
    yield from standing.warnings()
    if standing.budget.trouble is not None:
        yield standing.budget.trouble
    others = any(node.account != account for node in NODES.scan(machine.view))
    if others and not standing.meeting.peers:
        yield "no peer is connected; `blyanctl peer connect ADDRESS` dials one"
    if standing.follower.behind > MANY_BEHIND:
        yield f"{standing.follower.behind} checkpoints behind the network; catching up"
    if learner is not None and learner.paused:
        yield f"not learning: {learner.status}"


def options_of(config: Config) -> Iterator[spec.Option]:
    """Yield every option with its value and where the value comes from."""
    for key, option in OPTIONS.items():
        value = getattr(getattr(config, option.section), option.name)
        yield spec.Option(
            name=key,
            value=list(value) if isinstance(value, tuple) else value,
            source=config.value_sources.get(key, "default"),
            help=option.help,
        )


def traffic_of(counts: dict[str, tuple[int, int]]) -> spec.Traffic:
    """Return {protocol: (bytes up, bytes down)} as declared, by protocol."""
    lines = [
        spec.ProtocolTraffic(protocol=protocol, up_bytes=up, down_bytes=down)
        for protocol, (up, down) in sorted(counts.items())
    ]
    return spec.Traffic(
        up_bytes=sum(line.up_bytes for line in lines),
        down_bytes=sum(line.down_bytes for line in lines),
        protocols=lines,
    )
