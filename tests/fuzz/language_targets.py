"""Targets of what comes with a foreign model: tokenizers, templates; and schemas."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from blyan_proto import codec
from blyan_proto.errors import DecodeError
from blyan_tile.grammar import (
    BeginJob,
    LexiconJob,
    StepJob,
    begin_grammar,
    learn_tokens,
    step_grammar,
    unpacked,
)
from blyan_tile.pieces import BYTE_TABLE, PieceDecoder, Table
from blyan_tile.template import RenderJob, render
from blyan_tile.tokenizer import Companions, companions_of, read_companions
from blyan_tile.vocabulary import check

MAX_BYTES = 1 << 20
TEMPLATE = b"""{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}
{{ m['content'] | trim | tojson }}{% else %}{{ raise_exception('no ' + m.role) }}{% endif %}
{% endfor %}{% macro f(x, y=1) %}{{ x ~ y }}{% endmacro %}{{ f(1) }}{{ tools is none }}"""
SCHEMAS = (
    {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "null"}}},
    {"type": "string", "pattern": "^[a-z]{1,3}(b|c)*$", "maxLength": 9},
    {"anyOf": [{"type": "integer", "minimum": -3}, {"const": 1.5}]},
)


def small(fallback: bool) -> bytes:
    """Return a tokenizer.json of a few tokens."""
    words = ["a", "b", "ab", "▁" if fallback else "Ġ"]
    pieces = [*words, *(f"<0x{byte:02X}>" for byte in (0xC3, 0xA9, 0xFF))]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    made = Tokenizer(
        models.BPE(vocabulary, [("a", "b")], byte_fallback=fallback, unk_token="a")
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if fallback:
        made.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
        made.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    made.add_special_tokens(["<end>"])
    return made.to_str().encode()


def tokenizer(raw: bytes) -> None:
    opened = check(companions_of({"tokenizer.json": raw}), 100)
    PieceDecoder(opened.table).decode(range(100))


def configuration(raw: bytes) -> None:
    """Read another file beside a good tokenizer.json."""
    files = {"tokenizer.json": small(False), "tokenizer_config.json": raw}
    check(companions_of(files), 100)


def template(raw: bytes) -> None:
    text = raw.decode(errors="replace")
    talk = json.dumps([{"role": "user", "content": " x "}])
    render(RenderJob(text, talk, "", "", (), True), lambda progress: None)


def schema(raw: bytes) -> None:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("not text") from error
    root = bytes(32)
    masked = begin_grammar(BeginJob(root, 1, text), lambda progress: None)
    if not masked.known:
        learn_tokens(LexiconJob(root, BYTE_TABLE, ()), lambda progress: None)
        masked = begin_grammar(BeginJob(root, 1, text), lambda progress: None)
    for _ in range(8):
        allowed = [] if masked.ended else np.flatnonzero(unpacked(masked.mask, 256))
        if not len(allowed):
            break
        masked = step_grammar(StepJob(1, int(allowed[-1])), lambda progress: None)


TABLE = Table(np.array([1, 2], "<u4").tobytes(), b"abc", b"\0\3", False, 1, True)
COMPANIONS = Companions(1, b"{}", small(True), b"", b'{"eos_token_id": 1}', b"x")
CONFIG = {
    "eos_token": {"content": "<end>"},
    "chat_template": [{"name": "default", "template": "x"}],
}
TARGETS: dict[str, tuple[Any, Any, tuple[bytes, ...]]] = {
    "companions": (read_companions, codec.encode, (codec.encode(COMPANIONS),)),
    "piece table": (
        lambda raw: codec.decode(Table, raw, MAX_BYTES),
        codec.encode,
        (codec.encode(TABLE),),
    ),
    "tokenizer.json": (tokenizer, None, (small(False), small(True))),
    "tokenizer_config.json": (
        configuration,
        None,
        (json.dumps(CONFIG).encode(),),
    ),
    "chat template": (template, None, (TEMPLATE,)),
    "json schema": (
        schema,
        None,
        tuple(json.dumps(one).encode() for one in SCHEMAS),
    ),
}
