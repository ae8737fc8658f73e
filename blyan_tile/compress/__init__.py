"""Delta codecs: one file per scheme, and the table that knows them all."""

from blyan_tile.compress.table import (
    check,
    decode,
    encode,
    encoded_bytes,
    header_of,
    norm_squared,
)

__all__ = [
    "check",
    "decode",
    "encode",
    "encoded_bytes",
    "header_of",
    "norm_squared",
]
