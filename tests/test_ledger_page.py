"""docs/ledger.md against the code: its tables are what the rules say."""

from __future__ import annotations

import ast
from pathlib import Path

from blyan_proto.rpc import payment
from blyan_proto.settings import SETTINGS
from blyand.ledger.sessions import MAX_LIVE
from blyand.rules.economy import due, fee, pools
from blyand.rules.economy.book import Purse
from blyand.rules.economy.session import FOLLOWS, Failure, SessionState
from tests.documents import DOCS, tables

TABLES = {table[0][0]: table[1:] for table in tables("ledger.md")}
PAGE = (DOCS / "ledger.md").read_text()
RULES = Path(fee.__file__).parents[1]
BY_OTHERS = {"quality", "expert", "learning", "validation"}  # docs/rewards.md


def test_purses_and_pools() -> None:
    assert [row[0] for row in TABLES["purse"]] == [p.name.lower() for p in Purse]
    assert [row[0] for row in TABLES["pool"]] == list(pools.POOLS)


def test_sessions() -> None:
    told = {row[0]: set(row[2].split(", ")) - {"–"} for row in TABLES["state"]}
    assert told == {
        state.name.lower(): {after.name.lower() for after in FOLLOWS[state]}
        for state in SessionState
    }
    assert [row[0] for row in TABLES["failure"]] == [f.name.lower() for f in Failure]
    assert payment.STATES == tuple(state.name.lower() for state in SessionState)
    assert payment.FAILURES == tuple(f.name.lower() for f in Failure)


def test_numbers() -> None:
    for name, default in TABLES["setting of the genesis"]:
        assert SETTINGS[name].default == int(default), name
    for before, paid, burnt, left in TABLES["all fees before"]:
        assert fee.burnt_of(int(before), int(paid)) == int(burnt)
        assert int(paid) - int(burnt) == int(left)
    assert f"{due.MAX_STEPS:,} slots" in PAGE
    assert f"{MAX_LIVE:,} sessions" in PAGE


def test_every_reason_of_a_posting_is_listed() -> None:
    listed = {reason for row in TABLES["reason"] for reason in row[0].split(", ")}
    found = set()
    for path in RULES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in ("move", "burn", "mint", "issue"):
                    found |= {
                        given.value
                        for given in node.args
                        if isinstance(given, ast.Constant)
                        and isinstance(given.value, str)
                    }
    assert found and not found - listed - BY_OTHERS, found - listed
