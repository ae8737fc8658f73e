"""Chat templates: what Hugging Face's do, and what a hostile one cannot."""

from __future__ import annotations

import json

import jinja2
import pytest

from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile import template as templates
from blyan_tile.template import BUILT_IN, RenderJob, render
from blyan_tile.vocabulary import Named

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b>\n"},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
]
NAMES = (Named("bos_token", "<s>"), Named("eos_token", "</s>"))


def written(template, messages=TALK, tools="", options="", names=NAMES, begin=True):
    job = RenderJob(template, json.dumps(messages), tools, options, names, begin)
    return render(job, lambda progress: None).text


def test_what_templates_of_models_use():
    text = """
{%- set ns = namespace(seen=0) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- generation %}{{- message['content'] }}{% endgeneration %}
    {%- set ns.seen = ns.seen + 1 %}
    {%- if loop.last %}{% break %}{% endif %}
{%- endfor %}
{{- ns.seen }}|{{ tools | tojson(indent=1) }}|{{ messages[1].content | tojson }}
{{- eos_token ~ (mode or '-') }}{{ strftime_now('%Y') | length }}"""
    made = written(text, tools='[{"a": 1}]', options='{"mode": "fast"}')
    assert made == '<s>Hi <b>\nNone2|[\n {\n  "a": 1\n }\n]|"Hi <b>\\n"</s>fast4'


def test_the_built_in_ones():
    talk = [*TALK[:2], {"role": "user", "content": [{"type": "text", "text": "more"}]}]
    assert written(BUILT_IN["plain"], talk) == (
        "System: Be brief.\n\nUser: Hi <b>\n\n\nUser: more\n\nAssistant:"
    )
    assert written(BUILT_IN["chatml"], talk[1:], begin=False) == (
        "<|im_start|>user\nHi <b>\n<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n"
    )
    with pytest.raises(DecodeError, match="^this template has no form for tools$"):
        written(BUILT_IN["plain"], tools="[{}]")


def test_a_template_says_in_its_own_words_what_it_does_not_take():
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DecodeError, match="^roles must alternate$"):
        written(refusing)


FAILING = {
    "syntax": "{% for %}",
    "no end": "{% if true %}",
    "unknown tag": "{% include 'x' %}{% foo %}",
    "unknown filter": "{{ 1 | nothing }}",
    "division": "{{ 1 / 0 }}",
    "types": "{{ 'a' + 1 }}",
    "undefined": "{{ nobody.at.home }}",
    "key": "{{ {}.pop('x') }}",
    "attribute": "{{ ''.nothing() }}",
    "blocks": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "half": "{{ '\\ud800' }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "extends": "{% extends '/etc/passwd' %}",
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failing_template_is_one_sentence(case):
    with pytest.raises(DecodeError) as caught:
        made = written(FAILING[case])
        pytest.fail(f"it wrote {made!r}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ [].__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "getattr": "{{ ('' | attr('__class__')).__mro__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "import by name": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "joiner": "{{ joiner.__init__.__globals__ }}",
    "frames": "{{ (lipsum.__globals__) }}",
    "code": "{{ strftime_now.__code__ }}",
    "self": "{{ self._TemplateReference__context.environment.__class__ }}",
    "mutation": "{{ messages.append(1) }}",
    "dictionary": "{{ messages[0].update(a=1) }}",
    "called": "{{ ''.__class__.__base__.__subclasses__()[0]() }}",
}


@pytest.mark.parametrize("case", ESCAPES)
def test_an_escape_reaches_nothing(case):
    try:
        assert written(ESCAPES[case]) == ""  # undefined, hence nothing
    except DecodeError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


BOMBS = {
    "range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "output": "{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}",
    "nesting": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_refused(case):
    with pytest.raises((DecodeError, LimitExceeded)):
        written(BOMBS[case])


def test_output_stops_where_it_is_too_much(monkeypatch):
    monkeypatch.setattr(templates, "MAX_RENDERED_CHARACTERS", 10)
    assert written("{{ 'x' * 10 }}") == "x" * 10
    with pytest.raises(LimitExceeded, match="above 10 characters"):
        written("{% for a in range(6) %}{{ 'xx' }}{% endfor %}")


def test_arguments_are_json_of_their_kind():
    for messages in ("{", "{}", "1", "[" * 100_000):
        with pytest.raises(DecodeError, match="messages are not"):
            render(RenderJob("", messages, "", "", (), True), lambda progress: None)


def test_nothing_leaks_from_one_rendering_to_the_next():
    assert written("{% set x = 1 %}{{ x }}") == "1"
    with pytest.raises(DecodeError):
        written("{{ x + 1 }}")
    assert jinja2.sandbox.MAX_RANGE == 100_000
