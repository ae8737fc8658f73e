"""Foreign tokenizers: what is allowed, and decoding that equals their own."""

from __future__ import annotations

import json
from random import Random

import pytest
from tokenizers import Tokenizer

from blyan_proto.codec import decode, encode
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_tile import tokenizer as companion_files
from blyan_tile.pieces import Kind, PieceDecoder, Table
from blyan_tile.tokenizer import Companions, companions_of, read_companions
from blyan_tile.vocabulary import check
from tests.unit.tile.foreign_tokenizers import (
    ALL,
    TEXT,
    UNSEEN,
    byte_level,
    companions,
    sentencepiece_like,
)


def opened(name, vocabulary=1000):
    spec = ALL[name]()
    return Tokenizer.from_str(spec), check(companions(spec), vocabulary)


@pytest.mark.parametrize("name", ALL)
def test_decoding_is_the_tokenizers_own(name):
    theirs, made = opened(name)
    decoder, random = PieceDecoder(made.table), Random(5)
    table = decode(Table, encode(made.table), 1 << 20)
    assert table == made.table and len(decoder.pieces) == theirs.get_vocab_size()
    runs = made.table.lossy or Kind.BYTE not in made.table.kinds
    ids = [id for id, kind in enumerate(table.kinds) if runs or kind != Kind.BYTE]
    for length in range(600):
        tokens = random.choices(ids, k=length % 20)
        assert decoder.decode(tokens) == theirs.decode(tokens), tokens
    for text in (*TEXT[:4], UNSEEN, "", " ", "  two  spaces", "<|im_end|>"):
        tokens = theirs.encode(text).ids
        assert decoder.decode(tokens) == theirs.decode(tokens)
        assert PieceDecoder(table).pieces[:] == list(decoder.pieces)


@pytest.mark.parametrize("name", ALL)
def test_a_stream_shows_whole_characters_and_all_of_them(name):
    theirs, made = opened(name)
    decoder = PieceDecoder(made.table)
    for text in (TEXT[3], UNSEEN, "🙂🙃"):
        tokens = theirs.encode(text, add_special_tokens=False).ids
        stream = decoder.stream()
        shown = [stream.add(token) for token in tokens]
        assert not any("\ufffd" in part for part in shown)
        assert stream.end() == ""
        assert "".join(shown).lstrip(" ") == theirs.decode(tokens).lstrip(" ")
        # no character is held back once it is whole
        for place in range(len(tokens)):
            longest = theirs.decode(tokens[: place + 1]).rstrip("\ufffd")
            so_far = "".join(shown[: place + 1]).lstrip(" ")
            assert so_far.startswith(longest.lstrip(" "))


def test_half_a_character_ends_in_marks():
    theirs, made = opened("sentencepiece")
    decoder = PieceDecoder(made.table)

    def byte(value):
        return theirs.token_to_id(f"<0x{value:02X}>")

    letter = theirs.token_to_id("e")
    broken = [letter, byte(0xF0), byte(0x9F), letter]
    assert decoder.decode(broken) == theirs.decode(broken) == "e\ufffd\ufffde"
    assert decoder.decode([byte(0xFF)] * 3) == theirs.decode([byte(0xFF)] * 3)
    # tokenizers gives three marks: it looks at the run of bytes as a whole
    assert decoder.decode([byte(0xC3), byte(0xA9), byte(0xFF)]) == "é\ufffd"
    stream = decoder.stream()
    assert [stream.add(byte(0xC3)), stream.end()] == ["", "\ufffd"]


def test_special_tokens_are_silent_and_others_are_not():
    theirs, made = opened("byte-level")
    decoder = PieceDecoder(made.table)
    for text, shown in {
        "<|im_end|>": "",
        "<think>": "<think>",
        "a space": "a space",
        "näher": "n\ufffdher",  # its bytes, as the byte-level decoder takes them
    }.items():
        token = theirs.token_to_id(text)
        assert decoder.decode([token]) == theirs.decode([token]) == shown
    assert decoder.decode([10**9, 5]) == theirs.decode([5])


