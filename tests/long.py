"""Tests that take minutes or a calm machine: `make soak` runs them, `make test` does not."""

from __future__ import annotations

import os

import pytest

long = pytest.mark.skipif(
    "BLYAN_LONG" not in os.environ, reason="long: `make soak` runs it"
)
