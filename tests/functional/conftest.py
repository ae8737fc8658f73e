"""A network that is not spared, shared by the modules that kill its nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.harness import Network, network

SHARING = ("test_damage.py", "test_kills.py", "test_spans.py", "test_validators.py")


@pytest.fixture(scope="session")
def unspared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Four nodes with a model and a corpus; a test leaves all of them running."""
    with network(tmp_path_factory.mktemp("unspared") / "d", 4) as made:
        made.make_model()
        yield made


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every network have one worker of pytest-xdist, and the longest begin first."""
    items.sort(key=lambda item: item.path.name not in SHARING)
    for item in items:
        name = item.path.name
        group = "unspared" if name in SHARING else name
        item.add_marker(pytest.mark.xdist_group(group))
