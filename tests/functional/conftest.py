"""A network that is not spared, shared by the modules that kill its nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.harness import Network, network

LAST = ("test_damage.py", "test_kills.py", "test_spans.py", "test_validators.py")


@pytest.fixture(scope="session")
def unspared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Four nodes with a model and a corpus; a test leaves all of them running."""
    with network(tmp_path_factory.mktemp("unspared") / "d", 4) as made:
        made.make_model()
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the two modules follow each other, so that no network waits idle."""
    items.sort(key=lambda item: item.path.name in LAST)
