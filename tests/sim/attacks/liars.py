"""What liars send: each attack makes the encoded tiles of one group from what it knows.

Liars know everything, the honest deltas of the round too, and agree among each other.
Sources: ALIE, Baruch et al. 2019; IPM, Xie et al. 2019; the rest is folklore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from blyan_proto.block.model import Codec, Run
from blyan_tile import compress
from blyan_tile.delta import choice_of, decode_group, encode_group
from blyan_tile.layout import Group

Values = list[np.ndarray]  # a group's change, by tile


@dataclass
class Scene:
    """What the liars see of one group in one round."""

    run: Run
    round: int
    group: Group
    honest: Mapping[int, Sequence[bytes]]  # encoded, by learner
    own: Mapping[int, Sequence[bytes]]  # what each liar would send if it were honest
    source: np.random.Generator
    before: dict[tuple[int, int], Sequence[bytes]] = field(default_factory=dict)

    @property
    def values(self) -> list[Values]:
        """The honest deltas, decoded."""
        return [decode_group(self.group, raw) for raw in self.honest.values()]

    def encoded(self, values: Values) -> list[bytes]:
        """Encode as the run wants it."""
        tiles = [tile.astype(np.float32) for tile in values]
        nothing = [None] * len(tiles)
        return encode_group(self.group, tiles, self.run, self.round, nothing)[0]


Attack = Callable[[Scene, int], Sequence[bytes] | None]  # liar -> its encoded tiles


def none(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """No attack."""
    return scene.own.get(liar)


def sign_flip(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """The opposite of an honest delta, of the same norm."""
    return _times(scene, liar, -1.0)


def scaling(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """The opposite, a hundred times as large."""
    return _times(scene, liar, -100.0)


def alie(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """A little is enough: as far from the mean as hides in the spread of the honest."""
    if not scene.honest:
        return None
    count, bad = len(scene.honest) + len(scene.own), len(scene.own)
    needed = count // 2 + 1 - bad
    share = (count - bad - needed) / (count - bad)
    reach = NormalDist().inv_cdf(min(0.99, max(0.01, share)))
    stacked = [np.stack(tiles) for tiles in zip(*scene.values)]  # (honest, …)
    return scene.encoded(
        [tile.mean(axis=0) - max(reach, 0.3) * tile.std(axis=0) for tile in stacked]
    )


def ipm(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """Inner product manipulation: against the honest mean, as large as the clip allows."""
    if not scene.honest:
        return None
    mean = [np.mean(tiles, axis=0) for tiles in zip(*scene.values)]
    usual = float(np.median([_norm(values) for values in scene.values]))
    factor = -usual / max(_norm(mean), 1e-30)
    return scene.encoded([tile * factor for tile in mean])


def ipm_apart(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """IPM with noise of half its norm, so that no liar looks like a copy of another."""
    raw = ipm(scene, liar)
    if raw is None:
        return None
    values = decode_group(scene.group, raw)
    noise = [scene.source.standard_normal(tile.shape) for tile in values]
    factor = 0.5 * _norm(values) / max(_norm(noise), 1e-30)
    return scene.encoded([x + factor * y for x, y in zip(values, noise)])


def random(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """Noise of the norm that is usual."""
    if not scene.honest:
        return None
    usual = float(np.median([_norm(values) for values in scene.values]))
    noise = [scene.source.standard_normal(tile.shape) for tile in scene.group.tiles]
    return scene.encoded([tile * (usual / _norm(noise)) for tile in noise])


def copycat(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """What an honest learner sent, as if it were its own; all liars copy the same one."""
    return next(iter(scene.honest.values()), None)


def disguised(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """A copy with a tenth of noise in it."""
    for raw in scene.honest.values():
        values = decode_group(scene.group, raw)
        noise = [scene.source.standard_normal(tile.shape) for tile in values]
        factor = 0.1 * _norm(values) / max(_norm(noise), 1e-30)
        return scene.encoded([x + factor * y for x, y in zip(values, noise)])
    return None


def stale(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """Its own delta of the round before, as if it were new."""
    place = (liar, scene.group.index)
    old = scene.before.get(place)
    if liar in scene.own:
        scene.before[place] = scene.own[liar]
    return old or scene.own.get(liar)


def free_rider(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """Nothing at all, said to be work."""
    if liar not in scene.own:
        return None
    return scene.encoded([np.zeros(tile.shape) for tile in scene.group.tiles])


def nan(scene: Scene, liar: int) -> Sequence[bytes] | None:
    """Numbers that are none, where the codec can say them; else an absurd scale."""
    made = []
    for tile in scene.group.tiles:
        codec, setting = choice_of(scene.run, tile.tensor_class, scene.round)
        if codec is Codec.DENSE or len(tile.shape) != 2:
            raw = bytes((Codec.DENSE, 0))
            made.append(raw + np.full(tile.shape, np.nan, "<f2").tobytes())
        else:
            huge = np.full(tile.shape, 2.0**90, np.float32)
            made.append(compress.encode(codec, setting, huge)[0])
    return made


def _times(scene: Scene, liar: int, factor: float) -> Sequence[bytes] | None:
    raw = scene.own.get(liar)
    if raw is None:
        return None
    return scene.encoded([tile * factor for tile in decode_group(scene.group, raw)])


def _norm(values: Values) -> float:
    return math.sqrt(sum(float(np.square(tile).sum()) for tile in values))


# Label flip is not here: it is an honest learner on other text (`Arena.flipped`).
ATTACKS: dict[str, Attack] = {
    "sign flip": sign_flip,
    "scaling": scaling,
    "ALIE": alie,
    "IPM": ipm,
    "IPM apart": ipm_apart,
    "label flip": none,
    "copycat": copycat,
    "disguised copy": disguised,
    "random": random,
    "NaN": nan,
    "stale": stale,
    "free rider": free_rider,
}
