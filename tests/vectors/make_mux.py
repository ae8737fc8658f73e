"""Regenerates mux.json: one conversation on `/blyan/mux/1`, byte for byte.

    python -m tests.vectors.make_mux          writes the file beside this one
    python -m tests.vectors.make_mux mux      prints it

The bytes are packed here a second time, from the text of docs/protocols/mux.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def frame(kind: int, stream: int, body: bytes = b"") -> bytes:
    head = kind.to_bytes(1, "big") + len(body).to_bytes(3, "big")
    return head + stream.to_bytes(4, "big") + body


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def step(sender: str, meaning: str, raw: bytes) -> dict[str, str]:
    return {"from": sender, "meaning": meaning, "bytes": raw.hex()}


def build() -> dict[str, Any]:
    """Return a conversation, and byte strings that end a connection."""
    violations = {
        "unknown kind": frame(9, 1),
        "empty DATA": frame(2, 2),
        "DATA on no stream": frame(2, 0, b"x"),
        "DATA above 128 KiB": (2 << 24 | 131_073).to_bytes(4, "big") + u32(2),
        "FIN with a body": frame(4, 2, b"x"),
        "PING on a stream": frame(6, 2, bytes(8)),
        "OPEN of the receiver's parity": frame(1, 1, u32(65_536)),
        "OPEN out of turn": frame(1, 4, u32(65_536)),
        "OPEN with a credit above 64 MiB": frame(1, 2, u32((64 << 20) + 1)),
        "DATA on a stream that is not open": frame(2, 2, b"x"),
        "CREDIT of nothing": frame(1, 2, u32(65_536)) + frame(3, 2, u32(0)),
        "CREDIT on a stream that never was": frame(3, 2, u32(1)),
    }
    return {
        "conversation": [
            step("dialler", "PING 1", frame(6, 0, (1).to_bytes(8, "big"))),
            step("listener", "PONG 1", frame(7, 0, (1).to_bytes(8, "big"))),
            step(
                "dialler",
                "OPEN 1 granting 262144, DATA hello, FIN",
                frame(1, 1, u32(262_144)) + frame(2, 1, b"hello") + frame(4, 1),
            ),
            step(
                "listener",
                "CREDIT 1 of 196608, DATA world, FIN",
                frame(3, 1, u32(196_608)) + frame(2, 1, b"world") + frame(4, 1),
            ),
            step("listener", "OPEN 2", frame(1, 2, u32(262_144))),
            step("dialler", "RESET 2, given up", frame(5, 2, u32(0))),
            step("listener", "RESET 2, confirmed", frame(5, 2, u32(2))),
            step("dialler", "GOAWAY, done", frame(8, 0, u32(0))),
        ],
        "violations": {name: raw.hex() for name, raw in violations.items()},
    }


def main(names: list[str]) -> None:
    text = json.dumps(build(), indent=1) + "\n"
    if names:
        print(text, end="")
    else:
        (HERE / "mux.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
