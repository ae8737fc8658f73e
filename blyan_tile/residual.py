"""The records of error feedback on disk: one local .npz per group, without pickle.

Whether a delta was listed is known only after it was sent, so a record keeps all that
either outcome needs. It may vanish: then the residual is zero (DEC-B14).
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blyan_proto.codec import U16, U32, message
from blyan_tile.layout import Group


@message
class Settled:
    """What became of the delta that a learner sent for a group."""

    round: U32
    group: U16
    listed: bool
    clip_ppm: U32  # 10^6: not clipped; read only if listed


@dataclass(frozen=True)
class Record:
    """One group's feedback after a round; lists are by tile, arrays float32."""

    round: int
    before: list[np.ndarray]  # e
    sent: list[np.ndarray] | None  # x; None: nothing was sent, e just waits
    encoded: list[bytes]  # C(x)
    norms: list[float]  # of the delta
    warm_before: list[np.ndarray | None]  # what the codec started from
    warm: list[np.ndarray | None]  # what it starts from next time


class ResidualFiles:
    """The records of one learner in one run, a file per group."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def load(self, group: Group) -> Record | None:
        """Return a group's record; None if it is gone, broken or of other shapes."""
        try:
            with np.load(self._path(group), allow_pickle=False) as file:
                record = _read(file, len(group.tiles))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        shapes = [tile.shape for tile in group.tiles]
        arrays = [record.before] + ([] if record.sent is None else [record.sent])
        fits = all([a.shape for a in part] == shapes for part in arrays)
        return record if fits else None

    def save(self, group: Group, record: Record) -> None:
        """Replace a group's record. OSError from the file system."""
        path = self._path(group)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, **_written(record))  # type: ignore[arg-type]
        os.replace(partial, path)

    def _path(self, group: Group) -> Path:
        return self._directory / f"{group.index}.npz"


def _written(record: Record) -> dict[str, np.ndarray]:
    arrays = {
        "round": np.array([record.round], np.int64),
        "norms": np.array(record.norms, np.float64),  # (tiles,)
    }
    for index, before in enumerate(record.before):
        arrays[f"e{index}"] = before
        for name, warm in (("v", record.warm_before), ("w", record.warm)):
            held = warm[index]
            if held is not None:
                arrays[f"{name}{index}"] = held
        if record.sent is not None:
            arrays[f"x{index}"] = record.sent[index]
            arrays[f"c{index}"] = np.frombuffer(record.encoded[index], np.uint8)
    return arrays


def _read(file: np.lib.npyio.NpzFile, tiles: int) -> Record:
    sent = "x0" in file
    return Record(
        int(file["round"][0]),
        [file[f"e{index}"] for index in range(tiles)],
        [file[f"x{index}"] for index in range(tiles)] if sent else None,
        [file[f"c{index}"].tobytes() for index in range(tiles)] if sent else [],
        [float(norm) for norm in file["norms"]],
        [_maybe(file, f"v{index}") for index in range(tiles)],
        [_maybe(file, f"w{index}") for index in range(tiles)],
    )


def _maybe(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray | None:
    return file[name] if name in file else None
