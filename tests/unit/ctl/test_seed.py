"""The settings of the seed's run, and of the demo's on top of it, are what `train start` takes."""

from __future__ import annotations

from typing import Any

import pytest

from blyanctl import acts, demo, parser, seed


@pytest.mark.parametrize("settings", [seed.RECIPE, demo.TUNING])
def test_settings_can_be_typed(settings: dict[str, Any]) -> None:
    params = {**settings, "rounds": 16, "model": "demo"}
    argv = ["train", "start", *acts.options(params).split()]
    arguments = parser.build(argv).parse_args(argv)
    typed = parser.params_of(arguments, arguments.method)
    assert {name: typed[name] for name in params} == params
