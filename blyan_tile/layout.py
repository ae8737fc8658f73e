"""How the parameters of a model are cut into groups and tiles.

The model block alone decides it, in integers, so every node numbers the same tiles the
same way. A tile never mixes two matrices: low rank exists only within one. DEC-B2,
docs/tile-layout.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod

import numpy as np

from blyan_proto.block.model import (
    Architecture,
    BiasKind,
    Model,
    QueryKeyNorm,
    RopeKind,
    RopeScaling,
    TensorClass,
)
from blyan_proto.constants import (
    MAX_GROUPS,
    MAX_TILE_ASPECT,
    MAX_TILE_ELEMENTS,
    MAX_TILES_PER_GROUP,
)
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import DecodeError, LimitExceeded

Shape = tuple[int, ...]

_BAND = 1024  # longest side of a tile; 1024 x 1024 = MAX_TILE_ELEMENTS
_THIN = _BAND // MAX_TILE_ASPECT  # a shorter side below it cannot be nearly square


@dataclass(frozen=True)
class Piece:
    """A block of one parameter; a vector counts as a matrix of one column."""

    parameter: str
    row0: int
    row1: int
    col0: int
    col1: int


@dataclass(frozen=True)
class Tile:
    """One tensor of a group: a block of a matrix, or the group's vectors end to end."""

    index: int  # within the group
    tensor_class: TensorClass
    shape: Shape  # (rows, columns) or (n,)
    pieces: tuple[Piece, ...]  # one, except for vectors


@dataclass(frozen=True)
class _Parameter:
    name: str
    shape: Shape
    tensor_class: TensorClass


