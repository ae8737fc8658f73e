"""The home: ours alone, locked, marked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blyand.errors import ConfigFault
from blyand.home import MARKER, create_home, open_home


def test_a_new_home_is_private_and_can_be_made_twice(tmp_path: Path) -> None:
    home = create_home(tmp_path / "deep" / "home")
    assert home.path.stat().st_mode & 0o777 == 0o700
    assert home.work.is_dir() and home.residuals.is_dir()
    home.config.write_text("")
    assert create_home(home.path) == home
    with open_home(home.path) as opened:
        assert opened == home
        assert home.lock.read_text() == f"{os.getpid()}\n"


def test_a_second_daemon_is_refused_by_name(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home")
    with open_home(home.path):
        with pytest.raises(ConfigFault, match=rf"\(pid {os.getpid()}\) uses"):
            with open_home(home.path):
                raise AssertionError
    with open_home(home.path):
        pass


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigFault, match="not empty and not a Blyan home"):
        create_home(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigFault, match="is not a Blyan home; make one"):
        with open_home(tmp_path):
            raise AssertionError
    with pytest.raises(ConfigFault, match="there is no home in"):
        with open_home(tmp_path / "absent"):
            raise AssertionError
    with pytest.raises(ConfigFault, match="cannot make a home"):
        create_home(tmp_path / "thesis.tex")


def test_a_home_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = create_home(tmp_path / "home")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(ConfigFault, match=f"belongs to user {me}"):
        with open_home(home.path):
            raise AssertionError
    with pytest.raises(ConfigFault, match=f"belongs to user {me}"):
        create_home(home.path)


def test_an_open_home_is_tightened_and_a_later_layout_refused(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home")
    home.path.chmod(0o755)
    with open_home(home.path):
        assert home.path.stat().st_mode & 0o777 == 0o700
    (home.path / MARKER).write_text("2\n")
    with pytest.raises(ConfigFault, match="has layout '2', this software reads 1"):
        with open_home(home.path):
            raise AssertionError
