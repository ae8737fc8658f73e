"""The primary of a group: takes deltas, decides membership, publishes one update (B5, B6).

It holds nothing that anybody else lacks: contributors send again to the next rank.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.header import NO_LAYER
from blyan_proto.block.model import (
    Cosignature,
    Snapshot,
    TileRootsList,
    TileUpdate,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.delta import (
    Bundle,
    Delta,
    Entry,
    EntryVerdict,
    Manifest,
    Receipt,
    Verdict,
)
from blyan_proto.signing import Purpose, SigningKey, signing_digest
from blyan_proto.types import Role
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.events import Broadcast, RoundClosed
from blyand.protocols.delta import signed_receipt
from blyand.rules.model import update as rules
from blyand.rules.model.election import contributors, ranks, seat_of
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.store.intents import AlreadySigned, IntentLog
from blyand.training import membership, tiles
from blyand.training.announced import Announced
from blyand.training.arrivals import Arrivals
from blyand.training.collecting import Collecting, Place
from blyand.training.cosign import Cosigner
from blyand.training.holder import Holder
from blyand.training.membership import Listing, Refused, Taken
from blyand.training.watching import Watcher

logger = logging.getLogger(__name__)

MAX_OPEN = 4096  # groups collecting at once
TICK_S = 0.1
AGAIN_S = 1.0  # until what could not be formed or published is tried again

Key = tuple[bytes, int, int]  # run, round, group


class Primary:
    """Serves the groups for which this node is a rank."""

    def __init__(
        self,
        key: SigningKey,
        network: bytes,
        view: Callable[[], View],
        holder: Holder,
        blobs: BlobStore,
        lane: Threads,
        intents: IntentLog,
        cosigner: Cosigner,
        make: Callable[..., Awaitable[Block]],
        events: Broadcast,
        heard: Callable[[Bundle, Receipt, Mapping[int, str]], Awaitable[None]],
        watcher: Watcher,
        is_here: Callable[[bytes], bool] = lambda account: True,
    ) -> None:
        """`heard(bundle, receipt, why)` is told what became of each bundle;
        `is_here(account)`: false when a learner's node is known to be gone."""
        self._heard = heard
        self._arrivals = Arrivals(is_here)
        self._key = key
        self._network = network
        self._view = view
        self._holder = holder
        self._blobs = blobs
        self._lane = lane
        self._intents = intents
        self._cosigner = cosigner
        self._make = make
        self._events = events
        self._open: dict[Key, Collecting] = {}
        self._announced = Announced()
        self._watcher = watcher

    async def take(self, bundle: Bundle) -> Receipt:
        """Take a bundle whose form and signature were checked; say what became of it."""
        manifest = bundle.manifest
        by_group = {delta.group: delta for delta in bundle.deltas}
        verdicts = []
        why: dict[int, str] = {}
        for entry in manifest.entries:
            delta = by_group.get(entry.group)
            try:
                verdict = await self._take_one(manifest, bundle, entry, delta)
            except Reject as error:
                logger.info("a delta for group %d: %s", entry.group, error)
                verdict, why[entry.group] = Verdict.REFUSED, str(error)
            except Refused as error:
                logger.warning("a delta for group %d is broken: %s", entry.group, error)
                verdict, why[entry.group] = error.verdict, str(error)
            verdicts.append(EntryVerdict(entry.group, verdict))
        receipt = signed_receipt(self._key, self._network, manifest, verdicts)
        await self._heard(bundle, receipt, why)
        return receipt

    async def _take_one(
        self, manifest: Manifest, bundle: Bundle, entry: Entry, delta: Delta | None
    ) -> Verdict:
        index = entry.group
        place = self._place(manifest.run, manifest.round, index)
        if isinstance(place, Verdict):
            return place
        seat = seat_of(place.schedule, manifest.learner)
        if seat is None or seat.key != bundle.signer:
            raise Reject("the sender has no seat in this round")
        if seat not in contributors(place.schedule, index, Role.LEARN):
            raise Reject("the sender is no learner of the group")
        if entry.delta is not None:
            self._announced.note(place.stand, manifest.learner, entry.delta)
            if delta is None:
                return Verdict.NOTED
        taken = None
        if delta is not None:
            if not place.is_base_of(delta):
                return Verdict.STALE
            taken = await self._lane.run(
                membership.look_at,
                place.group,
                place.run,
                place.median,
                delta,
                self._watcher.secret,
            )
            later = self._place(manifest.run, manifest.round, index)
            if isinstance(later, Verdict):
                return later
            place = later
            if not place.is_base_of(delta):
                return Verdict.STALE  # rolled back meanwhile
        return self._keep(manifest, index, place, taken)

    def _keep(
        self, manifest: Manifest, index: int, place: Place, taken: Taken | None
    ) -> Verdict:
        key = (manifest.run, manifest.round, index)
        collecting = self._open.get(key)
        if collecting is None or not collecting.stands_at(place):
            if len(self._open) >= MAX_OPEN:
                self._drop_old()
            collecting = Collecting(
                place.head.block, place.schedule.epoch, trio.current_time()
            )
            self._open[key] = collecting
        if collecting.promised:
            return Verdict.NOT_PRIMARY
        if collecting.publishing:
            return Verdict.CLOSED
        if manifest.learner in collecting.heard:
            return Verdict.ALREADY_HAD
        copied = taken and membership.original_of(taken, collecting.heard)
        if copied:
            if self._announced.is_earlier(place.stand, copied, manifest.learner):
                raise Refused(Verdict.COPY, f"of the delta of {copied.hex()}")
            collecting.heard[copied] = None  # it came first, and was announced later
        came_ms = collecting.waited_ms(trio.current_time())
        if taken and self._watcher.turns_away(key, taken, place.voices):
            collecting.heard[manifest.learner] = None  # nobody waits for it
            collecting.came_ms[manifest.learner] = came_ms
            raise Refused(Verdict.AGAINST, "it pulls against most others")
        collecting.heard[manifest.learner] = taken
        collecting.came_ms[manifest.learner] = came_ms
        return Verdict.TAKEN

    def _drop_old(self) -> None:
        oldest = min(self._open, key=lambda key: self._open[key].opened)
        del self._open[oldest]

    def _place(self, run: bytes, round: int, index: int) -> Place | Verdict:
        """Return where an update of this group would stand now, or why there is none."""
        view = self._view()
        try:
            record, schedule = rules.open_round(view, run, round)
        except Reject:
            return Verdict.STALE
        layout = layout_for(require_model(view, record.run.model).model)
        if index >= len(layout.groups):
            raise Reject(f"the model has no group {index}")
        head = self._holder.head(record.run.model, index)
        if head is None:
            return Verdict.NOT_PRIMARY
        done = head.rounds if head.run == run else 0
        if done != round:
            return Verdict.CLOSED if done > round else Verdict.STALE
        keys = [seat.key for seat in ranks(schedule, index)]
        if self._key.public not in keys:
            return Verdict.NOT_PRIMARY
        rank = keys.index(self._key.public)
        return Place(record, schedule, layout.groups[index], head, rank)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Publish what is complete, or late enough."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watcher.run)
            task_status.started()
            while True:
                await trio.sleep(TICK_S)
                for key, collecting in list(self._open.items()):
                    place = self._place(*key)
                    if isinstance(place, Verdict) or not collecting.stands_at(place):
                        del self._open[key]  # the round went on, or back
                    elif not collecting.publishing and self._is_due(
                        key, collecting, place
                    ):
                        collecting.publishing = True
                        nursery.start_soon(self._publish, key, collecting, place)

    def _is_due(self, key: Key, collecting: Collecting, place: Place) -> bool:
        """True when the round is to be closed; what it says of learners is noted."""
        if trio.current_time() < collecting.again:
            return False
        learners = place.learners
        came_ms, now_ms = collecting.came_ms, collecting.waited_ms(trio.current_time())
        is_due = self._arrivals.is_due(place.run, learners, came_ms, now_ms)
        if is_due and not collecting.again:
            self._arrivals.closed(place.run, learners, came_ms)
        return is_due

    async def _publish(self, key: Key, collecting: Collecting, place: Place) -> None:
        try:
            update = await self._lane.run(self._form, key, collecting, place)
            await self._lane.run(
                self._intents.record_head,
                place.group.name,
                key[0],
                key[1],
                place.schedule.epoch,
                signing_digest(Purpose.TILE_UPDATE, self._network, update.claim),
                place.rank,
            )
        except AlreadySigned:
            logger.warning("%s: a head for this round is out", place.group.name)
            collecting.promised = True
            return
        except (Unavailable, ProtocolError) as error:
            logger.warning("no update for %s: %s", place.group.name, error)
            collecting.again = trio.current_time() + AGAIN_S
            collecting.publishing = False
            return
        block = await self._published(key, collecting, place, update)
        if block is None:
            return  # too late: another rank's update moved the group
        count = len(update.contributions)
        self._events.publish(
            RoundClosed(update.model, key[0], key[2], key[1], block.id, count)
        )
        if place.run.snapshot_every and (key[1] + 1) % place.run.snapshot_every == 0:
            await self._made(
                place,
                Snapshot(
                    version=FORMAT_VERSION,
                    model=update.model,
                    group=update.group,
                    update=block.id,
                    round=update.round,
                    tiles=update.result,
                ),
            )

    async def _published(
        self, key: Key, collecting: Collecting, place: Place, update: TileUpdate
    ) -> Block | None:
        """Publish an update with the signatures it needs; None when it came too late."""

        def goes_on() -> bool:
            return self._open.get(key) is collecting

        self._holder.made(update)
        signed = await self._cosigner.completed(update, place.schedule, goes_on)
        while signed is not None and goes_on():
            block = await self._made(place, signed)
            if block is not None:
                return block
            await trio.sleep(AGAIN_S)
        return None

    async def _made(self, place: Place, payload: TileUpdate | Snapshot) -> Block | None:
        """Publish a block about a group; None when the chain does not take it now."""
        group = place.group
        try:
            return await self._make(
                payload,
                subject=group.name,
                layer=NO_LAYER if group.layer is None else group.layer,
                meta_ref=payload.model,
            )
        except (Ignore, Reject, Unavailable, ProtocolError) as error:
            logger.warning("no block for %s: %s", group.name, error)
            return None

    def _form(self, key: Key, collecting: Collecting, place: Place) -> TileUpdate:
        """Make the update: weights by rule, the exact sum, our cosignature. Blocking."""
        heard = collecting.heard.items()
        taken = {learner: one for learner, one in heard if one is not None}
        made = membership.listing(taken, place.record, place.schedule, place.median)
        parts = membership.parts_of(taken, made.contributions)
        base = place.head.tiles
        result = tiles.advance(self._blobs, place.group, base, parts, place.run)
        blob = self._blobs.put_bytes(made.raw) if made.raw else None
        return self._signed(key, place, made, result, blob)

    def _signed(
        self,
        key: Key,
        place: Place,
        made: Listing,
        result: TileRootsList,
        blob: bytes | None,
    ) -> TileUpdate:
        def update(cosignature: Cosignature) -> TileUpdate:
            return TileUpdate(
                version=FORMAT_VERSION,
                model=place.run.model,
                run=key[0],
                group=key[2],
                round=key[1],
                lease_epoch=place.schedule.epoch,
                rank=place.rank,
                parent=place.head.block,
                base=place.head.tiles,
                contributions=made.contributions,
                result=result,
                blob=blob,
                cosignatures=(cosignature,),
                median=made.median,
            )

        unsigned = update(Cosignature(self._key.public, bytes(64)))
        signature = self._key.sign(Purpose.TILE_UPDATE, self._network, unsigned.claim)
        return update(Cosignature(self._key.public, signature))
