"""Amounts as people read them."""

import pytest

from blyan_proto.amounts import bly


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0 BLY"),
        (1, "0.000001 BLY"),
        (-1_500_000, "-1.5 BLY"),
        (1_234_500_000, "1,234.5 BLY"),
        (10**15 - 1, "999,999,999.999999 BLY"),
        (2**63 - 1, "9,223,372,036,854.775807 BLY"),
    ],
)
def test_amounts_are_exact(micro: int, text: str) -> None:
    assert bly(micro) == text
