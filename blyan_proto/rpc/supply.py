"""How much money there is, and how much more there may be."""

from __future__ import annotations

from blyan_proto.rpc.spec import Address, Method, arg, declare, record


@record
class ShowSupply:
    """Tell what was issued and burnt, what this year may bring, what the pools hold."""


@record
class PoolLine:
    """An account that belongs to a purpose."""

    pool: str = arg("its name")
    account: Address = arg("its account")
    holds_micro: int = arg("what it holds")


@record
class Supply:
    """The money, micro-BLY."""

    supply_micro: int = arg("what there is: issued less burnt")
    issued_micro: int = arg("ever issued, the genesis included")
    burnt_micro: int = arg("ever burnt")
    circulating_micro: int = arg("supply less what the pools hold")
    cap_micro: int = arg("the most there can be")
    fees_micro: int = arg("ever paid as fees; a hundredth of it is burnt")
    year: int = arg("years since the genesis")
    year_began_ms: int = arg("begin of this year, chain time")
    year_ends_ms: int = arg("its end")
    year_limit_micro: int = arg("what may be issued in it")
    year_issued_micro: int = arg("what was issued in it")
    year_left_micro: int = arg("what may still be issued in it")
    height: int = arg("checkpoint that this is after")
    pools: list[PoolLine] = arg("accounts without a key")


show = declare(Method("supply.show", ShowSupply, Supply, public=True))
