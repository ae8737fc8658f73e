"""argparse built from the declared methods, and what was parsed back into params.

Only the nouns that stand on the command line are filled in: a call needs one of them,
and starts faster. Commands of this machine, not of a daemon, are modules of this
package with `configure(parser)` and `run(arguments) -> exit code` (see `LOCAL`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from blyan_proto.rpc.errors import RpcError
from blyan_proto.rpc.methods import NOUNS, methods_of
from blyan_proto.rpc.records import Field, fields_of, word_of
from blyan_proto.rpc.spec import JsonObject, Method

# Commands that need no daemon: name -> help. Each is blyanctl/<name>.py.
LOCAL = {
    "doctor": "what is wrong with this machine, in ten seconds",
    "devnet": "several daemons on this machine, ready to use",
    "verify": "check a proof that `chain prove` printed, without a daemon",
    "demo": "train and use a small model with a devnet, start to end",
    "seed": "make the model that the demo begins with",
}

PAGES = frozenset(("train.report",))  # shown as a page of HTML in a file

PARAM = "param_"  # dest of a flag
PLACE = "place_"  # dest of the same param given by place


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`.\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse here what is not known: so the sentence names the command."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def build(argv: Sequence[str]) -> Parser:
    """Return the parser for this command line.

    The parsed namespace has `command`: "rpc", one of `LOCAL`, or a noun; for a noun
    also `method`. `home`, `json`, `stream` and `timeout` are there only if given.
    """
    parser = Parser(
        prog="blyanctl",
        description="Control the Blyan daemon of a home.",
        parents=[_everywhere()],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for noun, about in NOUNS.items():
        below = _add(commands, noun, about)
        if noun in argv:
            verbs = below.add_subparsers(dest="verb", metavar="VERB", required=True)
            for method in methods_of(noun).values():
                add_method(verbs, method)
    raw = _add(commands, "rpc", "call any method, raw", parents=[_everywhere()])
    raw.add_argument("method_name", metavar="METHOD", help="as node.status")
    raw.add_argument("params", metavar="JSON", nargs="?", type=_object, help="params")
    _add_stream(raw)
    for name, about in LOCAL.items():
        if importlib.util.find_spec(f"blyanctl.{name}") is None:
            continue
        below = _add(commands, name, about, parents=[_everywhere()])
        if name in argv:
            importlib.import_module(f"blyanctl.{name}").configure(below)
    return parser


def _add(commands: Any, name: str, about: str, **more: Any) -> Parser:
    made: Parser = commands.add_parser(
        name, help=about, description=_sentence(about), allow_abbrev=False, **more
    )
    return made


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _plain(text: str) -> str:
    """Return a help text that argparse shows as it is."""
    return text.replace("%", "%%")


def _everywhere() -> argparse.ArgumentParser:
    """The options that stand before or after the command."""
    parser = argparse.ArgumentParser(
        add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False
    )
    parser.add_argument(
        "--home", metavar="DIR", help="the daemon's home ($BLYAN_HOME or ~/.blyan)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print exactly the result, as one JSON line"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="give up after so many seconds"
    )
    return parser


def _add_stream(parser: Parser) -> None:
    parser.add_argument(
        "--stream",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print as it comes",
    )


def add_method(verbs: Any, method: Method) -> None:
    """Add one declared method: every param as a flag, some also by place."""
    parser = verbs.add_parser(
        method.verb,
        help=_plain(method.summary[0].lower() + method.summary[1:].rstrip(".")),
        description=method.summary,
        parents=[_everywhere()],
        allow_abbrev=False,
    )
    parser.set_defaults(method=method)
    if method.streams is not None:
        _add_stream(parser)
    if method.name in PAGES:
        parser.add_argument(
            "--out",
            metavar="FILE",
            help="where the page goes, - for standard output (default: a new file here)",
        )
    for field in fields_of(method.params):
        about = field.about.help
        if field.about.positional:
            parser.add_argument(
                PLACE + field.name,
                metavar=word_of(field.name).upper(),
                nargs="?",
                type=_reader(field),
                help=_plain(about) + (" (required)" if field.required else ""),
            )
            about = argparse.SUPPRESS
        elif field.required:
            about += " (required)"
        elif field.default is not None and field.default != "":
            about += f" (default: {field.default})"
        _add_flag(parser, field, _plain(about))


def _add_flag(parser: Parser, field: Field, about: str) -> None:
    flag = "--" + word_of(field.name)
    options: dict[str, Any] = {
        "dest": PARAM + field.name,
        "default": None,
        "help": about,
    }
    if _kind(field.shape.schema) == "boolean":
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = _reader(field)
        options["metavar"] = _metavar(field)
        if _kind(field.shape.schema) == "array":
            options.update(nargs="+", action="extend")
    parser.add_argument(flag, **options)


def _kind(schema: JsonObject) -> str:
    kind = schema.get("type", "")
    return str(kind[0] if isinstance(kind, list) else kind)


def _metavar(field: Field) -> str:
    if field.about.choices:
        return "|".join(field.about.choices)
    if field.name.endswith("_micro"):
        return "BLY"
    schema = field.shape.schema
    kind = _kind(schema.get("items", schema))
    return {"integer": "N", "number": "X", "object": "JSON"}.get(kind, "TEXT")


def _reader(field: Field) -> Callable[[str], Any]:
    """Return the function that turns one word into the JSON value of a field."""
    if field.name.endswith("_micro"):
        return _amount(field.about.low)
    schema = field.shape.schema
    kind = _kind(schema.get("items", schema))
    if kind == "string":
        return _path if field.about.path else str
    if kind == "integer":
        return _integer
    return _number if kind == "number" else _value


def _integer(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not an integer") from None


def _bly(word: str) -> int:
    """Read an amount in BLY, as 1.5, exactly: micro-BLY."""
    match = re.fullmatch(r"(\d{1,12})(?:\.(\d{1,6}))?", word)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not an amount of BLY, as 12 or 0.000001"
        )
    whole, part = match.groups()
    return int(whole) * 1_000_000 + int((part or "").ljust(6, "0"))


def _amount(low: float | None) -> Callable[[str], int]:
    """Return the function that reads an amount of at least `low` micro-BLY."""

    def read(word: str) -> int:
        micro = _bly(word)
        if low is not None and micro < low:
            raise argparse.ArgumentTypeError("it must be more than 0")
        return micro

    return read


def _path(word: str) -> str:
    """Return a path as the daemon wants it: absolute."""
    return os.path.abspath(word) if word else word


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number") from None


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f"{word!r} is not JSON") from None


def _object(word: str) -> JsonObject:
    value = _value(word)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            "params are a JSON object, as '{\"limit\": 5}'"
        )
    return value


def params_of(arguments: argparse.Namespace, method: Method) -> JsonObject:
    """Return the params that were given. ValueError with a sentence if they do not fit."""
    params: JsonObject = {}
    for field in fields_of(method.params):
        flag = getattr(arguments, PARAM + field.name)
        place = getattr(arguments, PLACE + field.name, None)
        if flag is not None and place is not None:
            raise ValueError(f"{field.name} is given twice")
        value = place if flag is None else flag
        if value is not None:
            params[field.name] = value
    try:
        method.read_params(params)
    except RpcError as error:
        raise ValueError(told(method, error.message)) from None
    return params


def told(method: Method, message: str) -> str:
    """Return what a method says about its params in the words of the command line."""
    message = message.removeprefix(f"{method.name}: ")
    for field in fields_of(method.params):
        name, word = field.name, word_of(field.name)
        word = word.upper() if field.about.positional else f"--{word}"
        message = re.sub(f"^'?{name}'?(?=: | is missing )", word, message)
        if "_" in name:  # others are ordinary words too
            message = re.sub(rf"\b{name}\b", word, message)
    return message
