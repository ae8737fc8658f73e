"""Delta codecs: one file per scheme, and the table that knows them all."""

from blyan_tile.compress.table import (
    decode,
    encode,
    encoded_bytes,
    header_of,
    norm_squared,
)

__all__ = ["decode", "encode", "encoded_bytes", "header_of", "norm_squared"]
