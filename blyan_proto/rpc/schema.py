"""Declarations -> JSON Schema and Markdown.

``python -m blyan_proto.rpc.schema --markdown`` prints docs/rpc.md, ``--json`` one JSON
document with the schemas of every method.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from blyan_proto.rpc.errors import (
    GENERAL,
    NOUN_BASES,
    NOUN_ERRORS,
    SHARED,
    ErrorCode,
)
from blyan_proto.rpc.jsonrpc import MAX_BATCH, MAX_LINE_BYTES, MAX_REPLY_BYTES
from blyan_proto.rpc.methods import NOUNS, all_methods, methods_of
from blyan_proto.rpc.records import Field, fields_of, record_shape, word_of
from blyan_proto.rpc.spec import Method
from blyan_proto.rpc.values import JsonObject

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def params_schema(method: Method) -> JsonObject:
    """Return the JSON Schema of a method's params: what may be left out, may be null."""
    properties: JsonObject = {}
    for field in fields_of(method.params):
        described = {**field.shape.schema, "description": field.about.help}
        if not field.required:
            described["default"] = field.default
        properties[field.name] = described
    return {
        "type": "object",
        "properties": properties,
        "required": [f.name for f in fields_of(method.params) if f.required],
        "additionalProperties": False,
    }


def _reply(cls: type) -> JsonObject:
    return record_shape(cls).schema  # every field is present


def method_schema(method: Method) -> JsonObject:
    """Return one method: its summary, schemas and error codes."""
    schema: JsonObject = {
        "$schema": DRAFT,
        "title": method.name,
        "description": method.summary,
        "public": method.public,
        "params": params_schema(method),
        "result": _reply(method.result),
        "errors": [{"code": error.code, "name": error.name} for error in method.errors],
    }
    if method.streams is not None:
        schema["stream"] = _reply(method.streams)
    return schema


def document() -> JsonObject:
    """Return the schemas of all methods, by name."""
    return {name: method_schema(method) for name, method in all_methods().items()}


def _bounds(field: Field) -> str:
    about = field.about
    if about.choices:
        return f" ({', '.join(about.choices)})"
    low, high = about.low, about.high
    if low is None and high is None:
        return ""
    unit = " items" if "items" in field.shape.schema else ""
    if high is None:
        return f" (at least {low:,}{unit})"
    return (
        f" (at most {high:,}{unit})" if low is None else f" ({low:,} to {high:,}{unit})"
    )


def _default(field: Field) -> str:
    return "required" if field.required else f"`{json.dumps(field.default)}`"


def _rows(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield a table row per field of a reply; a record inside follows indented."""
    for field in fields_of(cls):
        schema, mark = field.shape.schema, ""
        if "anyOf" in schema or (isinstance(schema.get("type"), list)):
            mark = " or null"
        name = prefix + field.name
        yield f"| `{name}` | {field.shape.words}{mark} | {field.about.help} |"
        if field.shape.record is not None:
            inside = "[]." if field.shape.words.startswith("list") else "."
            yield from _rows(field.shape.record, name + inside)


def _table(head: str, rows: Iterable[str]) -> list[str]:
    columns = head.count("|") - 1
    return [head, "|" + " --- |" * columns, *rows, ""]


def _method(method: Method) -> list[str]:
    command = f"blyanctl {method.noun} {method.verb}"
    lines = [f"### {method.name}", "", method.summary, ""]
    fields = fields_of(method.params)
    placed = "".join(
        (
            f" {word_of(field.name).upper()}"
            if field.required
            else f" [{word_of(field.name).upper()}]"
        )
        for field in fields
        if field.about.positional
    )
    options = " [--…]" if any(not field.about.positional for field in fields) else ""
    lines += [f"`{command}{placed}{options}`", ""]
    if fields:
        rows = [
            f"| `{field.name}` | {field.shape.words} | {_default(field)} "
            f"| {field.about.help}{_bounds(field)}"
            f"{' (an absolute path)' if field.about.path else ''} |"
            for field in fields
        ]
        lines += _table("| param | type | default | meaning |", rows)
    else:
        lines += ["No params.", ""]
    if method.streams is not None:
        lines += _table("| streamed item | type | meaning |", _rows(method.streams))
    lines += _table("| result | type | meaning |", _rows(method.result))
    notes = []
    if method.deadline_s is None:
        notes.append("Ends when what it follows ends.")
    else:
        notes.append(f"Answered within {method.deadline_s:g} s.")
    if method.public:
        notes.append("Public: also reachable over HTTP.")
    if method.errors:
        named = ", ".join(f"{error.code} {error.name}" for error in method.errors)
        notes.append(f"Errors: {named}.")
    return [*lines, " ".join(notes), ""]


def _codes(errors: Iterable[ErrorCode]) -> list[str]:
    rows = [f"| {error.code} | {error.name} | {error.meaning} |" for error in errors]
    return _table("| code | name | meaning |", rows)


INTRODUCTION = f"""\
# The control interface

Made from the declarations in `blyan_proto/rpc` by
`python -m blyan_proto.rpc.schema --markdown`; do not edit.

JSON-RPC 2.0 over the Unix socket `<home>/blyand.sock` (mode 0600), one JSON value per
line. Params go by name; one that is missing or null takes its default; an unknown name
is an error. A result is always an object with every field present.

- A request line is at most {MAX_LINE_BYTES:,} bytes; a longer one is answered by one
  error and the connection closes. A reply, or all replies to one batch, is at most
  {MAX_REPLY_BYTES:,} bytes.
- A request without `id` is a notification: it is carried out and not answered.
- An array of at most {MAX_BATCH} requests is a batch: they are carried out one after
  the other and answered by one array.
- A streaming method first sends notifications
  `{{"jsonrpc":"2.0","method":"stream","params":{{"id":…,"item":{{…}}}}}}` that carry the
  id of the request, then one result.
- When a connection ends, its requests are cancelled. A client that does not read its
  replies is disconnected.
- Bytes (ids, roots, keys, accounts) are hexadecimal text.
"""


def markdown() -> str:
    """Return docs/rpc.md."""
    lines = [INTRODUCTION, "## Errors", "", "Everywhere:", "", *_codes(GENERAL)]
    bases = ", ".join(f"{noun} {base}" for noun, base in NOUN_BASES.items())
    lines += [
        f"A hundred per noun: {bases}. In every hundred the first codes mean the same, "
        "and nobody made a mistake:",
        "",
        *_table(
            "| base + | name | meaning |",
            [f"| {code.code} | {code.name} | {code.meaning} |" for code in SHARED],
        ),
        "Mistakes of the caller:",
        "",
        *_codes(NOUN_ERRORS),
    ]
    for noun, about in NOUNS.items():
        lines += [f"## {noun}", "", f"{about[0].upper()}{about[1:]}.", ""]
        for method in methods_of(noun).values():
            lines += _method(method)
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str]) -> int:
    """Print the Markdown or the JSON document; exit code 2 for anything else."""
    if argv == ["--markdown"]:
        sys.stdout.write(markdown())
    elif argv == ["--json"]:
        text: Any = json.dumps(document(), indent=1)
        sys.stdout.write(text + "\n")
    else:
        sys.stderr.write(
            "usage: python -m blyan_proto.rpc.schema --markdown | --json\n"
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
