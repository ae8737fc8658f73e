"""The published conversation is what our machines say and hear."""

from __future__ import annotations

import json

import pytest

from blyan_proto.errors import ProtocolError
from blyand.net.mux.frames import GoawayCode
from blyand.net.mux.machine import Machine
from tests.vectors import make_mux as made

GOLDEN = json.loads((made.HERE / "mux.json").read_text())


def test_the_vectors_are_as_published():
    assert made.build() == GOLDEN


def test_the_conversation():
    sides = {"dialler": Machine(True), "listener": Machine(False)}
    dialler, listener = sides.values()
    acts = [
        lambda: dialler.ping(1),
        lambda: None,  # the answer to it
        lambda: (
            dialler.open(),
            dialler.send(1, memoryview(b"hello")),
            dialler.finish(1),
        ),
        lambda: (listener.send(1, memoryview(b"world")), listener.finish(1)),
        lambda: listener.open(),
        lambda: dialler.reset(2),
        lambda: None,
        lambda: dialler.go_away(GoawayCode.DONE),
    ]
    for act, step in zip(acts, GOLDEN["conversation"], strict=True):
        act()
        raw = b"".join(sides[step["from"]].take(1 << 20))
        # Control frames may stand in any order among each other.
        assert sorted(frames(raw)) == sorted(frames(bytes.fromhex(step["bytes"]))), step
        other = listener if step["from"] == "dialler" else dialler
        other.receive(bytes.fromhex(step["bytes"]))
    assert listener.gone_away and not dialler.opened and not listener.opened


def frames(raw: bytes) -> list[bytes]:
    found = []
    while raw:
        size = 8 + int.from_bytes(raw[1:4], "big")
        found.append(raw[:size])
        raw = raw[size:]
    return found


@pytest.mark.parametrize("name", GOLDEN["violations"])
def test_violations(name):
    with pytest.raises(ProtocolError):
        Machine(True).receive(bytes.fromhex(GOLDEN["violations"][name]))
