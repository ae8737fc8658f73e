"""Answers about the money there is."""

from __future__ import annotations

from blyan_proto.rpc import supply as spec
from blyand.chain.machine import Machine
from blyand.rpc.bind import Answers
from blyand.rules.economy import fee, pools, supply
from blyand.rules.economy.book import MAX_SUPPLY_MICRO, amount
from blyand.rules.economy.book import supply as issued_and_burnt
from blyand.rules.view import Overlay


def bind(answers: Answers, *, machine: Machine) -> None:
    """Bind supply.*."""

    @answers(spec.show)
    async def show(params: spec.ShowSupply) -> spec.Supply:
        view = Overlay(machine.view)  # a scratch pad: a new year may be due
        year = supply.turn_year(view, machine.clock.time_ms)
        money = issued_and_burnt(view)
        return spec.Supply(
            supply_micro=money.micro,
            issued_micro=money.issued_micro,
            burnt_micro=money.burnt_micro,
            circulating_micro=supply.circulating(view),
            cap_micro=MAX_SUPPLY_MICRO,
            fees_micro=fee.paid(view),
            year=year.number,
            year_began_ms=year.began_ms,
            year_ends_ms=year.began_ms + supply.YEAR_MS,
            year_limit_micro=supply.limit_of(view, year),
            year_issued_micro=year.issued_micro,
            year_left_micro=supply.room(view, machine.clock.time_ms),
            height=machine.clock.height,
            pools=[
                spec.PoolLine(
                    pool=name, account=account, holds_micro=amount(view, account)
                )
                for name, account in pools.POOLS.items()
            ],
        )
