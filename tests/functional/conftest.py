"""Which tests one worker of pytest-xdist takes: those that share a network."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from xdist.scheduler import LoadScopeScheduling

SHARED = "unspared"  # a package whose modules share one network


class ByNetwork(LoadScopeScheduling):
    """Gives the tests of one network to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePosixPath(nodeid.split("::")[0])
        return SHARED if path.parent.name == SHARED else path.name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByNetwork:
    """Schedule by networks. Only heard where this folder is named to pytest."""
    return ByNetwork(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest begin first."""
    items.sort(key=lambda item: item.path.parent.name != SHARED)
