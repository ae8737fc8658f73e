"""The key at rest: sealed, private, never replaced, never quoted (KEY-01)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blyand import keystore
from blyand.errors import ConfigFault
from blyand.home import Home, create_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(tmp_path / "home")


def passphrase(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_key_survives_and_its_files_are_private(home: Home) -> None:
    key = keystore.create(home)
    assert keystore.open(home).secret == key.secret
    for path in (home.key, home.passphrase):
        assert path.stat().st_mode & 0o777 == 0o600
    raw = home.key.read_text()
    assert key.secret.hex() not in raw and key.public.hex() in raw
    assert sorted(path.name for path in home.path.iterdir() if path.is_file()) == [
        "blyan-home",
        "key",
        "passphrase",
    ]


def test_a_named_passphrase_file_is_used_instead(home: Home, tmp_path: Path) -> None:
    file = passphrase(tmp_path / "secret", "correct horse\n")
    key = keystore.create(home, file)
    assert not home.passphrase.exists()
    assert keystore.open(home, file).public == key.public
    passphrase(file, "correct horse")  # the line's end does not count
    assert keystore.open(home, file).public == key.public


def test_a_wrong_passphrase_is_one_sentence(home: Home, tmp_path: Path) -> None:
    keystore.create(home)
    wrong = passphrase(tmp_path / "wrong", "hunter2")
    with pytest.raises(ConfigFault, match="the passphrase does not open") as caught:
        keystore.open(home, wrong)
    assert "hunter2" not in str(caught.value)


def test_a_key_is_never_overwritten(home: Home) -> None:
    key = keystore.create(home)
    with pytest.raises(ConfigFault, match="never overwritten"):
        keystore.create(home)
    assert keystore.open(home).public == key.public


def test_every_change_of_the_file_is_noticed(home: Home) -> None:
    keystore.create(home)
    whole = json.loads(home.key.read_text())
    lies = {
        "version": 2,
        "kdf": "none",
        "log2_n": 40,
        "r": 9,
        "p": 2,
        "salt": "zz",
        "cipher": "none",
        "nonce": whole["nonce"][2:],
        "public": "02" + "11" * 32,
        "sealed": whole["sealed"][2:],
    }
    assert lies.keys() == whole.keys()
    for name, lie in lies.items():
        for changed in (
            {**whole, name: lie},
            {k: whole[k] for k in whole if k != name},
        ):
            home.key.write_text(json.dumps(changed))
            with pytest.raises(ConfigFault):
                keystore.open(home)
    for raw in (b"", b"[]", b"\xff", b"{}", b"0" * 5000):
        home.key.write_bytes(raw)
        with pytest.raises(ConfigFault):
            keystore.open(home)


def test_files_open_to_others_are_refused(home: Home, tmp_path: Path) -> None:
    keystore.create(home)
    home.key.chmod(0o640)
    with pytest.raises(ConfigFault, match="run: chmod 600"):
        keystore.open(home)
    home.key.chmod(0o600)
    home.passphrase.chmod(0o604)
    with pytest.raises(ConfigFault, match="passphrase file .* is open to others"):
        keystore.open(home)
    with pytest.raises(ConfigFault, match="cannot read the passphrase file"):
        keystore.open(home, tmp_path / "absent")
    with pytest.raises(ConfigFault, match="is empty"):
        keystore.open(home, passphrase(tmp_path / "empty", "\n"))


# The account keeps its name when its key changes (KEY-02)


def test_the_next_key_is_durable_before_it_is_used_and_belongs_to_the_account(
    home: Home,
) -> None:
    first = keystore.create(home)
    made = keystore.open_next(home)
    assert made.public != first.public and made.account == first.account
    assert keystore.open_next(home).public == made.public, "made once"
    assert home.next_key.stat().st_mode & 0o777 == 0o600
    assert made.secret.hex() not in home.next_key.read_text()
    assert keystore.open(home).public == first.public, "not in force yet"
    assert [key.public for key in keystore.versions(home)] == [first.public]


def test_a_promoted_key_is_current_and_older_ones_stay(home: Home) -> None:
    keys = [keystore.create(home)]
    for _ in range(3):
        keys.append(keystore.open_next(home))
        keystore.promote(home)
        assert not home.next_key.exists()
        assert keystore.open(home).public == keys[-1].public
    held = keystore.versions(home)
    assert [key.public for key in held] == [key.public for key in reversed(keys)]
    assert {key.account for key in held} == {keys[0].account}


def test_a_promotion_that_was_cut_short_is_done_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, following = keystore.create(home), keystore.open_next(home)

    def killed(*paths: object) -> None:
        raise OSError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(ConfigFault, match="new key in its place"):
            keystore.promote(home)
    assert keystore.open(home).public == first.public
    keystore.promote(home)
    assert [key.public for key in keystore.versions(home)] == [
        following.public,
        first.public,
    ]


def test_the_account_of_a_key_file_is_sealed_with_it(home: Home) -> None:
    keystore.create(home)
    keystore.open_next(home)
    file = json.loads(home.next_key.read_text())
    file["account"] = "00" * 20
    home.next_key.write_text(json.dumps(file))
    with pytest.raises(ConfigFault, match="does not open"):
        keystore.open_next(home)
    file["account"] = "00"
    home.next_key.write_text(json.dumps(file))
    with pytest.raises(ConfigFault):
        keystore.open_next(home)
