"""Text as it is made: what may be shown now, and whether a stop text has appeared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from blyan_tile.tokenizer import TextStream


class Decoding(Protocol):
    """A tokenizer's way back to text."""

    def stream(self) -> TextStream:
        """Return a decoder for tokens that continue a text."""


class Writer:
    """Decodes token by token; holds back what may be the beginning of a stop text."""

    def __init__(self, tokenizer: Decoding, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stream = tokenizer.stream()
        self._stop = [text for text in stop if text]
        self._held = ""

    def add(self, token: int) -> str:
        """Return the text that `token` releases, maybe none. Sets `stopped`."""
        return self._release(self._stream.add(token))

    def end(self) -> str:
        """Return what is left when no further token comes."""
        if self.stopped:
            return ""
        text = self._release(self._stream.end()) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return how many last characters of `text` are the first ones of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
