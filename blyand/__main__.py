"""`blyand init|run|restore|genesis`: arguments -> configuration -> exit code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from blyan_proto.codec import to_plain
from blyand import founding_commands
from blyand.backup import restore
from blyand.compute import choose_threads, thread_environment
from blyand.config import Config, load_config
from blyand.errors import (
    ConfigFault,
    Damaged,
    DiskFull,
    KeyChanged,
    LocalFault,
    StorageFault,
)
from blyand.home import Home, open_home
from blyand.initialise import Made, initialise
from blyand.log import logging_to
from blyand.supervise import leaves

log = logging.getLogger(__name__)

FAILED, MISUSED = 1, 2
MAX_REPAIRS = 3  # of the database in the life of one process; then the disk is to blame


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the process's exit code."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.command(args)
        return code
    except (ConfigFault, StorageFault, DiskFull) as error:
        print(f"blyand: {error}", file=sys.stderr)
        return FAILED


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {message}; see `{self.prog} --help`.\n")


def _parser() -> argparse.ArgumentParser:
    home = Parser(add_help=False)
    home.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get("BLYAN_HOME", "~/.blyan")).expanduser(),
        help="where everything is kept (default: $BLYAN_HOME or ~/.blyan)",
    )
    home.add_argument("--listen", action="append", metavar="MULTIADDR")
    home.add_argument(
        "--announce",
        action="append",
        metavar="MULTIADDR",
        help="where others reach this node, if a router forwards a port to it",
    )
    home.add_argument("--bootstrap", action="append", metavar="MULTIADDR")
    home.add_argument("--region", metavar="NAME")
    home.add_argument("--device", metavar="auto|cpu|cuda:N")
    home.add_argument("--roles", metavar="ROLE,…", help="learn, serve, archive")
    home.add_argument("--daemons-on-host", type=int, metavar="N")
    home.add_argument("--max-per-group", type=int, metavar="N")
    parser = Parser(prog="blyand", description="A node of a Blyan network.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser(
        "init", parents=[home], help="make config.toml, an encrypted key, a genesis"
    )
    init.add_argument("--genesis", type=Path, help="join the network of this file")
    init.add_argument("--force", action="store_true", help="replace the genesis")
    init.add_argument("--json", action="store_true")
    init.set_defaults(command=_init)
    back = commands.add_parser(
        "restore", help="make a home from what `blyanctl node backup` saved"
    )
    back.add_argument("backup", type=Path, metavar="BACKUP")
    back.add_argument("--home", type=Path, required=True, help="the new home")
    back.set_defaults(command=_restore)
    founding_commands.configure(commands.add_parser)
    run = commands.add_parser("run", parents=[home], help="run the node")
    run.add_argument(
        "--checkpoint",
        metavar="HEIGHT:HASH",
        help="join by this checkpoint, which you trust; own: the whole network was off",
    )
    run.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="serve the OpenAI-compatible API and the chat page, as on 127.0.0.1:8080",
    )
    run.set_defaults(command=_run)
    return parser


def _flags(args: argparse.Namespace) -> dict[str, object]:
    listen, bootstrap = args.listen, args.bootstrap
    announce = args.announce
    return {
        "net.listen": tuple(listen) if listen else None,
        "net.announce": tuple(announce) if announce else None,
        "net.bootstrap": tuple(bootstrap) if bootstrap else None,
        "net.region": args.region,
        "sync.checkpoint": getattr(args, "checkpoint", None),
        "http.listen": getattr(args, "http", None),
        "net.max_per_group": args.max_per_group,
        "compute.device": args.device,
        "compute.daemons_on_host": args.daemons_on_host,
        "node.roles": tuple(args.roles.split(",")) if args.roles else None,
    }


def _init(args: argparse.Namespace) -> int:
    chosen = {key: value for key, value in _flags(args).items() if value is not None}
    load_config(None, {}, chosen)  # a wrong value is refused before anything is made
    made = initialise(args.home, args.genesis, chosen, args.force)  # type: ignore[arg-type]
    if args.json:
        print(json.dumps(_plain(made)))
    else:
        print(f"home     {made.home.path}")
        print(f"account  0x{made.account.hex()}")
        print(f"network  {made.network.hex()}")
        print(f"next     blyand run --home {made.home.path}")
    return 0


def _restore(args: argparse.Namespace) -> int:
    def report(stage: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{stage}: {done} of {total}", end=end, file=sys.stderr)

    home = restore(args.backup, args.home, report)
    print(f"home     {home.path}")
    print("note     it signs nothing until its peers have told what it had signed;")
    print("         never run it beside the home that was saved")
    print(f"next     blyand run --home {home.path}")
    return 0


def _plain(made: Made) -> dict[str, Any]:
    return {
        "home": str(made.home.path),
        "public_key": made.public.hex(),
        "account": "0x" + made.account.hex(),
        "network": made.network.hex(),
        "registration": to_plain(made.registration),
    }


def _run(args: argparse.Namespace) -> int:
    with open_home(args.home) as home:
        config = load_config(home.config, os.environ, _flags(args))
        with logging_to(
            home.log,
            level=config.log.level,
            as_json=config.log.json,
            file_bytes=config.log.file_mib << 20,
            files=config.log.files,
        ):
            return _serve(home, config)


def _serve(home: Home, config: Config) -> int:
    threads = choose_threads(config.compute.threads, config.compute.daemons_on_host)
    # Tensor libraries read these when they are imported (DEC-S5).
    os.environ.update(thread_environment(threads))
    import trio

    from blyand import daemon

    repairs_left = MAX_REPAIRS
    while True:
        try:
            trio.run(daemon.run, home, config)
            return 0
        except (LocalFault, DiskFull, BaseExceptionGroup) as error:
            faults = list(leaves(error))
            if not all(isinstance(one, (LocalFault, DiskFull)) for one in faults):
                raise
        if any(isinstance(one, KeyChanged) for one in faults):
            continue
        if not repairs_left or not any(isinstance(one, Damaged) for one in faults):
            break
        repairs_left -= 1
        log.warning("%s; this node starts again and repairs it", faults[0])
    for fault in faults:
        print(f"blyand: {fault}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
