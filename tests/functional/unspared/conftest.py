"""A network that is not spared, shared by the modules that kill its nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.harness import Network, network


@pytest.fixture(scope="package")
def unspared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Four nodes with a model and a corpus; a test leaves all of them running."""
    with network(tmp_path_factory.mktemp("unspared") / "d", 4) as made:
        made.make_model()
        yield made
