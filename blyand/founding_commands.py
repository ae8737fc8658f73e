"""`blyand genesis create|show|verify`: arguments -> a genesis, or what is wrong with it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from blyan_proto.amounts import bly
from blyan_proto.codec import to_plain
from blyan_proto.genesis import Genesis
from blyan_proto.settings import SETTINGS
from blyan_proto.signing import account_of, is_public_key
from blyan_proto.types import Role
from blyand import genesis as genesis_file
from blyand.errors import ConfigFault
from blyand.founding import Plan, found, problems_of, read_founder, read_plan
from blyand.home import Home

UNSOUND = 1


def configure(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `genesis` and its verbs."""
    genesis = add_parser(
        "genesis", help="make, show or check what a network begins with"
    )
    verbs = genesis.add_subparsers(required=True)
    create = verbs.add_parser(
        "create",
        help="make a genesis from what its founders' `blyand init --json` printed",
    )
    create.add_argument("file", type=Path, metavar="FILE", help="where it is written")
    create.add_argument(
        "--founder",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="output of a founder's `blyand init --json`; repeat for each",
    )
    create.add_argument(
        "--spec",
        type=Path,
        help="TOML or JSON: name, salt, time_ms, tables parameters, settings, balances "
        "(account = micro-BLY), weights (key = weight of a validator)",
    )
    create.add_argument("--name", help="name of the network")
    for option, what in (
        ("--parameter", "NAME=NUMBER"),
        ("--setting", "NAME=NUMBER"),
        ("--balance", "ACCOUNT=MICRO"),
        ("--weight", "KEY=NUMBER"),
    ):
        create.add_argument(option, action="append", default=[], metavar=what)
    create.add_argument("--force", action="store_true", help="replace FILE")
    create.set_defaults(command=_create)
    show = verbs.add_parser("show", help="show a genesis and its id")
    show.add_argument("file", type=Path, nargs="?", metavar="FILE")
    show.add_argument("--home", type=Path, help="that of a home instead")
    show.set_defaults(command=_show)
    verify = verbs.add_parser(
        "verify", help="check a genesis, and that it is a certain one"
    )
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.add_argument(
        "hash", nargs="?", help="the id that was announced, hexadecimal"
    )
    verify.set_defaults(command=_verify)
    for verb in (create, show, verify):
        verb.add_argument("--json", action="store_true")


def _create(args: argparse.Namespace) -> int:
    if args.file.exists() and not args.force:
        raise ConfigFault(f"{args.file} exists; --force replaces it")
    plan = read_plan(args.spec) if args.spec else Plan()
    pairs = {
        name: _pairs(getattr(args, name), f"--{name}")
        for name in ("parameter", "setting", "balance", "weight")
    }
    plan = replace(
        plan,
        name=args.name or plan.name,
        parameters={**plan.parameters, **pairs["parameter"]},
        settings={**plan.settings, **pairs["setting"]},
        balances={**plan.balances, **_by_bytes(pairs["balance"], 20, "--balance")},
        weights={**plan.weights, **_by_bytes(pairs["weight"], 33, "--weight")},
    )
    genesis = found(plan, [read_founder(path) for path in args.founder])
    genesis_file.save(genesis, args.file)
    if args.json:
        print(json.dumps({"file": str(args.file), "network": genesis.id.hex()}))
    else:
        print(f"genesis  {args.file}")
        print(f"network  {genesis.id.hex()}")
        print(f"check    blyand genesis verify {args.file} {genesis.id.hex()}")
        print(
            f"next     blyand init --home DIR --genesis {args.file} --force, then blyand run"
        )
    return 0


def _show(args: argparse.Namespace) -> int:
    if (args.file is None) == (args.home is None):
        raise ConfigFault("name a genesis file, or a home by --home DIR")
    path = args.file or Home(args.home.absolute()).genesis
    genesis = genesis_file.load(path)
    if args.json:
        print(json.dumps({"network": genesis.id.hex(), "genesis": to_plain(genesis)}))
    else:
        print("\n".join(_lines(genesis)))
    return 0


def _verify(args: argparse.Namespace) -> int:
    genesis = genesis_file.load(args.file)
    problems = list(problems_of(genesis))
    if args.hash is not None and genesis.id.hex() != args.hash.lower().removeprefix(
        "0x"
    ):
        problems.insert(
            0,
            f"it is {genesis.id.hex()} and not {args.hash}: another network's, or changed",
        )
    if args.json:
        told = {
            "network": genesis.id.hex(),
            "sound": not problems,
            "problems": problems,
        }
        print(json.dumps(told))
    else:
        for problem in problems:
            print(f"wrong    {problem}")
        print(f"network  {genesis.id.hex()}" + ("" if problems else "  sound"))
    return UNSOUND if problems else 0


def _lines(genesis: Genesis) -> Iterator[str]:
    """Yield a genesis as people read it."""
    founders = genesis.founders
    yield f"network     {genesis.id.hex()}"
    yield f"name        {genesis.name}"
    yield f"began       {_date(genesis.time_ms)}"
    yield f"supply      {bly(sum(one.micro for one in genesis.balances))}"
    yield f"validators  {len(founders)}, weight {founders.total}"
    for one in founders:
        yield f"  {one.key.hex()}  weight {one.weight}"
    yield f"founders    {len(genesis.participants)}"
    for founder in genesis.participants:
        account = account_of(founder.key).hex() if is_public_key(founder.key) else "?"
        roles = ",".join(str(r.name).lower() for r in Role if r & founder.roles)
        yield f"  {founder.key.hex()}  0x{account}  {roles}"
    yield "balances"
    for balance in genesis.balances:
        yield f"  0x{balance.account.hex()}  {bly(balance.micro)}"
    yield "parameters"
    for name, value in to_plain(genesis.parameters).items():
        yield f"  {name} = {value}"
    yield "settings"
    for name, known in SETTINGS.items():
        yield f"  {name} = {genesis.setting(name)}  ({known.meaning})"


def _date(ms: int) -> str:
    try:
        when = datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError):
        return f"{ms} ms"
    return f"{when:%Y-%m-%d %H:%M:%SZ}"


def _pairs(texts: list[str], option: str) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value.isascii() or not value.lstrip("-").isdigit():
            raise ConfigFault(f"{option} {text}: write NAME=NUMBER")
        found[name] = int(value)
    return found


def _by_bytes(pairs: dict[str, int], size: int, option: str) -> dict[bytes, int]:
    found = {}
    for text, value in pairs.items():
        try:
            raw = bytes.fromhex(text.removeprefix("0x"))
        except ValueError:
            raw = b""
        if len(raw) != size:
            raise ConfigFault(f"{option} {text}: write {size} bytes in hexadecimal")
        found[raw] = value
    return found
