"""What this node holds of its own will beyond its placement.

Whole layers, to serve spans (inference.spans), and copies of experts that are used much
(inference.replicate).
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from blyan_proto.types import members
from blyand.compute import choose_device, choose_memory_bytes
from blyand.errors import ConfigFault
from blyand.foundation import Base
from blyand.home import read_or_none, replace_file
from blyand.neighbours import Neighbours
from blyand.replica import Replica
from blyand.rpc.plan import Around
from blyand.rules.model import placement
from blyand.rules.model.hosting import groups_of, layers_named, layers_with_room
from blyand.rules.model.model import layout_for
from blyand.rules.model.tier import TIERS, most_experts
from blyand.rules.records import NODES, ModelRecord
from blyand.rules.view import View

if TYPE_CHECKING:  # torch is imported when a node is built, not when it is named
    from blyand.inference.hardware import Hardware
    from blyand.inference.replication import Replication
    from blyand.inference.usage import Usage
    from blyand.parts import Models

OFF, AUTO = "off", "auto"


class Hosting:
    """The layers of each model that this node hosts beyond its placement.

    What `auto` chose for a model stays chosen for the life of the process, so that nodes
    do not run after each other.
    """

    def __init__(
        self, wish: str, account: bytes, view: Callable[[], View], room_bytes: int
    ) -> None:
        """ConfigFault for a wish that names nothing."""
        if wish not in (OFF, AUTO):
            try:
                layers_named(wish, 0)
            except ValueError as error:
                raise ConfigFault(
                    f"inference.spans: {error}; write off, auto, or layers like 0-3"
                ) from error
        self._wish = wish
        self._account = account
        self._view = view
        self._room_bytes = room_bytes
        self._chosen: dict[bytes, frozenset[int]] = {}

    def groups(self, record: ModelRecord) -> frozenset[int]:
        """Return the groups of these layers; none where the option is off."""
        if self._wish == OFF:
            return frozenset()
        if record.id not in self._chosen:
            layout = layout_for(record.model)
            self._chosen[record.id] = groups_of(layout, self._layers(record))
        return self._chosen[record.id]

    def _layers(self, record: ModelRecord) -> range:
        count = record.model.architecture.layers
        if self._wish != AUTO:
            return layers_named(self._wish, count)
        view = self._view()
        placed = placement.placed_on(self._account, view, record)
        others = [
            members(node.held)
            for node in NODES.scan(view)
            if node.account != self._account and node.model == record.id
        ]
        return layers_with_room(
            layout_for(record.model),
            placed or frozenset(),
            others,
            self._room_bytes,
            record.id + self._account,
        )


def hosting(base: Base, view: Callable[[], View]) -> Hosting:
    """Return what the configuration says. ConfigFault."""
    config = base.config
    room_bytes = choose_memory_bytes(
        config.inference.memory_mib, config.compute.daemons_on_host
    )
    return Hosting(config.inference.spans, base.key.account, view, room_bytes)


def copying(
    base: Base,
    view: Callable[[], View],
    near: Neighbours,
    usage: Usage,
    held: Callable[[bytes], frozenset[int]],
) -> tuple[Hardware, Replication]:
    """Return what tells how fast this machine is, and what chooses copies of experts."""
    from blyand.inference.hardware import Hardware
    from blyand.inference.replication import Replication, Sight

    config, budget, file = base.config, base.stores.budget, base.home.path / "speed"
    device = choose_device(config.compute.device)
    hardware = Hardware(
        device,
        base.infer_lane,
        read_or_none(file),
        functools.partial(replace_file, file),
    )
    room_bytes = choose_memory_bytes(
        config.inference.memory_mib, config.compute.daemons_on_host, device
    )

    def disk_bytes() -> int:
        free = shutil.disk_usage(base.home.path).free
        if budget.limit_bytes is None:
            return free // 2  # others write, too
        return min(free, budget.limit_bytes - budget.used_bytes())

    def most_copies(expert_bytes: int) -> int:
        speed = hardware.speed
        if speed is None:
            return 0  # not measured yet
        limits = [base.genesis.setting(f"tier{n}_experts") for n in range(TIERS)]
        memory_bytes = speed.memory_bytes if speed.accelerator else room_bytes
        return most_experts(speed.tier, limits, memory_bytes, expert_bytes)

    sight = Sight(view, held, near.hosts, lambda: room_bytes, disk_bytes, most_copies)
    return hardware, Replication(
        usage,
        sight,
        base.key.account,
        base.metrics,
        Random(),
        config.inference.replicate,
    )


def planning(base: Base, replica: Replica, models: Models) -> Around:
    """Return what `model plan` is made from."""
    near, sight = Neighbours(base, replica), models.replication.sight
    return Around(
        account=base.key.account,
        me=base.host.peer_id,
        view=sight.view,
        held=sight.held,
        hosts=sight.hosts,
        rtt_ms=near.rtt_ms,
        is_connected=near.is_connected,
        speed=lambda: models.hardware.speed,
        memory_bytes=sight.room_bytes(),
        recipe=base.config.inference.recipe,
        replication=base.genesis.parameters.replication,
        disk_bytes=sight.disk_bytes,
    )
