"""Foreign tokenizers, in a worker (DEC-C4): what is allowed, the table of pieces, encoding.

`tokenizers` is loaded only inside the functions; the messages name the jobs to the
daemon. The caller bounds time and memory of the process.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from blyan_proto.codec import U32, Size, message
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.types import Hash
from blyan_tile import tblock
from blyan_tile.decoder import components, table_of
from blyan_tile.jobs import Progress
from blyan_tile.pieces import MAX_TOKENS, Kind, PieceDecoder, Table
from blyan_tile.tokenizer import MAX_SMALL_BYTES, Companions, read_companions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TEXT_BYTES = 4 << 20  # of one text to encode
MAX_IDS = 4 << 20  # of one encoded text
MAX_PARTS = 64  # normalizers, decoders and so on of one tokenizer
MAX_PATTERN_CHARACTERS = 2048
KEPT = 4  # tokenizers that stay loaded in a worker
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")  # that templates use

ALLOWED: Mapping[str, frozenset[str]] = {
    "model": frozenset({"BPE", "Unigram"}),
    "normalizer": frozenset(
        "Sequence NFC NFD NFKC NFKD Nmt Lowercase Strip StripAccents Prepend Replace "
        "Precompiled ByteLevel".split()
    ),
    "pre_tokenizer": frozenset(
        "Sequence ByteLevel Metaspace Split Digits Whitespace WhitespaceSplit "
        "Punctuation UnicodeScripts CharDelimiterSplit".split()
    ),
    "post_processor": frozenset(
        "Sequence ByteLevel TemplateProcessing BertProcessing RobertaProcessing".split()
    ),
    "decoder": frozenset(
        "Sequence ByteLevel Replace ByteFallback Fuse Strip Metaspace".split()
    ),
}


@message
class Named:
    """A special token by the name that templates give it."""

    name: Annotated[str, Size(1, 32)]
    text: Annotated[str, Size(0, 1024)]


@message
class OpenJob:
    """Check a model's companions and make what the daemon needs to decode."""

    blob: Annotated[str, Size(1, 4096)]  # the file of the companions
    root: Hash
    vocabulary: U32  # of the model


@message
class Opened:
    """A tokenizer, as far as the daemon uses it."""

    table: Table
    ends: Annotated[tuple[U32, ...], Size(0, 64)]
    template: Annotated[str, Size(0, MAX_SMALL_BYTES)]  # Jinja; empty: none
    tool_template: Annotated[str, Size(0, MAX_SMALL_BYTES)]  # used with tools, if any
    names: Annotated[tuple[Named, ...], Size(0, len(NAMES))]


@message
class EncodeJob:
    """Turn a text into ids."""

    blob: Annotated[str, Size(1, 4096)]
    root: Hash
    text: Annotated[str, Size(0, MAX_TEXT_BYTES)]
    special: bool  # texts that spell special tokens become those tokens
    begin: bool  # put what the tokenizer puts around a text


@message
class Encoded:
    """The ids of a text."""

    ids: Annotated[bytes, Size(0, 4 * MAX_IDS)]  # u32 little-endian


