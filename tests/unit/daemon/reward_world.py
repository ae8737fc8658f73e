"""A network whose epochs end, whose validators sign, and whose work is paid."""

from __future__ import annotations

from blyan_proto.block.ledger import Capture, DeliveryStatement, Reserve, Usage
from blyan_proto.genesis import Balance, Setting
from blyan_proto.signing import Purpose
from blyan_proto.validators import Validator
from blyand.rules.economy import claims, epoch, usage
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.economy.statement import CLOSED
from blyand.rules.economy.usage import Served
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_world import World, key, some

BLY = 1_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
WEEK = 7 * DAY


def rich(nodes=3, kind=World, bly=900_000_000, **numbers):
    """A world whose year may issue more than any budget."""
    keys = [key(index) for index in range(nodes)]
    return kind(
        nodes=nodes,
        validators=tuple(
            Validator(k.public, 1, some(k.public).randbytes(32)) for k in keys
        ),
        balances=tuple(Balance(k.account, bly * BLY // nodes) for k in keys),
        settings=tuple(Setting(name, numbers[name]) for name in sorted(numbers)),
    )


def sign(world, count=1, step_ms=1_000, signers=None):
    for _ in range(count):
        world.checkpoint(
            step_ms=step_ms, signers=world.keys if signers is None else signers
        )


def end_epoch(world, signers=None):
    """Move to the epoch's end with one more checkpoint; return what closed."""
    running = epoch.running(world.view)
    over = running.began_ms + world.genesis.setting("epoch_span_ms")
    sign(world, step_ms=max(1, over - world.time_ms), signers=signers)
    closed = CLOSED.get(world.view, running.number)
    assert closed is not None and closed.last_height == world.height
    return closed


def owe(world, source, account, micro, count=1):
    """Claim outside of any block, as a rule does inside of one."""
    over = Overlay(world.view)
    claims.claim(over, source, account, micro, count)
    world.view.apply(over.changes)


def fill(world, pool, micro):
    over = Overlay(world.view)
    move(over, (world.keys[0].account, Purse.FREE), (pool, Purse.FREE), micro, "fee")
    world.view.apply(over.changes)


def unclaimed(world, who):
    return amount(world.view, who.account, Purse.UNCLAIMED)


def serve(world, group=3, calls=200, fee=100 * BLY, server=1, payer=2, **more):
    served = Served(
        server=world.keys[server].account,
        payer=world.keys[payer].account,
        model=more.pop("model", world.model),
        calls=((group, calls),),
        response_ms=more.pop("response_ms", 100),
        quality_ppm=more.pop("quality_ppm", 0),
        fee_micro=fee,
    )
    over = Overlay(world.view)
    usage.count(over, served, more.pop("time_ms", world.time_ms))
    world.view.apply(over.changes)


def buy(world, group=3, calls=200, fee=100 * BLY, server=1, payer=2, **said):
    """Order a reserve and its capture, as both sides sign them; return the capture."""
    buying, serving = world.keys[payer], world.keys[server]
    reserve = Reserve(
        1, serving.account, BLY, fee, None, 0, world.time_ms + HOUR, bytes([payer])
    )
    fields = dict(
        version=1,
        reserve=world.ordered(reserve, buying).id,
        model=world.model,
        usage=(Usage(group, calls),),
        tokens=10,
        response_ms=100,
        quality_ppm=0,
        amount_micro=BLY,
    )
    statement = DeliveryStatement(**{**fields, **said})
    signature = buying.sign(Purpose.DELIVERY, world.genesis.id, statement)
    return world.ordered(Capture(1, statement, buying.public, signature), serving)
