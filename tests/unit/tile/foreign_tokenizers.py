"""Small real tokenizers, trained once: byte-level BPE, and Unigram with byte fallback."""

from __future__ import annotations

import functools
import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from blyan_tile.tokenizer import Companions, companions_of

TEXT = [
    "The quick brown fox jumps over the lazy dog, and naïve cafés cost 5 € each. ",
    "def main() -> None:\n    print('hello, world', 1234567890)\n",
    '{"name": "blyan", "values": [1, 2.5, -3e10, true, false, null], "text": "a\\n"}',
    "日本語のテキストと絵文字。 Größe, façade, Ωmega. it's we'll don't",
] * 20
UNSEEN = "🙂 unseen 漢字 \t tabs\r\n and e\u0301 combining ﷽ \x00 zero"


@functools.cache
def byte_level() -> str:
    """A tokenizer.json as OLMoE's and Qwen's are made."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made.add_tokens(["<think>", AddedToken("a space", special=False), "näher"])
    return made.to_str()


@functools.cache
def sentencepiece_like(metaspace: bool = False) -> str:
    """A tokenizer.json as Mixtral's is made, or with a Metaspace decoder."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    space, fallback = decoders.Replace("▁", " "), decoders.ByteFallback()
    made.decoder = decoders.Sequence(
        [fallback, decoders.Metaspace()]
        if metaspace
        else [space, fallback, decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=500,
            special_tokens=["<unk>", "<s>", "</s>", *bytes_],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    spec = json.loads(made.to_str())
    spec["model"]["byte_fallback"] = True
    spec["added_tokens"] = [
        one for one in spec["added_tokens"] if not one["content"].startswith("<0x")
    ]
    spec["post_processor"] = json.loads(
        processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        ).__getstate__()
    )
    return json.dumps(spec)


ALL = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece_like,
    "metaspace": functools.partial(sentencepiece_like, True),
}


def companions(tokenizer: str, **files: object) -> Companions:
    """Return companions with a tokenizer and other files, given as JSON values."""
    named = {
        f"{name}.json": json.dumps(value).encode() for name, value in files.items()
    }
    return companions_of({"tokenizer.json": tokenizer.encode(), **named})
