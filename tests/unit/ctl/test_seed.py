"""The recipe of the seed is what `train start` takes."""

from __future__ import annotations

from blyanctl import parser, seed


def test_the_recipe_can_be_typed() -> None:
    params = {**seed.RECIPE, "rounds": seed.ROUNDS, "model": seed.PRESET}
    argv = ["train", "start", *seed.options(params).split()]
    arguments = parser.build(argv).parse_args(argv)
    typed = parser.params_of(arguments, arguments.method)
    assert {name: typed[name] for name in params} == params
