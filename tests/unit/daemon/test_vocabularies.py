"""Foreign tokenizers and templates in real workers, and what hostile ones cost."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
import trio
from blake3 import blake3
from tokenizers import Tokenizer

from blyan_proto.block.model import Dtype, Model
from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile import tblock
from blyand.compute import open_worker
from blyand.errors import NotHere
from blyand.inference import templates as rendering
from blyand.inference import vocabularies as tokenizing
from blyand.inference.templates import Templates
from blyand.inference.vocabularies import Vocabularies
from tests.unit.daemon.inference_world import TINY
from tests.unit.tile.foreign_tokenizers import (
    UNSEEN,
    byte_level,
    companions,
    sentencepiece_like,
)

ARCHITECTURE = replace(TINY, vocabulary=1000)
PLAIN = Model(FORMAT_VERSION, "plain", TINY, "bytes", Dtype.F32, 2, "")
TALK = [{"role": "user", "content": "Hi"}]


class Shelf:
    """Companions as files, fetched when asked for."""

    def __init__(self, path):
        self.path, self.waiting, self.fetched = path, {}, []

    def put(self, files):
        array = np.frombuffer(encode(files), np.uint8)
        root = tblock.root_of(array)
        self.waiting[root] = tblock.to_bytes(array)
        return replace(
            PLAIN, name="foreign", architecture=ARCHITECTURE, tokenizer=root.hex()
        )

    async def fetch(self, root):
        await trio.lowlevel.checkpoint()
        self.fetched.append(root)
        if root not in self.waiting:
            raise NotHere(f"nobody has {root.hex()}")
        self.file(root).write_bytes(self.waiting[root])

    def file(self, root):
        return self.path / root.hex()


@asynccontextmanager
async def reading(tmp_path, memory_mib=tokenizing.LIMITS.memory_mib):
    shelf = Shelf(tmp_path)
    limits = replace(tokenizing.LIMITS, memory_mib=memory_mib)
    async with open_worker("text", nice=0, limits=limits) as worker:
        yield shelf, Vocabularies(shelf.fetch, shelf.file, worker), worker


def test_encoding_and_decoding_through_the_worker(tmp_path):
    async def main():
        async with reading(tmp_path) as (shelf, vocabularies, worker):
            for spec in (byte_level(), sentencepiece_like()):
                theirs = Tokenizer.from_str(spec)
                model = shelf.put(companions(spec))
                vocabulary = await vocabularies.of(model)
                assert await vocabularies.of(model) is vocabulary
                for text in (UNSEEN, "", "naïve 5 €", "x" * 100_000):
                    ids = await vocabulary.encode(text)
                    assert ids == theirs.encode(text).ids
                    assert vocabulary.decode(ids) == theirs.decode(ids)
                bare = await vocabulary.encode("fox", begin=False)
                assert bare == theirs.encode("fox", add_special_tokens=False).ids
            assert len(shelf.fetched) == 2
            # another process begins where the last one was killed
            await worker.stop()
            assert await vocabulary.encode("fox", begin=False) == bare

    trio.run(main)


def test_special_tokens_in_a_text_are_text_unless_asked_for(tmp_path):
    async def main():
        async with reading(tmp_path) as (shelf, vocabularies, _):
            vocabulary = await vocabularies.of(shelf.put(companions(byte_level())))
            ids = await vocabulary.encode("a<|im_end|>")
            assert vocabulary.decode(ids) == "a<|im_end|>" and len(ids) > 2
            special = await vocabulary.encode("a<|im_end|>", special=True)
            assert vocabulary.decode(special) == "a" and len(special) == 2

    trio.run(main)


def test_what_cannot_be_used_is_not_here_and_is_not_tried_again(tmp_path):
    async def main():
        async with reading(tmp_path) as (shelf, vocabularies, _):
            bad = shelf.put(companions("{}"))
            for _ in range(2):
                with pytest.raises(NotHere, match="cannot be used: tokenizer.json"):
                    await vocabularies.of(bad)
            assert len(shelf.fetched) == 1
            with pytest.raises(NotHere, match="nobody has"):
                await vocabularies.of(replace(bad, tokenizer="ab" * 32))
            for name in ("sentencepiece", "ab", "zz" * 32):
                with pytest.raises(NotHere, match="another version"):
                    await vocabularies.of(replace(bad, tokenizer=name))
            vocabulary = await vocabularies.of(shelf.put(companions(byte_level())))
            with pytest.raises(LimitExceeded, match="bytes, at most"):
                await vocabulary.encode("x" * (tokenizing.MAX_TEXT_BYTES + 1))
            for one in (vocabulary, await vocabularies.of(PLAIN)):
                with pytest.raises(DecodeError, match="half a character"):
                    await one.encode("\ud800")

    trio.run(main)


def test_a_text_that_grows_without_end_costs_the_worker_alone(tmp_path, monkeypatch):
    spec = json.loads(byte_level())
    grow = {"type": "Replace", "pattern": {"String": "q"}, "content": "q" * 1000}
    spec["normalizer"] = {"type": "Sequence", "normalizers": [grow] * 6}

    async def main():
        async with reading(tmp_path, 512) as (shelf, vocabularies, worker):
            vocabulary = await vocabularies.of(shelf.put(companions(json.dumps(spec))))
            first = worker.pid
            with pytest.raises((NotHere, LimitExceeded)):
                await vocabulary.encode("qq")
            assert await vocabulary.encode("b") and worker.pid != first

    monkeypatch.setattr(tokenizing, "ENCODE_S", 2.0)
    trio.run(main)


@asynccontextmanager
async def chatting(tmp_path, cpu_s=rendering.LIMITS.cpu_s):
    """Give (shelf, make): make(allowed, own) gives Templates, all with one worker."""
    limits = replace(rendering.LIMITS, cpu_s=cpu_s)
    async with (
        reading(tmp_path) as (shelf, vocabularies, _),
        open_worker("template", nice=0, limits=limits) as worker,
    ):

        def make(allowed=(), own=False):
            return Templates(vocabularies, worker, allowed, lambda model: own)

        yield shelf, make


def with_template(shelf, template):
    config = {"chat_template": template, "bos_token": "<s>"}
    return shelf.put(companions(byte_level(), tokenizer_config=config))


def test_a_peers_template_runs_only_where_it_is_allowed(tmp_path):
    text = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    digest = blake3(text.encode()).hexdigest()

    async def main():
        async with chatting(tmp_path) as (shelf, make):
            model, templates = with_template(shelf, text), make()
            with pytest.raises(NotHere, match=f"allow_templates to {digest}"):
                await templates.render(model, TALK)
            chat = await templates.render(model, TALK, template="chatml")
            assert chat.startswith("<|im_start|>user\nHi<|im_end|>")
            with pytest.raises(DecodeError, match="chatml and plain are"):
                await templates.render(model, TALK, template="other")
            plain = await templates.render(PLAIN, TALK)
            assert plain == "User: Hi\n\nAssistant:"
            bare = shelf.put(companions(byte_level()))
            with pytest.raises(NotHere, match="no chat template"):
                await templates.render(bare, TALK)
            for templates in (make([digest.upper()]), make(["all"]), make(own=True)):
                assert await templates.render(model, TALK) == "<s>Hi"

    trio.run(main)


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "memory": "{{ 'x' * 10 ** 9 }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
}


def test_hostile_templates_cost_the_worker_alone(tmp_path, monkeypatch):
    async def main():
        async with chatting(tmp_path, cpu_s=1) as (shelf, make):
            templates = make(["all"])
            good = with_template(shelf, "{{ messages | length }}")
            for name, template in HOSTILE.items():
                with pytest.raises(LimitExceeded) as caught:
                    await templates.render(with_template(shelf, template), TALK)
                if name == "loops":  # by the kernel, or on a busy machine by the clock
                    assert any(
                        why in str(caught.value) for why in ("signal 24", "takes above")
                    )
                assert await templates.render(good, TALK) == "1"
            with pytest.raises(LimitExceeded, match="messages have"):
                await templates.render(good, [{"content": "x" * (5 << 20)}])
            for messages in ([{"content": "\ud800"}], [{"content": float("nan")}]):
                with pytest.raises(DecodeError, match="messages cannot be spelled"):
                    await templates.render(good, messages)
            monkeypatch.setattr(rendering, "RENDER_S", 0.1)
            with pytest.raises(LimitExceeded, match="takes above 0.1 s"):
                await templates.render(with_template(shelf, HOSTILE["loops"]), TALK)

    trio.run(main)
