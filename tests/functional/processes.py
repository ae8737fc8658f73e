"""Processes as /proc shows them: whose daemons, whose children, who is alive."""

from __future__ import annotations

import os
from pathlib import Path


def daemons_of(directory: str | os.PathLike[str]) -> list[int]:
    """Return the ids of the daemons whose homes are in `directory`."""
    wanted = os.fsencode(directory) + b"/"
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended
        if b"--home" in words and b"run" in words:
            if words[words.index(b"--home") + 1].startswith(wanted):
                found.append(int(path.parent.name))
    return found


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def is_running(pid: int) -> bool:
    """True unless the process is gone or a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