class _Foreign:
    """A block in which `tokenizers` works: what it refuses is a DecodeError.

    It raises plain `Exception`, which no code of ours does, and panics where it trusts
    a file too much.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is Exception or (kind and kind.__name__ == "PanicException"):
            text = " ".join(str(error).split())[:300]
            raise DecodeError(f"tokenizer.json does not load: {text}") from error


_loaded: OrderedDict[bytes, Tokenizer] = OrderedDict()


def open_vocabulary(job: OpenJob, report: Callable[[Progress], None]) -> Opened:
    """Run an OpenJob. DecodeError, LimitExceeded: this tokenizer will not do."""
    companions = _companions(job.blob)
    tokenizer = load(companions.tokenizer_json)
    opened = check(companions, job.vocabulary, tokenizer)
    _keep(job.root, tokenizer)  # a text will follow
    return opened


def encode_text(job: EncodeJob, report: Callable[[Progress], None]) -> Encoded:
    """Run an EncodeJob. LimitExceeded when the text becomes too many tokens."""
    tokenizer = _loaded.get(job.root)
    if tokenizer is None:
        tokenizer = load(_companions(job.blob).tokenizer_json)
    _keep(job.root, tokenizer)
    tokenizer.encode_special_tokens = not job.special
    with _Foreign():
        ids = tokenizer.encode(job.text, add_special_tokens=job.begin).ids
    if len(ids) > MAX_IDS:
        raise LimitExceeded(f"the text has {len(ids)} tokens, at most {MAX_IDS}")
    return Encoded(np.array(ids, "<u4").tobytes())


def _keep(root: bytes, tokenizer: Tokenizer) -> None:
    _loaded[root] = tokenizer
    _loaded.move_to_end(root)
    while len(_loaded) > KEPT:
        _loaded.popitem(last=False)


def _companions(path: str) -> Companions:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return read_companions(tblock.open_array(fd).tobytes())
    finally:
        os.close(fd)


def check(
    companions: Companions, vocabulary: int, tokenizer: Tokenizer | None = None
) -> Opened:
    """Return what a tokenizer gives to the daemon, once all of it has been checked.

    `vocabulary`: of the model; the tokenizer may have fewer tokens, since checkpoints
    pad their matrices, never more. `tokenizer`: theirs, if it is loaded already.
    DecodeError and LimitExceeded in one sentence.
    """
    tokenizer = tokenizer or load(companions.tokenizer_json)
    spec = _object(companions.tokenizer_json, "tokenizer.json")
    with _Foreign():
        tokens = {id: text for text, id in tokenizer.get_vocab().items()}
    count = max(tokens, default=-1) + 1
    if not 0 < count <= min(vocabulary, MAX_TOKENS):
        raise DecodeError(f"tokenizer.json has {count} tokens, the model {vocabulary}")
    with _Foreign():
        added = tokenizer.get_added_tokens_decoder()
    special = {id for id, token in added.items() if token.special}
    table = table_of(spec.get("decoder"), tokens, special, count)
    _compare(tokenizer, table)
    config = _object(companions.tokenizer_config_json, "tokenizer_config.json")
    template, tool_template = _templates(companions, config)
    names = {name: _text_of(config.get(name)) for name in NAMES}
    return Opened(
        table=table,
        ends=_ends(companions, tokenizer.token_to_id(names["eos_token"]), count),
        template=template,
        tool_template=tool_template,
        names=tuple(Named(name, text) for name, text in names.items() if text),
    )


def load(raw: bytes) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json of allowed parts. DecodeError."""
    spec = _object(raw, "tokenizer.json")
    check_parts(spec)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read when it is imported
    from tokenizers import Tokenizer

    with _Foreign():
        # What was checked, written anew: a name that stands twice is read once.
        tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def check_parts(spec: Mapping[str, Any]) -> None:
    """Raise DecodeError unless a tokenizer.json consists of what this version allows."""
    found = [
        (part, one)
        for part in ALLOWED
        if spec.get(part) is not None or part == "model"
        for one in components(spec.get(part), part)
    ]
    if len(found) > MAX_PARTS:
        raise DecodeError(f"tokenizer.json has more than {MAX_PARTS} parts")
    for part, one in found:
        kind = one.get("type", "BPE" if "merges" in one else None)
        if not isinstance(kind, str) or kind not in ALLOWED[part]:
            raise DecodeError(
                f"tokenizer.json: {part} {str(kind)[:40]!r} is not allowed; "
                f"{', '.join(sorted(ALLOWED[part]))} are"
            )
        if len(json.dumps(one.get("pattern"))) > MAX_PATTERN_CHARACTERS:
            raise DecodeError(f"tokenizer.json: a pattern of a {part} is too long")
        if one.get("dropout"):
            raise DecodeError("tokenizer.json: dropout makes tokens random")


def _object(raw: bytes, name: str) -> dict[str, Any]:
    """Return a file's JSON object; an empty file is an empty object."""
    try:
        value = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        raise DecodeError(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise DecodeError(f"{name} is not a JSON object")
    return value


def _compare(tokenizer: Tokenizer, table: Table) -> None:
    """Raise DecodeError unless the table decodes like the tokenizer itself."""
    random, decoder = Random(0), PieceDecoder(table)
    ids = [id for id, kind in enumerate(table.kinds) if kind != Kind.BYTE]
    for length in range(64 if ids else 0):
        tokens = random.choices(ids, k=1 + length % 12)
        with _Foreign():
            theirs = tokenizer.decode(tokens, skip_special_tokens=True)
        if decoder.decode(tokens) != theirs:
            raise DecodeError("tokenizer.json: its decoder is not supported")


def _templates(companions: Companions, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the chat template, and the one for tools if there is another."""
    given = config.get("chat_template")
    if companions.chat_template:
        try:
            given = companions.chat_template.decode()
        except UnicodeDecodeError:
            raise DecodeError("chat_template.jinja is not UTF-8") from None
    texts = [given, None]
    if isinstance(given, list):
        named = [one for one in given if isinstance(one, dict)]
        texts = [
            next(
                (one.get("template") for one in named if one.get("name") == name), None
            )
            for name in ("default", "tool_use")
        ]
    default, tools = (_text_of(text, MAX_SMALL_BYTES) for text in texts)
    return default, tools


def _ends(companions: Companions, eos: int | None, count: int) -> tuple[int, ...]:
    """Return the ids that end an answer, by all files that name some."""
    ends: set[Any] = {eos}
    for raw, name in (
        (companions.generation_config_json, "generation_config.json"),
        (companions.config_json, "config.json"),
    ):
        given = _object(raw, name).get("eos_token_id")
        ends.update(given if isinstance(given, list) else [given])
    return tuple(sorted(id for id in ends if type(id) is int and 0 <= id < count))[:64]


def _text_of(value: Any, most_bytes: int = 1024) -> str:
    """Return a text, plain or as the content of an object; else an empty one."""
    text = value.get("content") if isinstance(value, dict) else value
    try:
        return (
            text if isinstance(text, str) and len(text.encode()) <= most_bytes else ""
        )
    except UnicodeEncodeError:  # half a character
        return ""
