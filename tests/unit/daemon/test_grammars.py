"""Answers by a JSON Schema always parse and fit; bad schemas are one sentence."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile.grammar import (
    BeginJob,
    LexiconJob,
    StepJob,
    begin_grammar,
    learn_tokens,
    step_grammar,
    unpacked,
)
from blyan_tile.model.sampling import Sampling
from blyan_tile.vocabulary import check
from blyand.compute import open_worker
from blyand.errors import NotHere
from blyand.inference import grammars as grammar_ends
from blyand.inference.generate import Generation, Result, Wanted
from blyand.inference.grammars import Grammars
from blyand.inference.vocabularies import ByteVocabulary, ForeignVocabulary
from tests.unit.daemon.inference_world import MODEL, Net, Node, World, prompt, running
from tests.unit.tile.foreign_tokenizers import (
    byte_level,
    companions,
    sentencepiece_like,
)

TABLES = {
    "bytes": ByteVocabulary(),
    **{
        name: ForeignVocabulary(
            bytes([place]) * 32, check(companions(spec), 1000), None  # type: ignore
        )
        for place, (name, spec) in enumerate(
            {"bpe": byte_level(), "unigram": sentencepiece_like()}.items()
        )
    },
}
WORDS = st.text('abcé€ "\\\n', max_size=6)
LEAVES = st.sampled_from(
    [
        {"type": "integer", "minimum": -5, "maximum": 300},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-c]{1,4}$"},
        {"enum": ["one", "two é", 3, None]},
        {"const": {"a": [1]}},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda items: {"type": "array", "items": items, "maxItems": 3}, inner
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(
            lambda names, inner: {
                "type": "object",
                "properties": dict.fromkeys(names, inner),
                "required": names[:1],
                "additionalProperties": False,
            },
            st.lists(WORDS, max_size=3, unique=True),
            inner,
        ),
    ),
    max_leaves=5,
)


def fits(value, schema):
    """True when a value fits one of the schemas made here."""
    kind = schema.get("type")
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return value == schema["const"]
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "boolean":
        return type(value) is bool
    if kind == "null":
        return value is None
    if kind == "string":
        return type(value) is str and (
            len(value) <= 6
            if "maxLength" in schema
            else 1 <= len(value) <= 4 and set(value) <= set("abc")
        )
    if kind == "array":
        if not isinstance(value, list):
            return False
        return len(value) <= 3 and all(fits(one, schema["items"]) for one in value)
    if not isinstance(value, dict):
        return False
    return set(schema["required"]) <= set(value) <= set(schema["properties"]) and all(
        fits(one, schema["properties"][name]) for name, one in value.items()
    )


def walk(vocabulary, schema, seed):
    """Return a text made of random allowed tokens, None if it got too long."""
    random = np.random.default_rng(seed)
    ends = tuple(sorted(vocabulary.ends))
    learn_tokens(LexiconJob(vocabulary.root, vocabulary.table, ends), None)
    masked = begin_grammar(BeginJob(vocabulary.root, 1, json.dumps(schema)), None)
    made = []
    for _ in range(2000):
        assert masked.known
        if masked.ended:
            return b"".join(vocabulary.pieces[token] for token in made).decode()
        allowed = np.flatnonzero(unpacked(masked.mask, vocabulary.vocabulary))
        if not len(allowed):  # only the end that bytes do not have
            return b"".join(vocabulary.pieces[token] for token in made).decode()
        # prefers what closes, so that it ends
        closing = [t for t in allowed if vocabulary.pieces[t][-1:] in b'"}],']
        token = int(
            random.choice(closing if closing and random.random() < 0.5 else allowed)
        )
        made.append(token)
        masked = step_grammar(StepJob(1, token), None)
    return None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.integers(0, 2**32), st.sampled_from(sorted(TABLES)))
def test_whatever_is_made_parses_and_fits(schema, seed, name):
    schema = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    schema["additionalProperties"] = False
    text = walk(TABLES[name], schema, seed)
    if text is not None:
        value = json.loads(text)
        assert fits(value["x"], schema["properties"]["x"]), text


BAD = {
    "a kind of nobody": {"type": "strin"},
    "a reference into nothing": {"$ref": "#/nope"},
    "a reference elsewhere": {"$ref": "http://example.com/x"},
    "what is not supported": {"not": {"type": "string"}},
    "what is not supported, leniently": {
        "type": "array",
        "uniqueItems": True,
        "x-guidance": {"lenient": True},
    },
    "a pattern that is none": {"type": "string", "pattern": "("},
    "a pattern that looks ahead": {"type": "string", "pattern": "a(?=b)"},
    "nothing fits": {"type": "integer", "minimum": 2, "maximum": 1},
    "a nest": json.loads('{"items":' * 400 + "{}" + "}" * 400),
}


BOMBS = [
    {"type": "string", "pattern": "((a{1,900}b){1,900}c){1,900}"},
    {"type": "string", "pattern": "[ab]*a[ab]{40}x"},
    {"anyOf": [{"const": f"{number:05}"} for number in range(3000)]},
    {
        "allOf": [
            {"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefgh"
        ]
    },
    {"anyOf": [{"type": "array", "items": {"maxLength": 4000 + n}} for n in range(60)]},
]


@pytest.mark.parametrize("schema", BOMBS, ids=range(len(BOMBS)))
def test_what_would_cost_too_much_is_given_up(schema):
    vocabulary, random = TABLES["bytes"], np.random.default_rng(0)
    learn_tokens(LexiconJob(vocabulary.root, vocabulary.table, ()), None)
    try:
        masked = begin_grammar(BeginJob(vocabulary.root, 1, json.dumps(schema)), None)
        for _ in range(300):
            if masked.ended:
                break
            allowed = np.flatnonzero(unpacked(masked.mask, 256))
            masked = step_grammar(StepJob(1, int(random.choice(allowed))), None)
    except (DecodeError, LimitExceeded) as error:
        assert "\n" not in str(error)


@asynccontextmanager
async def opening():
    async with open_worker("grammar", nice=0, limits=grammar_ends.LIMITS) as worker:
        yield Grammars(worker), worker


def test_bad_schemas_are_one_sentence_and_harm_no_other():
    async def main():
        good = json.dumps({"type": "integer", "minimum": 0, "maximum": 9})
        async with opening() as (grammars, worker):
            async with grammars.opened(TABLES["bpe"], good) as other:
                pid, before = worker.pid, other.allowed().copy()
                for name, schema in BAD.items():
                    with pytest.raises((DecodeError, LimitExceeded)) as caught:
                        text = json.dumps(schema)
                        async with grammars.opened(TABLES["bytes"], text):
                            pass
                    said = str(caught.value)
                    assert "\n" not in said and len(said) < 400, name
                for text in ("{", "[]", '{"type": ', "[" * 10_000):
                    with pytest.raises(DecodeError, match="the schema is not"):
                        async with grammars.opened(TABLES["bytes"], text):
                            pass
                with pytest.raises(LimitExceeded, match="bytes, at most 65536"):
                    async with grammars.opened(TABLES["bytes"], " " * 70_000):
                        pass
                assert worker.pid == pid and (other.allowed() == before).all()
                await other.accept(int(other.allowed().argmax()))
                assert other.ended or other.allowed().any()
                await worker.stop()
                with pytest.raises(NotHere, match="lost with its worker"):
                    await other.accept(0)
            async with grammars.opened(TABLES["bytes"], None) as nothing:
                assert nothing is None
        with pytest.raises(NotHere, match="takes no schemas"):
            async with Grammars().opened(TABLES["bytes"], "{}"):
                pass

    trio.run(main)


def test_an_answer_by_a_schema():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["x", "yy"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }

    async def main():
        world = World()
        node = Node(world, Net(), "a", world.all_experts())
        async with running(node), opening() as (grammars, _):
            generation = Generation(node.parts, grammars=grammars)
            for seed in range(4):
                sampling = Sampling(0.0 if not seed else 1.0, seed, top_p=0.9)
                result = Result()
                wanted = Wanted(
                    MODEL, tuple(prompt(9)), 80, sampling, schema=json.dumps(schema)
                )
                async for _ in generation.run(wanted, result):
                    pass
                assert result.finish_reason == "end", result.text
                value = json.loads(result.text)
                assert list(value) == ["name", "age", "tags"]
                assert len(value["name"]) <= 9 and 0 <= value["age"] <= 150
                assert set(value["tags"]) <= {"x", "yy"} and len(value["tags"]) <= 3
            wanted = Wanted(MODEL, tuple(prompt(9)), 5, schema='{"type": "x"}')
            with pytest.raises(DecodeError, match="schema cannot be used"):
                async for _ in generation.run(wanted, Result()):
                    pass
            assert not generation.under_way

    trio.run(main)
