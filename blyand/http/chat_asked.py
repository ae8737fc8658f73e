"""What is asked of /v1/chat/completions: messages, tools, and which of them to call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blyand.http.asked import MAX_TOKENS, MAX_TOP, Asked, read_asked, spelled
from blyand.http.fields import Fields

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_TEXT_CHARACTERS = 1 << 20
MAX_OPTIONS = 64
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TEMPLATES = ("plain", "chatml")
ROLES = {
    "system": "system",
    "developer": "system",  # what OpenAI calls it since o1; templates do not know it
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
UNSUPPORTED = {
    "functions": "is not supported any more; use tools",
    "function_call": "is not supported any more; use tool_choice",
    "audio": "is not supported: models here answer with text",
    "prediction": "is not supported",
    "web_search_options": "is not supported",
    "reasoning_effort": "is not supported; a template may know it in chat_template_kwargs",
    "verbosity": "is not supported",
}

Json = dict[str, Any]


@dataclass(frozen=True)
class ChatAsked:
    """One chat request, checked."""

    asked: Asked
    messages: tuple[Json, ...]  # as templates expect them
    tools: tuple[Json, ...]  # those that the model is told of
    must_call: bool  # the whole answer is the one call of a tool
    called: str | None  # the tool whose arguments it is; None: the call says so itself
    schema: str | None  # that the answer fits
    logprobs: int | None  # likeliest tokens told for each
    template: str | None  # a built-in one in place of the model's
    options: Json  # what else the template is told


def read_chat(body: Mapping[str, Any]) -> ChatAsked:
    """Return what a body asks for. Refusal names what is wrong with it."""
    fields = Fields(body)
    limit = fields.integer("max_completion_tokens", 1, MAX_TOKENS)
    older = fields.integer("max_tokens", 1, MAX_TOKENS)
    asked = read_asked(fields, limit if limit is not None else older)
    messages = _messages(fields)
    tools = _tools(fields)
    choice, called = _choice(fields, tools)
    must_call = choice in ("required", "named")
    schema = asked.schema
    if must_call:
        if schema is not None:
            text = "does not go with a tool_choice that asks for a call"
            raise fields.wrong("response_format", text)
        schema = _call_schema(fields, tools, called)
    wants = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP)
    if top is not None and not wants:
        raise fields.wrong("top_logprobs", "goes with logprobs: true only")
    template = fields.choice("chat_template", TEMPLATES)
    options = fields.take("chat_template_kwargs") or {}
    if not isinstance(options, dict) or len(options) > MAX_OPTIONS:
        raise fields.wrong("chat_template_kwargs", "is not a small object")
    if any(kind != "text" for kind in fields.items("modalities", 4) or []):
        text = 'may only be ["text"]'
        raise fields.wrong("modalities", text, "unsupported_parameter")
    fields.ignore(("parallel_tool_calls",))
    fields.refuse(UNSUPPORTED)
    fields.end()
    return ChatAsked(
        asked=asked,
        messages=messages,
        tools=() if choice == "none" else tools,
        must_call=must_call,
        called=called,
        schema=schema,
        logprobs=(top or 0) if wants else None,
        template=template,
        options=options,
    )


def _messages(fields: Fields) -> tuple[Json, ...]:
    given = fields.items("messages", MAX_MESSAGES)
    if not given:
        raise fields.wrong("messages", "is missing or empty")
    return tuple(
        _message(Fields(one, f"messages[{index}]")) for index, one in enumerate(given)
    )


def _message(fields: Fields) -> Json:
    role = fields.choice("role", ROLES)
    if role is None:
        raise fields.wrong("role", "is missing")
    message: Json = {"role": ROLES[role], "content": _content(fields)}
    name = fields.text("name", 64)
    if name is not None:
        message["name"] = name
    calls = fields.items("tool_calls", MAX_TOOLS)
    if calls:
        if role != "assistant":
            raise fields.wrong("tool_calls", "is for the assistant's messages only")
        message["tool_calls"] = [_past_call(fields, call) for call in calls]
    call_id = fields.text("tool_call_id", 256)
    if call_id is not None:
        message["tool_call_id"] = call_id
    fields.ignore(
        ("refusal", "annotations", "audio", "reasoning_content", "function_call")
    )
    fields.end()
    return message


def _content(fields: Fields) -> str:
    content = fields.take("content")
    if content is None:
        return ""
    parts = (
        content if isinstance(content, list) else [{"type": "text", "text": content}]
    )
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "refusal"):
            text = part.get("text", part.get("refusal"))
            if not isinstance(text, str) or len(text) > MAX_TEXT_CHARACTERS:
                raise fields.wrong("content", "is not text", "invalid_type")
            texts.append(text)
        else:
            raise fields.wrong(
                "content", "has a part that is not text: models here read text"
            )
    return "\n".join(texts)


def _past_call(fields: Fields, call: Any) -> Json:
    """Return a call that the assistant made, its arguments as templates want them."""
    made = call.get("function") if isinstance(call, dict) else None
    if not isinstance(made, dict) or not isinstance(made.get("name"), str):
        raise fields.wrong("tool_calls", "has a call without a function and its name")
    arguments = made.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    elif not isinstance(arguments, dict):
        raise fields.wrong(
            "tool_calls", "has a call whose arguments are no JSON object"
        )
    function = {"name": made["name"], "arguments": arguments}
    return {
        "id": str(call.get("id", ""))[:256],
        "type": "function",
        "function": function,
    }


def _tools(fields: Fields) -> tuple[Json, ...]:
    tools = []
    for index, one in enumerate(fields.items("tools", MAX_TOOLS) or []):
        tool = Fields(one, f"tools[{index}]")
        if tool.choice("type", ("function",)) is None:
            raise tool.wrong("type", "is missing")
        function = tool.inner("function")
        tool.end()
        if function is None:
            raise tool.wrong("function", "is missing")
        name = function.text("name", 64)
        if name is None or not TOOL_NAME.fullmatch(name):
            raise function.wrong("name", "is not 1 to 64 letters, digits, _, - or .")
        described: Json = {"name": name}
        description = function.text("description", 16 * 1024)
        if description is not None:
            described["description"] = description
        parameters = function.take("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise function.wrong("parameters", "is not a JSON Schema", "invalid_type")
        described["parameters"] = parameters or {"type": "object", "properties": {}}
        function.ignore(("strict",))
        function.end()
        tools.append({"type": "function", "function": described})
    return tuple(tools)


def _choice(fields: Fields, tools: tuple[Json, ...]) -> tuple[str, str | None]:
    """Return (none, auto, required or named; the name of the tool)."""
    given = fields.take("tool_choice")
    if given is None or given in ("auto", "none"):
        return str(given or "auto"), None
    if given == "required":
        if not tools:
            raise fields.wrong("tool_choice", "asks for a call, but there are no tools")
        return "required", None
    inner = Fields(given, "tool_choice")
    function = inner.inner("function")
    if inner.choice("type", ("function",)) is None or function is None:
        raise inner.wrong("", "is none, auto, required or the name of a function")
    name = function.text("name", 64)
    if name is None or name not in [tool["function"]["name"] for tool in tools]:
        raise function.wrong("name", "is of no tool in tools")
    return "named", name


def _call_schema(fields: Fields, tools: tuple[Json, ...], called: str | None) -> str:
    """Return the schema of the one call that the whole answer is, as vLLM has it."""
    for tool in tools:
        if tool["function"]["name"] == called:
            return spelled(tool["function"]["parameters"], fields)
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"]["parameters"],
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return spelled({"anyOf": calls}, fields)
