"""Calls of tools found in answers that come piece by piece."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blyand.http.toolcalls import HERMES, MISTRAL, Finder, forms_of, read_forced

MARKS = (HERMES[0], MISTRAL)
ONE = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'
TWO = '[TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": 1}}]'


def found(pieces, marks=MARKS):
    finder, text, calls = Finder(marks), "", []
    for piece in pieces:
        more, made = finder.add(piece)
        text, calls = text + more, calls + made
    more, made = finder.end()
    return text + more, [
        (call.name, json.loads(call.arguments)) for call in calls + made
    ]


@pytest.mark.parametrize(
    "answer, text, calls",
    [
        ("", "", []),
        ("no call < at all <tool", "no call < at all <tool", []),
        (ONE, "", [("now", {"zone": "UTC"})]),
        ("Let me see. " + ONE, "Let me see. ", [("now", {"zone": "UTC"})]),
        (ONE + "\n" + ONE, "\n", [("now", {"zone": "UTC"})] * 2),
        (ONE.removesuffix("</tool_call>"), "", [("now", {"zone": "UTC"})]),
        ("<tool_call>broken</tool_call>!", "<tool_call>broken</tool_call>!", []),
        (
            '<tool_call>{"name": 7}</tool_call>',
            '<tool_call>{"name": 7}</tool_call>',
            [],
        ),
        ("<tool_call>" + "[" * 5000, "<tool_call>" + "[" * 5000, []),
        (TWO, "", [("a", {}), ("b", {"x": 1})]),
        ("[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_found_and_the_rest_is_text(answer, text, calls, size):
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    assert found(pieces) == (text, calls)


def test_marks_that_the_template_does_not_speak_of_are_text():
    assert forms_of(None) == () and forms_of("{{ messages }}") == ()
    assert forms_of("…<tool_call>…") == (HERMES[0],)
    assert forms_of("…[TOOL_CALLS]…") == (MISTRAL,)
    assert found([ONE], ()) == (ONE, [])
    assert found([TWO], (HERMES[0],)) == (TWO, [])


@given(
    st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "{", "x", ONE, "[TOOL_"]))
)
def test_without_a_call_nothing_is_lost_and_pieces_do_not_matter(parts):
    whole = "".join(parts)
    text, calls = found([whole])
    assert found(parts) == (text, calls)
    if not calls:
        assert text == whole


def test_a_whole_answer_may_be_a_call():
    assert read_forced('{"zone": "UTC"}', "now").name == "now"
    assert read_forced('{"zone": "UT', "now") is None
    assert read_forced("[1]", "now") is None
    named = read_forced('{"name": "now", "arguments": {"zone": "UTC"}}', None)
    assert (named.name, json.loads(named.arguments)) == ("now", {"zone": "UTC"})
    assert read_forced('{"arguments": {}}', None) is None
    assert named.body(1)["index"] == 1 and named.body()["id"].startswith("call_")