@dataclass(frozen=True)
class Group:
    """The unit of placement, election, lease, signature and update."""

    index: int
    name: str  # "embed", "layer0.trunk", "layer0.router", "layer0.expert3"
    layer: int | None
    expert: int | None
    contents: tuple[_Parameter, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of their tiles."""
        return tuple(parameter.name for parameter in self.contents)

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Matrices in order, each cut row by row; then one tile of all vectors."""
        return tuple(_tiles(self.contents))

    @property
    def elements(self) -> int:
        """Number of parameters of the model that stand in this group."""
        return sum(prod(parameter.shape) for parameter in self.contents)


@dataclass(frozen=True)
class Layout:
    """All groups of a model, in the order that bitmaps and blocks count them."""

    groups: tuple[Group, ...]
    parameters: Mapping[str, Shape]

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def group_named(self, name: str) -> Group:
        """Return the group called `name`; KeyError if there is none."""
        return self._by_name[name]

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of the matrices inside the layers: no embeddings, no routers."""
        return tuple(
            parameter.name
            for group in self.groups
            for parameter in group.contents
            if parameter.tensor_class is TensorClass.MATRIX
        )

    @cached_property
    def expert_groups(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.expert is not None)

    @cached_property
    def shared_groups(self) -> tuple[Group, ...]:
        """Everything that is not an expert: every node holds these."""
        return tuple(group for group in self.groups if group.expert is None)


def layout_of(model: Model) -> Layout:
    """Return the layout of a model, which follows from its architecture.

    DecodeError for an architecture that makes no sense, LimitExceeded for one that has
    more groups or tiles than blocks can name; both before anything is built.
    """
    return laid_out(model.architecture)


def laid_out(shape: Architecture) -> Layout:
    """Return the layout of all models of one architecture. Errors of `layout_of`."""
    _check(shape)
    groups: list[Group] = []

    def add(
        name: str, layer: int | None, expert: int | None, *contents: _Parameter
    ) -> None:
        groups.append(Group(len(groups), name, layer, expert, contents))

    add("embed", None, None, *_embed(shape))
    for layer in range(shape.layers):
        prefix = f"layer{layer}"
        dense = layer in shape.dense_layers
        add(f"{prefix}.trunk", layer, None, *_trunk(shape, prefix, dense))
        if dense:
            continue
        add(f"{prefix}.router", layer, None, *_router(shape, prefix))
        for expert in range(shape.experts):
            name = f"{prefix}.expert{expert}"
            add(name, layer, expert, *_expert(shape, name))
    parameters = {
        parameter.name: parameter.shape
        for parameter in chain.from_iterable(group.contents for group in groups)
    }
    return Layout(tuple(groups), parameters)


def _check(shape: Architecture) -> None:
    for name in (
        "vocabulary layers width heads kv_heads head_width experts "
        "experts_per_token expert_width rope_base"
    ).split():
        if getattr(shape, name) < 1:
            raise DecodeError(f"a model with {name} 0")
    if shape.heads % shape.kv_heads:
        raise DecodeError("heads are not a multiple of kv_heads")
    if shape.experts_per_token > shape.experts:
        raise DecodeError("more experts per token than experts")
    if shape.head_width % 2:
        raise DecodeError("head_width is odd: positions turn pairs")
    if shape.shared_gate and not shape.shared_width:
        raise DecodeError("a gate of a shared expert without the expert")
    _check_dense(shape)
    if shape.rope is not None:
        _check_rope(shape.rope)
        if shape.rope_base == 1:
            raise DecodeError("rope scaling where no position turns")
    groups = 1 + shape.layers + shape.mixture_layers * (1 + shape.experts)
    if groups > MAX_GROUPS:
        raise LimitExceeded(f"{groups} groups, at most {MAX_GROUPS}")
    for contents in (
        _embed(shape),
        _trunk(shape, "", dense=False),
        *((_trunk(shape, "", dense=True),) if shape.dense_layers else ()),
        _router(shape, ""),
        _expert(shape, ""),
    ):
        tiles = sum(prod(_grid(p.shape)) for p in contents if len(p.shape) == 2)
        vectors = sum(p.shape[0] for p in contents if len(p.shape) == 1)
        if tiles + (vectors > 0) > MAX_TILES_PER_GROUP:
            raise LimitExceeded(
                f"{tiles} tiles for {contents[0].name} and its like, "
                f"at most {MAX_TILES_PER_GROUP}"
            )
        if vectors > MAX_TILE_ELEMENTS:
            raise LimitExceeded("the vectors of a group are more than a tile")


def _check_dense(shape: Architecture) -> None:
    dense = shape.dense_layers
    if any(left >= right for left, right in zip(dense, dense[1:])):
        raise DecodeError("dense_layers are not ascending")
    if bool(dense) != bool(shape.dense_width):
        raise DecodeError("dense_width goes with dense_layers, and only with them")
    if dense and dense[-1] >= shape.layers:
        raise DecodeError(f"a dense layer {dense[-1]} of {shape.layers}")
    if len(dense) == shape.layers:
        raise DecodeError("no layer has experts")


def _check_rope(rope: RopeScaling) -> None:
    """Refuse what would divide by zero, or carries numbers that its kind ignores."""
    kind = rope.kind
    if not rope.factor_ppb:
        raise DecodeError("rope scaling by 0")
    if kind is RopeKind.LINEAR:
        least = RopeScaling(kind, rope.factor_ppb)
    elif kind is RopeKind.LLAMA3:
        least = RopeScaling(
            kind, rope.factor_ppb, rope.original_context, rope.low_ppb, rope.high_ppb
        )
    else:
        least = rope
    if rope != least:
        raise DecodeError(f"{kind.name} rope scaling with numbers of another kind")
    if kind is not RopeKind.LINEAR:
        if not rope.original_context or not 0 < rope.low_ppb < rope.high_ppb:
            raise DecodeError(f"{kind.name} rope scaling without an ascending range")


def _embed(shape: Architecture) -> tuple[_Parameter, ...]:
    table = (shape.vocabulary, shape.width)
    head = _Parameter("head.weight", table, TensorClass.EMBEDDING)
    return (
        _Parameter("embed.weight", table, TensorClass.EMBEDDING),
        *(() if shape.tied_embeddings else (head,)),
        _Parameter("final_norm.weight", (shape.width,), TensorClass.VECTOR),
    )


def _trunk(shape: Architecture, prefix: str, dense: bool) -> tuple[_Parameter, ...]:
    queries = shape.heads * shape.head_width
    keys = shape.kv_heads * shape.head_width

    def matrix(name: str, rows: int, columns: int) -> _Parameter:
        full = f"{prefix}.attention.{name}.weight"
        return _Parameter(full, (rows, columns), TensorClass.MATRIX)

    def vector(name: str, length: int) -> _Parameter:
        return _Parameter(f"{prefix}.{name}", (length,), TensorClass.VECTOR)

    contents = [
        matrix("q", queries, shape.width),
        matrix("k", keys, shape.width),
        matrix("v", keys, shape.width),
        matrix("o", shape.width, queries),
    ]
    if dense:
        contents += _expert_of(shape.dense_width, shape.width, f"{prefix}.dense")
    elif shape.shared_width:
        contents += _expert_of(shape.shared_width, shape.width, f"{prefix}.shared")
        if shape.shared_gate:
            name, row = f"{prefix}.shared_gate.weight", (1, shape.width)
            contents.append(_Parameter(name, row, TensorClass.ROUTER))
    contents.append(vector("attention_norm.weight", shape.width))
    contents.append(vector("expert_norm.weight", shape.width))
    if shape.query_key_norm is not QueryKeyNorm.NONE:
        by_head = shape.query_key_norm is QueryKeyNorm.HEAD
        for name, length in (("q_norm", queries), ("k_norm", keys)):
            length = shape.head_width if by_head else length
            contents.append(vector(f"attention.{name}.weight", length))
    if shape.attention_bias is not BiasKind.NONE:
        for name, length in (("q", queries), ("k", keys), ("v", keys)):
            contents.append(vector(f"attention.{name}.bias", length))
    if shape.attention_bias is BiasKind.ALL:
        contents.append(vector("attention.o.bias", shape.width))
    return tuple(contents)


def _router(shape: Architecture, prefix: str) -> tuple[_Parameter, ...]:
    rows = (shape.experts, shape.width)
    return (_Parameter(f"{prefix}.router.weight", rows, TensorClass.ROUTER),)


def _expert(shape: Architecture, prefix: str) -> tuple[_Parameter, ...]:
    return _expert_of(shape.expert_width, shape.width, prefix)


def _expert_of(hidden: int, width: int, prefix: str) -> tuple[_Parameter, ...]:
    return (
        _Parameter(f"{prefix}.gate.weight", (hidden, width), TensorClass.MATRIX),
        _Parameter(f"{prefix}.up.weight", (hidden, width), TensorClass.MATRIX),
        _Parameter(f"{prefix}.down.weight", (width, hidden), TensorClass.MATRIX),
    )


def _grid(shape: Shape) -> tuple[int, int]:
    """Return into how many bands the rows and the columns of a matrix are cut."""
    rows, columns = shape
    if rows * columns <= MAX_TILE_ELEMENTS:
        return 1, 1
    short = min(rows, columns)
    # A thin matrix cannot be nearly square; then its tiles are at least full.
    limit = _BAND if short >= _THIN else MAX_TILE_ELEMENTS // short
    return -(-rows // limit), -(-columns // limit)


def _bands(length: int, count: int) -> Iterator[tuple[int, int]]:
    for index in range(count):
        yield index * length // count, (index + 1) * length // count


def _tiles(contents: Sequence[_Parameter]) -> Iterator[Tile]:
    index = 0
    for parameter in contents:
        if len(parameter.shape) != 2:
            continue
        down, across = _grid(parameter.shape)
        for row0, row1 in _bands(parameter.shape[0], down):
            for col0, col1 in _bands(parameter.shape[1], across):
                piece = Piece(parameter.name, row0, row1, col0, col1)
                size = (row1 - row0, col1 - col0)
                yield Tile(index, parameter.tensor_class, size, (piece,))
                index += 1
    vectors = [p for p in contents if len(p.shape) == 1]
    if vectors:
        pieces = tuple(Piece(p.name, 0, p.shape[0], 0, 1) for p in vectors)
        length = sum(p.shape[0] for p in vectors)
        yield Tile(index, TensorClass.VECTOR, (length,), pieces)


def split(group: Group, parameters: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the tiles of `group` as contiguous copies of its parameters, as stored."""

    def take(piece: Piece) -> np.ndarray:
        whole = parameters[piece.parameter]
        rows = whole[piece.row0 : piece.row1]
        return rows if whole.ndim == 1 else rows[:, piece.col0 : piece.col1]

    return [cut(tile, take) for tile in group.tiles]


def cut(tile: Tile, take: Callable[[Piece], np.ndarray]) -> np.ndarray:
    """Return a tile as a contiguous copy, in the dtype of what it is cut from.

    `take` gives the block of a piece: (rows, columns), of a vector (n,). ValueError when
    the vectors of one tile differ in dtype: a tile has one.
    """
    blocks = [take(piece) for piece in tile.pieces]
    if len({block.dtype for block in blocks}) > 1:
        raise ValueError("a tile of vectors of several dtypes")
    if len(tile.shape) == 1:
        return np.concatenate(blocks)
    return np.array(blocks[0], order="C")


def join(
    layout: Layout, group: Group, tiles: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the parameters of `group`, float32 and writable, put together from tiles.

    ValueError if the tiles are not the group's in number or shape.
    """
    if len(tiles) != len(group.tiles):
        raise ValueError(f"{len(tiles)} tiles for {group.name}, not {len(group.tiles)}")
    joined = {
        name: np.empty(layout.parameters[name], np.float32) for name in group.parameters
    }
    for tile, array in zip(group.tiles, tiles):
        if array.shape != tile.shape:
            raise ValueError(f"a tile of {array.shape}, not {tile.shape}")
        start = 0
        for piece in tile.pieces:
            if len(tile.shape) == 1:
                stop = start + piece.row1 - piece.row0
                joined[piece.parameter][piece.row0 : piece.row1] = array[start:stop]
                start = stop
            else:
                block = np.s_[piece.row0 : piece.row1, piece.col0 : piece.col1]
                joined[piece.parameter][block] = array
    return joined


def group_root(tile_roots: Sequence[bytes]) -> bytes:
    """Return the name of one version of a group: over its weights' roots in order."""
    return digest(Domain.GROUP, *tile_roots)
