"""Chat templates: messages to the text that a model was trained on, in a worker (DEC-C4).

Templates are Jinja, as Hugging Face defines them. They are a stranger's programs: they
run in jinja2's immutable sandbox, see nothing but their arguments, and what they write
is bounded; the caller bounds time and memory of the process. `jinja2` is loaded only
inside the functions.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from blyan_proto.codec import Size, message
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile.jobs import Progress
from blyan_tile.vocabulary import Named

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_TEMPLATE_BYTES = 1 << 20
MAX_ARGUMENT_BYTES = 4 << 20  # of messages, tools or options, as JSON
MAX_RENDERED_CHARACTERS = 4 << 20

Json = Annotated[str, Size(0, MAX_ARGUMENT_BYTES)]


@message
class RenderJob:
    """Turn messages into one text."""

    template: Annotated[str, Size(0, MAX_TEMPLATE_BYTES)]
    messages: Json  # a list of objects
    tools: Json  # a list of objects, or empty
    options: Json  # an object: what else the template is told, or empty
    names: Annotated[tuple[Named, ...], Size(0, 16)]  # special tokens
    add_generation_prompt: bool  # end where the answer begins


@message
class Rendered:
    """What the template wrote."""

    text: Annotated[str, Size(0, 4 * MAX_RENDERED_CHARACTERS)]


def render(job: RenderJob, report: Callable[[Progress], None]) -> Rendered:
    """Run a RenderJob. DecodeError: template or messages will not do; LimitExceeded."""
    from jinja2 import TemplateError

    arguments = {
        **_read(job.options, "options", dict, {}),
        **{named.name: named.text for named in job.names},
        "messages": _read(job.messages, "messages", list, []),
        "tools": _read(job.tools, "tools", list, None),
        "documents": None,
        "add_generation_prompt": job.add_generation_prompt,
    }
    try:
        parts = _environment().from_string(job.template).generate(**arguments)
        return Rendered(_joined(parts))
    except _Refused as refusal:
        raise DecodeError(_sentence(refusal)) from None
    except TemplateError as error:
        raise DecodeError(f"the chat template fails: {_sentence(error)}") from None
    except MemoryError:
        raise LimitExceeded("the chat template takes too much memory") from None
    except RecursionError:
        raise LimitExceeded("the chat template calls itself too often") from None
    except _OF_PROGRAMS as error:
        kind = type(error).__name__
        raise DecodeError(
            f"the chat template fails: {kind}: {_sentence(error)}"
        ) from None


# What a template can raise as any program can; it runs nothing of ours.
_OF_PROGRAMS = (
    ArithmeticError,
    AssertionError,
    SyntaxError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Refused(Exception):
    """The template itself says what is wrong with the messages."""


def _joined(parts: Iterable[str]) -> str:
    text, size = [], 0
    for part in parts:
        text.append(part)
        size += len(part)
        if size > MAX_RENDERED_CHARACTERS:
            most = MAX_RENDERED_CHARACTERS
            raise LimitExceeded(f"the chat template writes above {most} characters")
    joined = "".join(text)
    try:
        joined.encode()
    except UnicodeEncodeError:
        raise DecodeError("the messages have half a character") from None
    return joined


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _read(raw: str, what: str, kind: type, otherwise: Any) -> Any:
    if not raw:
        return otherwise
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise DecodeError(f"{what} are not JSON") from None
    if not isinstance(value, kind):
        raise DecodeError(f"{what} are not a JSON {kind.__name__}")
    return value


def _environment() -> Environment:
    """Return what templates of Hugging Face models expect to run in."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks answers for training; here it means nothing."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return list(body)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _refuse(text: object) -> NoReturn:
    raise _Refused(str(text))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own it does not escape for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


_TEXT = """
{%- if tools %}{{- raise_exception('this template has no form for tools') }}{%- endif %}
{%- macro text(message) %}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content or [] %}{{- part.text }}{%- endfor %}
{%- endif %}{%- endmacro %}"""
BUILT_IN: Mapping[str, str] = {
    # One paragraph for each message, as models of plain text continue best.
    "plain": _TEXT
    + """
{%- for message in messages %}
{{- message.role | capitalize + ': ' + text(message) + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}""",
    # The form that many models were trained on, without tools.
    "chatml": _TEXT
    + """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + text(message) + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
}
