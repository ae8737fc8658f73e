"""The control CLI: argv -> request -> exit code.

0 success, 1 the call failed, 2 wrong usage, 3 no daemon, 130 interrupted. Errors are
one sentence on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence

from blyan_proto.rpc.errors import INVALID_PARAMS, RpcError
from blyan_proto.rpc.spec import JsonObject
from blyanctl import live, parser
from blyanctl.client import Client, NoAnswer, NoDaemon
from blyanctl.render import render

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_DAEMON = 3
EXIT_INTERRUPTED = 130
# What ctrl-C does to what the daemon was asked for, where that is worth a word.
INTERRUPTED = {
    "train.watch": "Stopped watching; the run goes on.",
    "model.import": "Interrupted; the same command goes on from there.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character
    made = parser.build(argv)
    arguments = made.parse_args(argv)
    try:
        return _run(arguments)
    except RpcError as error:
        method = getattr(arguments, "method", None)
        if error.code == INVALID_PARAMS.code and method is not None:
            return _misused(arguments, parser.told(method, error.message))
        text = error.message.rstrip(".")
        end = "" if text.endswith("?") else "."
        return _fail(f"{text}{end} (error {error.code})", EXIT_FAILED)
    except NoAnswer as error:
        return _fail(str(error), EXIT_FAILED)
    except NoDaemon as error:
        return _fail(str(error), EXIT_NO_DAEMON)
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # after the terminal's ^C
        method = getattr(arguments, "method", None)
        name = "" if method is None else method.name
        text = INTERRUPTED.get(name, "Interrupted.")
        return _fail(start + text, EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone; keep the interpreter from writing to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _fail(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


def _misused(arguments: argparse.Namespace, why: str) -> int:
    usage = f"blyanctl {arguments.command} {arguments.verb}"
    return _fail(f"{usage}: {why}; see `{usage} --help`.", EXIT_USAGE)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command in parser.LOCAL:
        module = importlib.import_module(f"blyanctl.{arguments.command}")
        code: int = module.run(arguments)
        return code
    raw = arguments.command == "rpc"
    if raw:
        name, params = arguments.method_name, arguments.params or {}
    else:
        name = arguments.method.name
        try:
            params = parser.params_of(arguments, arguments.method)
        except ValueError as error:
            return _misused(arguments, str(error))
    plain = raw or getattr(arguments, "json", False)
    # the likeliest tokens are told with each token, not in the result
    asks_tokens = name == live.TOKENS and bool(params.get("logprobs")) and not plain
    streaming = getattr(arguments, "stream", False) or asks_tokens
    home, timeout_s = getattr(arguments, "home", None), getattr(
        arguments, "timeout", None
    )
    drawn = None if plain or streaming else live.drawn(name, sys.stdout)
    if drawn is not None:
        params = {**params, **drawn.params}
    with Client(home, timeout_s=timeout_s) as client:
        stream = client.stream(name, params)
        show = drawn.show if drawn is not None else live.ALWAYS.get(name)
        if streaming:
            show = show or live.ON_REQUEST.get(name, live.json_lines)
        if plain:
            show = live.json_lines if streaming else None
        if show is not None:
            # progress is no part of the output
            aside = show in (live.progress, live.syncing)
            show(stream, sys.stderr if aside else sys.stdout)
        result = stream.result
        if not plain and name in parser.PAGES:
            try:
                told = live.written(name, result, arguments.out)
            except OSError as error:
                return _fail(f"the page could not be written: {error}.", EXIT_FAILED)
            sys.stdout.write(told + "\n")
        else:
            _print(name, result, plain, streaming)
        # A check that went through and found something is no success for a script.
        return EXIT_FAILED if result.get("sound") is False else 0


def _print(name: str, result: JsonObject, plain: bool, streamed: bool) -> None:
    if plain:
        text, note = json.dumps(result), ""
    else:
        text, note = live.ending(name, result, streamed) or (render(result), "")
    if text or plain:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    if note:
        sys.stderr.write(note + "\n")


if __name__ == "__main__":
    sys.exit(main())