def test_ends_names_and_templates_come_from_all_files():
    spec = byte_level()
    ids = Tokenizer.from_str(spec).token_to_id
    files = {
        "config": {"eos_token_id": ids("<|endoftext|>")},
        "generation_config": {"eos_token_id": [ids("<|im_end|>"), 10**6, "x"]},
        "tokenizer_config": {
            "eos_token": {"content": "<|im_end|>"},
            "bos_token": None,
            "pad_token": "<|endoftext|>",
            "chat_template": "{{ messages }}",
        },
    }
    made = check(companions(spec, **files), 1000)
    assert set(made.ends) == {ids("<|im_end|>"), ids("<|endoftext|>")}
    names = {named.name: named.text for named in made.names}
    assert names == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert made.template == "{{ messages }}" and made.tool_template == ""
    files["tokenizer_config"]["chat_template"] = [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]
    made = check(companions(spec, **files), 1000)
    assert (made.template, made.tool_template) == ("a", "b")
    own = companions_of(
        {"tokenizer.json": spec.encode(), "chat_template.jinja": b"own"}
    )
    assert check(own, 1000).template == "own"


def changed(spec, **parts):
    return json.dumps({**json.loads(spec), **parts})


SPEC = json.loads(byte_level())
BAD = {
    "no JSON": "{",
    "no object": "[]",
    "nothing": "{}",
    "deep": "[" * 100_000,
    "a pre-tokenizer of nobody": changed(
        byte_level(), pre_tokenizer={"type": "Custom", "code": "import os"}
    ),
    "a hidden one": changed(
        byte_level(),
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Custom"}]},
    ),
    "a nest": changed(
        byte_level(),
        normalizer=json.loads(
            '{"type":"Sequence","normalizers":[' * 12 + '{"type":"NFC"}' + "]}" * 12
        ),
    ),
    "many parts": changed(
        byte_level(),
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99},
    ),
    "a long pattern": changed(
        byte_level(),
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": "a?" * 5000},
            "behavior": "Isolated",
            "invert": False,
        },
    ),
    "a model of words": changed(
        byte_level(), model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    ),
    "no decoder": changed(byte_level(), decoder=None),
    "another decoder": changed(byte_level(), decoder={"type": "CTC"}),
    "a decoder that trims each token": changed(
        sentencepiece_like(),
        decoder={"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ),
    "a decoder that trims the end": changed(
        sentencepiece_like(),
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ],
        },
    ),
    "random tokens": changed(byte_level(), model={**SPEC["model"], "dropout": 0.1}),
    "merges of nothing": changed(
        byte_level(), model={**SPEC["model"], "merges": [["x1", "x2"]]}
    ),
    "no ids": changed(byte_level(), model={**SPEC["model"], "vocab": {}}),
    "no kind": changed(byte_level(), decoder={"type": ["ByteLevel"]}),
    "merges that end early": changed(
        byte_level(),
        model={
            **SPEC["model"],
            "merges": [["a", "b"]],
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "continuing_subword_prefix": "longer than b",
        },
    ),
    "half a character": byte_level().replace('"<|im_end|>"', '"\\ud800"'),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_allowed_is_one_sentence(case):
    with pytest.raises(ProtocolError) as caught:
        check(companions(BAD[case]), 1000)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_vocabulary_may_be_smaller_than_the_models_never_larger():
    count = Tokenizer.from_str(byte_level()).get_vocab_size()
    assert len(check(companions(byte_level()), count).table.kinds) == count
    with pytest.raises(DecodeError, match=f"{count} tokens, the model {count - 1}"):
        check(companions(byte_level()), count - 1)


def test_companions_are_kept_whole_and_bounded(monkeypatch):
    files = {"config.json": b"{}", "tokenizer.json": b"\xff", "other.txt": b"x"}
    made = companions_of(files)
    assert made.config_json == b"{}" and made.chat_template == b""
    assert read_companions(encode(made)) == made
    with pytest.raises(DecodeError):
        read_companions(encode(Companions(9, b"", b"", b"", b"", b"")))
    with pytest.raises(LimitExceeded, match="config.json has 1048577 bytes"):
        companions_of({"config.json": bytes((1 << 20) + 1)})
    monkeypatch.setattr(companion_files, "MAX_TOKENIZER_BYTES", 3)
    with pytest.raises(LimitExceeded, match="tokenizer.json has 4 bytes"):
        companions_of({"tokenizer.json": b"1234"})


def test_tables_that_do_not_add_up_are_refused():
    for table in (
        (b"\1\0\0\0", b"", b"\0"),
        (b"\1\0\0", b"x", b"\0"),
        (b"\1\0\0\0", b"x", b"\0\0"),
        (b"\1\0\0\0", b"x", b"\4"),
    ):
        with pytest.raises((DecodeError, ValueError)):
            Table(*table, True, 0, False)
