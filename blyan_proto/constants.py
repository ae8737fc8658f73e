"""Numbers on which every node of every network must agree; each with its reason."""

KIB, MIB = 1024, 1024 * 1024

FORMAT_VERSION = 1  # first field of every header and payload

# A block and its inline payload fit one gossip message (DEC-A14).
MAX_BLOCK_BYTES = 64 * KIB
MAX_PARENTS = 8  # DEC-A14
MAX_PAYLOAD_BYTES = MAX_BLOCK_BYTES - 2 * KIB  # what the header and signature leave

LEAF_BYTES = 256 * KIB  # one Merkle leaf: a sub-tile (TILE-01)
MAX_TILE_ELEMENTS = 1_048_576  # 4 MiB of float32 (DEC-B2)
MAX_TILE_ASPECT = 4  # sides of a tile, wherever the matrix allows (DEC-B2)
MAX_BLOB_BYTES = 4096 * MIB  # 16,384 leaves: an outline stays below 1 MiB

MAX_CHECKPOINT_BLOCKS = 1024
MAX_CHECKPOINT_BYTES = 176 * KIB  # the record itself: ids, receipts, roots
MAX_VALIDATORS = 128

MAX_GROUPS = 65_535
MAX_TILES_PER_GROUP = 1536  # embeddings of 150k x 4096; their roots fit a payload
MAX_TRAINED_TILES = 256  # of a group that a run moves: an update names them fourfold
MAX_DENSE_LAYERS = 1024
MAX_CONTRIBUTIONS = 256  # DEC-B5: above it an update has to re-compress
PPM = 1_000_000  # fractions on chain are parts per million

RANKS = 3  # primaries of a group: one and two standbys (DEC-B6)
VERSIONS_SERVED = 3  # adopted versions a server answers for (DEC-B8)
