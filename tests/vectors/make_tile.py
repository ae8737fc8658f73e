"""Regenerates tile_*.json: layouts, TBLOCK files, delta decoding, sums and outer steps.

    python tests/vectors/make_tile.py            writes the files beside itself
    python tests/vectors/make_tile.py update     prints those that are named

Inputs come from blake3 streams and integers only, and LR4 bytes are packed here a second
time, from the text of docs/tile-layout.md, so that a codec cannot vouch for itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from blake3 import blake3

from blyan_proto.block.model import Architecture, BiasKind, Dtype, Model, QueryKeyNorm
from blyan_tile import compress, layout, outer, tblock
from blyan_tile.aggregate import weighted_sum

DEMO = Architecture(
    vocabulary=256,
    layers=2,
    width=256,
    heads=4,
    kv_heads=4,
    head_width=64,
    experts=8,
    experts_per_token=2,
    expert_width=384,
    rope_base=10_000,
    rms_epsilon_ppb=1_000,
    normalise_top_k=True,
    tied_embeddings=False,
    context=512,
)
LARGE = Architecture(
    vocabulary=50_304,
    layers=1,
    width=2048,
    heads=16,
    kv_heads=4,
    head_width=128,
    experts=2,
    experts_per_token=1,
    expert_width=1408,
    rope_base=500_000,
    rms_epsilon_ppb=10_000,
    normalise_top_k=False,
    tied_embeddings=True,
    context=4096,
    query_key_norm=QueryKeyNorm.HEAD,
    shared_width=2816,
)
# Biases, a window, a gate on the shared expert and a first layer without experts.
ODD = Architecture(
    vocabulary=512,
    layers=2,
    width=96,
    heads=4,
    kv_heads=2,
    head_width=16,
    experts=2,
    experts_per_token=1,
    expert_width=64,
    rope_base=10_000,
    rms_epsilon_ppb=1_000,
    normalise_top_k=False,
    tied_embeddings=False,
    context=128,
    query_key_norm=QueryKeyNorm.WIDTH,
    shared_width=80,
    attention_bias=BiasKind.ALL,
    dense_layers=(0,),
    dense_width=160,
    shared_gate=True,
)


def model_of(architecture: Architecture) -> Model:
    return Model(1, "vector", architecture, "bytes", Dtype.F32, 3, "")


def stream(label: str, length: int) -> bytes:
    return blake3(label.encode()).digest(length=length)


def integers(label: str, count: int) -> np.ndarray:
    """Return `count` int32 in -2^23..2^23-1, from a stream."""
    return np.frombuffer(stream(label, 4 * count), "<i4") >> 8


def floats(label: str, shape: tuple[int, ...], exponent: int) -> np.ndarray:
    """Return float32 of `shape`, exact multiples of 2^exponent."""
    count = int(np.prod(shape))
    return (integers(label, count) * 2.0**exponent).astype(np.float32).reshape(shape)


def nibbles(values: np.ndarray) -> bytes:
    """Pack a (rows, rank) integer matrix as the document says."""
    flat = [value & 15 for column in values.T.tolist() for value in column]
    flat += [0] * (len(flat) % 2)
    return bytes(low | high << 4 for low, high in zip(flat[::2], flat[1::2]))


Parts = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # exponent, scales, P, Q


def lr4(exponent: int, scales: np.ndarray, p: np.ndarray, q: np.ndarray) -> bytes:
    """Return the wire bytes of a delta."""
    head = bytes((2, len(scales))) + exponent.to_bytes(2, "little", signed=True)
    return head + bytes(scales.tolist()) + nibbles(p) + nibbles(q)


def product(exponent: int, scales: np.ndarray, p: np.ndarray, q: np.ndarray):
    """Return the integer matrix whose 2^exponent multiple the delta means."""
    return (p.astype(np.int64) * scales.astype(np.int64)) @ q.astype(np.int64).T


def lr4_parts(label: str, shape: tuple[int, int], rank: int, exponent: int) -> Parts:
    m, n = shape
    p = (integers(f"{label} p", m * rank) % 15 - 7).reshape(m, rank)
    q = (integers(f"{label} q", n * rank) % 15 - 7).reshape(n, rank)
    return exponent, integers(f"{label} s", rank) % 256, p, q


def dense(values: np.ndarray) -> bytes:
    return bytes((1, 0)) + values.astype("<f2").tobytes()


def digest_of(array: np.ndarray) -> str:
    return blake3(np.ascontiguousarray(array).tobytes()).hexdigest()


def build_layout() -> dict:
    """Per group its tiles as "CLASS rows x columns: parameter[row0:row1, col0:col1]"."""
    return {
        name: {
            group.name: [line_of(tile) for tile in group.tiles]
            for group in layout.layout_of(model_of(architecture)).groups
        }
        for name, architecture in (("demo", DEMO), ("large", LARGE), ("odd", ODD))
    }


def line_of(tile: layout.Tile) -> str:
    size = " x ".join(map(str, tile.shape))
    pieces = ", ".join(
        f"{p.parameter}[{p.row0}:{p.row1}, {p.col0}:{p.col1}]" for p in tile.pieces
    )
    return f"{tile.tensor_class.name} {size}: {pieces}"


def tblock_inputs() -> dict[str, np.ndarray]:
    return {
        "empty": tblock.bytes_array(b""),
        "text": tblock.bytes_array(b"blyan"),
        "f32 2x3": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bf16 5": np.arange(16_250, 16_255, dtype=np.uint16),
        "f16 2x3x4": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        "i8 1x2x3x4": np.arange(-12, 12, dtype=np.int8).reshape(1, 2, 3, 4),
        "f32 400x400": floats("tblock", (400, 400), -20),  # three leaves
    }


def build_tblock() -> dict:
    vectors = {}
    for name, array in tblock_inputs().items():
        outline = tblock.outline_of(array)
        vectors[name] = {
            "dtype": outline.dtype.name,
            "shape": list(outline.shape),
            "header": outline.header.hex(),
            "leaves": [leaf.hex() for leaf in outline.leaves],
            "root": outline.root.hex(),
            "file_bytes": outline.file_bytes,
            "file_blake3": blake3(tblock.to_bytes(array)).hexdigest(),
        }
    return vectors


CODECS = Path(__file__).with_name("tile_codecs.json")  # made first, by make_codecs.py
CASES = {
    "1x1 r1": ((1, 1), 1, 0),
    "3x5 r3 odd": ((3, 5), 3, -10),
    "8x256 r8": ((8, 256), 8, -20),
    "384x256 r16": ((384, 256), 16, -22),
    "1024x1024 r32": ((1024, 1024), 32, -24),
    "300x255 r255": ((300, 255), 255, -149),
}


def build_delta() -> dict:
    vectors = {}
    for name, (shape, rank, exponent) in CASES.items():
        raw = lr4(*lr4_parts(name, shape, rank, exponent))
        values = compress.decode(raw, shape)
        norm, scale = compress.norm_squared(raw, shape)
        vectors[name] = {
            "shape": list(shape),
            "bytes": len(raw),
            "raw_blake3": blake3(raw).hexdigest(),
            "float64_blake3": digest_of(values),
            "float32_blake3": digest_of(values.astype(np.float32)),
            "norm_squared": [str(norm), scale],
        }
        if len(raw) < 64:
            vectors[name]["raw"] = raw.hex()
    for name, vector in json.loads(CODECS.read_text()).items():
        raw, shape = bytes.fromhex(vector["raw"]), tuple(vector["shape"])
        norm, scale = compress.norm_squared(raw, shape)
        vectors[name] = {
            "float64_blake3": digest_of(compress.decode(raw, shape)),
            "norm_squared": [str(norm), scale],
        }
    small = floats("dense", (7,), -26)
    vectors["7 dense"] = {
        "shape": [7],
        "raw": dense(small).hex(),
        "float32": [float(v) for v in compress.decode(dense(small), (7,))],
        "norm_squared": [
            str(compress.norm_squared(dense(small), (7,))[0]),
            compress.norm_squared(dense(small), (7,))[1],
        ],
    }
    return vectors


WEIGHTS_PPM = (1_000_000, 333_333, 47)
CLIPS_PPM = (1_000_000, 750_001, 1_000_000)


def build_update() -> dict:
    """Three learners and two rounds, with and without momentum and clips: digests."""
    vectors = {}
    for name in ("384x256 r16", "1024x1024 r32", "300x255 r255"):
        shape, rank, _ = CASES[name]
        weights = floats(f"{name} weights", shape, -24)
        state: tuple = (weights, None)
        rounds = []
        for round_ in range(2):
            parts = []
            for learner, ppm in enumerate(WEIGHTS_PPM):
                label = f"{name} {round_} {learner}"
                raw = lr4(*lr4_parts(label, shape, rank, -24 - learner))
                parts.append((ppm, compress.decode(raw, shape)))
            gradient = weighted_sum(parts)
            state = outer.step(*state, gradient, 900_000, 500_000)
            plain, _ = outer.step(weights, None, gradient, 700_000, 0)
            rounds.append(
                {
                    "gradient": digest_of(gradient),
                    "gradient_clipped": digest_of(weighted_sum(parts, CLIPS_PPM)),
                    "weights": digest_of(state[0]),
                    "momentum": digest_of(state[1]),
                    "weights_without_momentum": digest_of(plain),
                    "root": tblock.root_of(state[0]).hex(),
                }
            )
        vectors[name] = {
            "weights_ppm": list(WEIGHTS_PPM),
            "clips_ppm": list(CLIPS_PPM),
            "rounds": rounds,
        }
    return vectors


BUILDERS = {
    "layout": build_layout,
    "tblock": build_tblock,
    "delta": build_delta,
    "update": build_update,
}


def main(arguments: list[str]) -> None:
    if arguments:
        print(json.dumps({name: BUILDERS[name]() for name in arguments}))
        return
    for name, build in BUILDERS.items():
        path = Path(__file__).with_name(f"tile_{name}.json")
        path.write_text(json.dumps(build(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
