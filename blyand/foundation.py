"""What every part of one node stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from blyan_proto.genesis import Genesis
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role
from blyan_proto.validators import ValidatorSet
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.config import Config
from blyand.events import Broadcast
from blyand.home import Home
from blyand.metrics import Metrics
from blyand.net.calls import Calls
from blyand.net.dht import Directory
from blyand.net.host import Host
from blyand.net.peers import PeerBook
from blyand.net.reach import Reachability
from blyand.poison import PoisonBox
from blyand.precedence import FirstLane
from blyand.protocols.meeting import Meeting
from blyand.stores import Stores


@dataclass(frozen=True)
class Base:
    """What every part of one node stands on."""

    home: Home
    config: Config
    genesis: Genesis
    key: SigningKey  # the account's current one
    keys: tuple[SigningKey, ...]  # that one, and older ones
    clock: Clock
    events: Broadcast
    poison: PoisonBox
    metrics: Metrics
    stores: Stores
    alarms: dict[int, str]  # by height: what the operator must know
    settled: trio.Event  # nothing is signed before
    is_amnesic: bool  # at the start it was not known what this node had signed
    host: Host
    calls: Calls
    book: PeerBook
    meeting: Meeting
    reach: Reachability
    directory: Directory
    blame: Callable[[str, Exception], None]
    threads: int  # of one tensor operation
    chain_lane: Threads
    tile_lane: Threads
    disk_lane: Threads
    infer_lane: FirstLane

    def key_in(self, voters: ValidatorSet) -> SigningKey | None:
        """Return this node's key in a set: an old one until the set has the new one."""
        return next((one for one in self.keys if voters.weight_of(one.public)), None)

    def decides(self, voters: ValidatorSet) -> bool:
        """True when a set makes nothing final without this node."""
        own = self.key_in(voters)
        return own is not None and voters.exceeds_third(voters.weight_of(own.public))

    def peers(self) -> list[str]:
        """Return the peers that said hello."""
        return list(self.meeting.peers)

    def archives(self) -> list[str]:
        """Return those of them that prune nothing."""
        met = self.meeting.peers
        return [
            peer
            for peer, met_peer in met.items()
            if met_peer.greeting.roles & Role.ARCHIVE
        ]
