"""Calls of tools in an answer: found as it is made, in the forms of the model families.

A model says that it wants a call in the form that its chat template taught it. Two are
read: Hermes', `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Qwen and many
others), and Mistral's, `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`. What looks
like a call and is none stays text. Source: the templates of these families.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

HERMES = "<tool_call>", "</tool_call>"
MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True)
class Call:
    """One call; `arguments` is a JSON object as text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: "call_" + secrets.token_hex(12))

    def body(self, index: int | None = None) -> dict[str, Any]:
        """Return it as OpenAI's clients read it, in a chunk with its index."""
        made = {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return made if index is None else {"index": index, **made}


def forms_of(template: str | None) -> tuple[str, ...]:
    """Return the marks with which calls begin, by what the template speaks of."""
    text = template or ""
    return tuple(mark for mark in (HERMES[0], MISTRAL) if mark in text)


class Finder:
    """Parts an answer into text and calls, piece by piece."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        self._marks = marks
        self._held = ""  # text that may be, or is, a call

    def add(self, text: str) -> tuple[str, list[Call]]:
        """Return what is known to be text, and the calls that are complete."""
        self._held += text
        shown, calls = "", []
        while self._held:
            place, mark = self._first()
            if not mark:
                keep = max((_overlap(self._held, m) for m in self._marks), default=0)
                shown += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                break
            shown += self._held[:place]
            self._held = self._held[place:]
            if mark == MISTRAL:
                break  # the list goes on to the end of the answer
            end = self._held.find(HERMES[1])
            if end < 0:
                break
            whole = self._held[: end + len(HERMES[1])]
            self._held = self._held[len(whole) :]
            call = _read(whole[len(mark) : end])
            if call is None:
                shown += whole
            else:
                calls.append(call)
        return shown, calls

    def end(self) -> tuple[str, list[Call]]:
        """Return what is left when the answer ends."""
        held, self._held = self._held, ""
        if held.startswith(MISTRAL) and MISTRAL in self._marks:
            calls = _read_list(held[len(MISTRAL) :])
            return ("", calls) if calls else (held, [])
        if held.startswith(HERMES[0]):
            call = _read(held[len(HERMES[0]) :])  # its end was cut off by a stop token
            return ("", [call]) if call else (held, [])
        return held, []

    def _first(self) -> tuple[int, str]:
        found = [(self._held.find(mark), mark) for mark in self._marks]
        found = [one for one in found if one[0] >= 0]
        return min(found, default=(0, ""))


def read_forced(text: str, name: str | None) -> Call | None:
    """Return the call that a whole answer is (tool_choice): None if it was cut off.

    `name`: the tool whose arguments it is; None: it says the name itself.
    """
    if name is None:
        return _read(text)
    return Call(name, text) if isinstance(_loads(text), dict) else None


def _read(text: str) -> Call | None:
    return _call(_loads(text))


def _read_list(text: str) -> list[Call]:
    given = _loads(text)
    calls = [_call(one) for one in given] if isinstance(given, list) else []
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Call(value["name"], arguments) if isinstance(arguments, str) else None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _overlap(text: str, mark: str) -> int:
    """Return how many last characters of `text` are the first ones of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
