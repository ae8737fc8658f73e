"""What a delta codec is to the rest of the program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]
Encoded = tuple[bytes, np.ndarray | None]


@dataclass(frozen=True)
class Scheme:
    """One codec: the functions of its file."""

    encode: Callable[[int, np.ndarray, np.ndarray | None], Encoded]
    decode: Callable[[bytes, Shape], np.ndarray]
    encoded_bytes: Callable[[int, Shape], int]
    norm_squared: Callable[[bytes, Shape], tuple[int, int]]
    setting_bytes: int = 1  # of a delta's second field
    exact: bool = True  # encoded_bytes is the length; else the longest possible
