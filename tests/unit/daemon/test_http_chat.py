"""/v1/chat/completions over a real model that came without a template."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import trio

from blyand.http.chat import _Answer
from blyand.http.chat_asked import read_chat
from blyand.inference.generate import Made
from tests.unit.daemon.http_inference import api, events


def with_api(check, **limits):
    async def main():
        async with api(**limits) as made:
            with trio.fail_after(60):
                await check(made)

    trio.run(main)


def test_messages_become_a_prompt_and_are_answered():
    async def check(api):
        messages = [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "hé"}]},
        ]
        answer = await api.chat(messages=messages, max_tokens=5, temperature=0)
        body = answer.json
        (prompt,) = api.rendered
        assert prompt == "System: Be short.\n\nUser: hé\n\nAssistant:"
        ids = list(prompt.encode())
        text = bytes(api.world.locally(ids, 5)).decode(errors="replace")
        (choice,) = body["choices"]
        assert choice["message"] == {
            "role": "assistant",
            "content": text,
            "refusal": None,
        }
        assert choice["finish_reason"] == "length" and choice["logprobs"] is None
        assert body["object"] == "chat.completion"
        assert body["usage"]["prompt_tokens"] == len(ids)
        assert body["blyan"]["chat_template"] == "plain"
        await api.chat(chat_template="chatml", max_tokens=1)
        assert api.rendered[-1].startswith("<|im_start|>user")

    with_api(check)


def test_a_stream_says_the_same_as_a_whole_answer():
    async def check(api):
        asked = dict(n=2, seed=3, max_tokens=6, logprobs=True, top_logprobs=3)
        whole = (await api.chat(**asked)).json
        options = {"include_usage": True}
        *pieces, last = events(
            await api.chat(**asked, stream=True, stream_options=options, trace=True)
        )
        assert last["usage"] == whole["usage"] and last["choices"] == []
        assert last["blyan"]["cost_micro"] == 12 * 20
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in pieces)
        for choice in whole["choices"]:
            mine = [
                one
                for chunk in pieces
                for one in chunk["choices"]
                if one["index"] == choice["index"]
            ]
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            said = "".join(one["delta"].get("content", "") for one in mine)
            assert said == choice["message"]["content"]
            told = [
                t for one in mine if one["logprobs"] for t in one["logprobs"]["content"]
            ]
            assert told == choice["logprobs"]["content"] and len(told) == 6
            assert all(len(token["top_logprobs"]) == 3 for token in told)
            assert bytes(b for t in told for b in t["bytes"]).decode(errors="replace")
            assert mine[-1]["finish_reason"] == "length"
        visits = [v for c in pieces if "blyan" in c for v in c["blyan"]["experts"]]
        # each of the answer's tokens but the last, and the prompt's, in both layers
        tokens = whole["usage"]["prompt_tokens"] + 5
        assert sum(times for _, _, times in visits) == 2 * tokens * 2 * 2
        costs = [c["blyan"]["cost_micro"] for c in pieces if "blyan" in c]
        assert costs and costs[-1] == 120

    with_api(check)


def test_a_model_of_plain_text_does_not_answer_itself():
    async def check(api):
        messages = [{"role": "user", "content": "hi"}]
        await api.chat(messages=messages)
        (one,) = [w for w in [api.rendered[-1]]]
        assert one.endswith("Assistant:")

    with_api(check)


def test_without_a_limit_the_context_is_filled():
    async def check(api):
        body = (await api.chat(max_tokens=None, temperature=0)).json
        room = 96 - body["usage"]["prompt_tokens"]
        assert body["usage"]["completion_tokens"] <= room
        either = (await api.chat(max_tokens=9, max_completion_tokens=2)).json
        assert either["usage"]["completion_tokens"] == 2

    with_api(check)


TOOL = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object"}},
}
WRONG = [
    (dict(messages=[]), "messages"),
    (dict(messages=None), "messages"),
    (dict(messages="hi"), "messages"),
    (dict(messages=[3]), "messages[0]"),
    (dict(messages=[{"content": "a"}]), "messages[0].role"),
    (dict(messages=[{"role": "king", "content": "a"}]), "messages[0].role"),
    (dict(messages=[{"role": "user", "content": 7}]), "messages[0].content"),
    (
        dict(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "messages[0].content",
    ),
    (dict(messages=[{"role": "user", "contents": "a"}]), "messages[0].contents"),
    (
        dict(messages=[{"role": "user", "content": "a", "tool_calls": [{}]}]),
        "messages[0].tool_calls",
    ),
    (dict(max_tokens=0), "max_tokens"),
    (dict(max_completion_tokens=-5), "max_completion_tokens"),
    (dict(max_tokens=1000), "max_tokens"),
    (dict(top_logprobs=2), "top_logprobs"),
    (dict(tools=[{"type": "function"}]), "tools[0].function"),
    (dict(tools=[{"type": "code"}]), "tools[0].type"),
    (
        dict(tools=[{"type": "function", "function": {"name": "a b"}}]),
        "tools[0].function.name",
    ),
    (dict(tool_choice="required"), "tool_choice"),
    (
        dict(
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "then"}},
        ),
        "tool_choice.function.name",
    ),
    (
        dict(
            tools=[TOOL],
            tool_choice="required",
            response_format={"type": "json_object"},
        ),
        "response_format",
    ),
    (dict(functions=[]), "functions"),
    (dict(modalities=["audio"]), "modalities"),
    (dict(chat_template="mine"), "chat_template"),
    (dict(nonsense=1), "nonsense"),
]


@pytest.mark.parametrize("more, param", WRONG, ids=[param for _, param in WRONG])
def test_what_is_wrong_is_named(more, param):
    async def check(api):
        answer = await api.chat(**more)
        assert (answer.status, answer.error["param"]) == (400, param), answer.body
        assert len(answer.error["message"]) > 10

    with_api(check)


def test_what_the_template_refuses_is_told_in_its_words():
    async def check(api):
        answer = await api.chat(tools=[TOOL])
        assert (answer.status, answer.error["code"]) == (422, "chat_template")
        assert "no form for tools" in answer.error["message"]
        none = await api.chat(tools=[TOOL], tool_choice="none", max_tokens=1)
        assert none.status == 200

    with_api(check)


def test_a_forced_call_is_the_whole_answer():
    def said(text, **choice):
        asked = read_chat({"messages": [{"role": "user", "content": "a"}], **choice})
        answer = _Answer(None, asked, ())
        deltas = [answer.add(Made(one, 0, 0, 0.0))[0] for one in text]
        assert not any(deltas)  # nothing of a call is shown as text
        part = SimpleNamespace(index=0, result=SimpleNamespace(finish_reason="end"))
        return answer.choice(part)

    named = {"type": "function", "function": {"name": "now"}}
    for given, text in (
        (named, '{"zone": "UTC"}'),
        ("required", '{"name": "now", "arguments": {"zone": "UTC"}}'),
    ):
        choice = said(text, tools=[TOOL], tool_choice=given)
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "now"
        assert json.loads(call["function"]["arguments"]) == {"zone": "UTC"}
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
    cut = said('{"zone": "U', tools=[TOOL], tool_choice=named)
    assert "tool_calls" not in cut["message"]
    assert cut["message"]["content"] == '{"zone": "U'


def test_the_schema_of_a_call_is_that_of_the_tools():
    messages = [{"role": "user", "content": "a"}]
    other = {"type": "function", "function": {"name": "then"}}
    body = {"messages": messages, "tools": [TOOL, other], "tool_choice": "required"}
    schema = json.loads(read_chat(body).schema)
    assert [one["properties"]["name"]["const"] for one in schema["anyOf"]] == [
        "now",
        "then",
    ]
    assert read_chat({"messages": messages, "tools": [TOOL]}).schema is None


def test_past_calls_reach_the_template_as_it_wants_them():
    call = {"id": "1", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
    ]
    past, result = read_chat({"messages": messages}).messages
    assert past["tool_calls"][0]["function"]["arguments"] == {"zone": "UTC"}
    assert past["content"] == "" and result["tool_call_id"] == "1"
