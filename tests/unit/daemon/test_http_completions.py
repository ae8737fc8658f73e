"""/v1/models and /v1/completions over a real model, as a client sees them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import trio

from tests.unit.daemon import http_world
from tests.unit.daemon.http_inference import api, events

GREEDY = {"temperature": 0}


def with_api(check, **limits):
    async def main():
        async with api(**limits) as made:
            with trio.fail_after(60):
                await check(made)

    trio.run(main)


def test_models_are_told():
    async def check(api):
        every = (await api.ask("/v1/models", "GET")).json
        assert every["object"] == "list"
        (model,) = every["data"]
        assert (model["id"], model["object"]) == ("tiny", "model")
        assert model["created"] == 1_700_000_000
        assert (await api.ask("/v1/models/tiny", "GET")).json == model
        by_id = await api.ask(f"/v1/models/{api.world.record.id.hex()}", "GET")
        assert by_id.json == model
        missing = await api.ask("/v1/models/none", "GET")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")
        asked = await api.complete(model="none", prompt="a")
        assert (asked.status, asked.error["param"]) == (404, "model")

    with_api(check)


def test_the_model_in_training_is_listed_first_then_the_newest():
    async def check(api):
        old = api.world.record
        new = replace(old, adopted_height=old.adopted_height + 1)
        for run in (None, b"r" * 32):
            old = replace(old, run=run)
            api.records = [
                replace(record, model=replace(record.model, name=name))
                for record, name in ((old, "old"), (new, "new"))
            ]
            listed = (await api.ask("/v1/models", "GET")).json["data"]
            expected = ["old", "new"] if run else ["new", "old"]
            assert [model["id"] for model in listed] == expected

    with_api(check)


def test_a_prompt_is_continued_as_one_process_does():
    async def check(api):
        ids = [97, 98, 99]
        expected = api.world.locally(ids, 6)
        text = bytes(expected).decode(errors="replace")
        for prompt in ("abc", ids, ["abc"], [ids]):
            answer = await api.complete(prompt=prompt, max_tokens=6, **GREEDY)
            body = answer.json
            assert answer.status == 200
            assert body["object"] == "text_completion" and body["model"] == "tiny"
            (choice,) = body["choices"]
            assert choice["text"] == text
            assert (choice["index"], choice["logprobs"]) == (0, None)
            assert choice["finish_reason"] == "length"
            assert body["usage"] == {
                "prompt_tokens": 3,
                "completion_tokens": 6,
                "total_tokens": 9,
            }
            assert body["blyan"]["cost_micro"] == 120
            assert body["blyan"]["peers"][0]["peer_id"] == "a"
        short = (await api.complete(prompt="abc", **GREEDY)).json
        assert short["usage"]["completion_tokens"] == 16

    with_api(check)


def test_a_stream_says_the_same_as_a_whole_answer():
    async def check(api):
        asked = dict(prompt=["abc", "x"], n=2, max_tokens=5, seed=7, logprobs=2)
        whole = (await api.complete(**asked)).json
        options = {"include_usage": True}
        more = dict(stream=True, stream_options=options, trace=True)
        chunks = events(await api.complete(**asked, **more))
        *pieces, last = chunks
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in pieces)
        assert len({chunk["id"] for chunk in chunks}) == 1
        ends = [chunk for chunk in pieces if chunk["choices"][0]["finish_reason"]]
        assert [end["blyan"]["cost_micro"] for end in ends] == [5 * 20] * 4
        for choice in whole["choices"]:
            mine = [
                one
                for chunk in pieces
                for one in chunk["choices"]
                if one["index"] == choice["index"]
            ]
            assert "".join(one["text"] for one in mine) == choice["text"]
            assert [one["finish_reason"] for one in mine[:-1]] == [None] * (
                len(mine) - 1
            )
            assert mine[-1]["finish_reason"] == choice["finish_reason"]
            for name in ("tokens", "token_logprobs", "text_offset"):
                told = [part for one in mine for part in one["logprobs"][name]]
                assert told == choice["logprobs"][name]

    with_api(check)


def test_seeds_draw_the_same_again_and_choices_differ():
    async def check(api):
        async def texts(**more):
            answer = await api.complete(prompt="a", max_tokens=12, n=3, **more)
            return [choice["text"] for choice in answer.json["choices"]]

        first = await texts(seed=1)
        assert await texts(seed=1) == first and len(set(first)) == 3
        assert await texts(seed=-1) != first
        assert await texts() != await texts()
        greedy = await texts(**GREEDY)
        assert len(set(greedy)) == 1
        assert await texts(top_k=1) == greedy
        assert await texts(seed=1, top_p=0.2) != first

    with_api(check)


def test_probabilities_and_the_prompt_are_told():
    async def check(api):
        asked = dict(prompt="abc", max_tokens=3, logprobs=2, echo=True, **GREEDY)
        (choice,) = (await api.complete(**asked)).json["choices"]
        told = choice["logprobs"]
        assert choice["text"].startswith("abc")
        assert len(told["tokens"]) == 6
        assert told["tokens"][:3] == ["a", "b", "c"]
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        assert all(value <= 0 for value in told["token_logprobs"][1:])
        assert told["text_offset"][:3] == [0, 1, 2]
        made = list(zip(told["token_logprobs"], told["top_logprobs"]))[3:]
        for value, top in made:
            assert math.isclose(max(top.values()), value)  # greedy: the likeliest
        only = dict(prompt="abc", max_tokens=0, logprobs=0, echo=True)
        (choice,) = (await api.complete(**only)).json["choices"]
        assert choice["text"] == "abc" and len(choice["logprobs"]["tokens"]) == 3
        streamed = events(await api.complete(**asked, stream=True))
        names = [
            name
            for chunk in streamed
            for one in chunk["choices"]
            for name in one["logprobs"]["tokens"]
        ]
        assert names == told["tokens"]

    with_api(check)


def test_stop_texts_end_an_answer_and_are_not_shown():
    async def check(api):
        whole = (await api.complete(prompt="abc", max_tokens=12, **GREEDY)).json
        text = whole["choices"][0]["text"]
        stop = text[3:5]
        for given in (stop, [stop, "never"]):
            asked = dict(prompt="abc", max_tokens=12, stop=given, **GREEDY)
            (choice,) = (await api.complete(**asked)).json["choices"]
            assert choice["text"] == text[: text.find(stop)]
            assert choice["finish_reason"] == "stop"

    with_api(check)


WRONG = [
    (dict(prompt=""), "prompt"),
    (dict(prompt=[]), "prompt"),
    (dict(prompt=None), "prompt"),
    (dict(prompt=[1.5]), "prompt"),
    (dict(prompt=[256]), "prompt"),
    (dict(prompt=[-1]), "prompt"),
    (dict(prompt=["a"] * 33), "prompt"),
    (dict(prompt=["a"] * 3, n=16), "prompt"),
    (dict(prompt="x" * 96), "max_tokens"),
    (dict(max_tokens=0), "max_tokens"),
    (dict(max_tokens=-1), "max_tokens"),
    (dict(max_tokens=10**9), "max_tokens"),
    (dict(max_tokens=1000), "max_tokens"),
    (dict(max_tokens="3"), "max_tokens"),
    (dict(max_tokens=True), "max_tokens"),
    (dict(temperature=-1), "temperature"),
    (dict(temperature=2.5), "temperature"),
    (dict(temperature="warm"), "temperature"),
    (dict(top_p=1.1), "top_p"),
    (dict(min_p=-0.1), "min_p"),
    (dict(presence_penalty=3), "presence_penalty"),
    (dict(n=0), "n"),
    (dict(n=17), "n"),
    (dict(seed=2**63), "seed"),
    (dict(seed=1.5), "seed"),
    (dict(stop=[""]), "stop"),
    (dict(stop=["a"] * 17), "stop"),
    (dict(logprobs=21), "logprobs"),
    (dict(logit_bias={"x": 1}), "logit_bias.x"),
    (dict(logit_bias={"1": 101}), "logit_bias.1"),
    (dict(best_of=2), "best_of"),
    (dict(suffix="x"), "suffix"),
    (dict(stream_options={"include_usage": True}), "stream_options"),
    (dict(response_format={"type": "xml"}), "response_format.type"),
    (dict(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (dict(tempurature=0.5), "tempurature"),
    (dict(model=7), "model"),
]


@pytest.mark.parametrize("more, param", WRONG, ids=[str(one)[:40] for one, _ in WRONG])
def test_what_is_wrong_is_named(more, param):
    async def check(api):
        answer = await api.complete(**{"prompt": "a", **more})
        assert answer.status == 400, answer.body
        assert answer.error["param"] == param
        assert answer.error["type"] == "invalid_request_error"
        assert len(answer.error["message"]) > 10

    with_api(check)


def test_a_hint_is_given_for_a_name_that_is_spelt_wrongly():
    async def check(api):
        answer = await api.complete(prompt="a", tempurature=0.5)
        assert "temperature" in answer.error["message"]
        assert answer.error["code"] == "unknown_parameter"
        ignored = dict(user="me", metadata={"a": "b"}, store=False, suffix=None)
        assert (await api.complete(prompt="a", max_tokens=1, **ignored)).status == 200
        long = await api.complete(prompt="x" * 90, max_tokens=50)
        assert long.error["code"] == "context_length_exceeded"

    with_api(check)


def test_above_the_sessions_of_a_node_one_hears_429():
    async def check(api):
        busy = await api.complete(prompt="a", n=3, max_tokens=4)
        assert (busy.status, busy.error["code"]) == (429, "busy")
        assert busy.headers["retry-after"] == "1"
        streamed = await api.complete(prompt="a", n=3, max_tokens=4, stream=True)
        assert streamed.status == 429  # before anything was sent
        assert (await api.complete(prompt="a", n=2, max_tokens=4)).status == 200
        assert not api.generation.under_way

    with_api(check, max_sessions=2)


def test_who_goes_away_leaves_no_answer_under_way():
    async def check(api):
        for stream in (True, False):
            body = {"model": "tiny", "prompt": "a", "max_tokens": 90, "n": 4}
            raw = json.dumps({**body, "stream": stream}).encode()
            async with await http_world.connect(api) as client:
                sent = http_world.head(api, "POST", "/v1/completions", raw)
                await client.send_all(sent)
                while len(api.generation.under_way) < 4:
                    await trio.sleep(0.001)
            while api.generation.under_way:
                await trio.sleep(0.001)
        assert (await api.complete(prompt="a", max_tokens=1)).status == 200

    with_api(check)
