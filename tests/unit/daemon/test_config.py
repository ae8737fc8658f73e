"""Options: precedence, sources, refusals in one sentence, generated files."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from blyand.config import (
    OPTIONS,
    Config,
    NetSection,
    load_config,
    reference,
    write_default_toml,
)
from blyand.errors import ConfigFault

ROOT = Path(__file__).parents[3]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_anything_every_option_has_its_default(tmp_path: Path) -> None:
    config = load_config(tmp_path / "absent.toml")
    assert config.net == NetSection() and config == Config(
        value_sources=dict.fromkeys(OPTIONS, "default")
    )


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = write(
        tmp_path / "config.toml",
        'net.listen = ["/a"]\nnet.region = "file"\nnet.max_peers = 9\nlog.json = true',
    )
    config = load_config(
        file,
        {"BLYAND_NET_LISTEN": "/b, /c", "BLYAND_NET_REGION": "env", "PATH": "/bin"},
        {"net.listen": ["/d"], "net.region": None},
    )
    assert config.net.listen == ("/d",)
    assert config.net.region == "env"
    assert config.net.max_peers == 9
    assert config.log.json is True
    assert config.value_sources["net.listen"] == "command line"
    assert config.value_sources["net.region"] == "environment BLYAND_NET_REGION"
    assert config.value_sources["net.max_peers"] == str(file)
    assert config.value_sources["log.level"] == "default"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("[net]\nlistn = []", "option net.listn is unknown; .* is net.listen"),
        ("[nett]\nlisten = []", r"section \[nett\] is unknown; .* is net"),
        ("net = 3", "write net as a section"),
        ('[net]\nlisten = "/a"', "net.listen is '/a', but must be a list of texts"),
        ("[net]\nlisten = [1]", "net.listen is 1, but must be texts only"),
        ("[net]\nmax_peers = true", "net.max_peers is True, .* a whole number"),
        ("[net]\nmax_peers = 0", "net.max_peers is 0, but must be 1 to 4096"),
        ('[node]\nroles = ["mine"]', "node.roles is 'mine', but must be learn or"),
        ('[log]\nlevel = "loud"', "log.level is 'loud', but must be debug or"),
        ("[net", "cannot read .*config.toml"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = write(tmp_path / "config.toml", text)
    with pytest.raises(ConfigFault, match=sentence) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("BLYAND_NET_LISTN", "/a", "nearest known one is BLYAND_NET_LISTEN"),
        ("BLYAND_NET_MAX_PEERS", "many", "BLYAND_NET_MAX_PEERS: .* a whole number"),
        ("BLYAND_NET_MAX_PEERS", "9" * 30, "but must be a whole number"),
        ("BLYAND_LOG_JSON", "maybe", "log.json is 'maybe', but must be true or false"),
    ],
)
def test_a_bad_environment_is_refused(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigFault, match=sentence):
        load_config(None, {name: text})


def test_the_environment_spells_every_kind() -> None:
    config = load_config(
        None,
        {
            "BLYAND_LOG_JSON": "1",
            "BLYAND_NET_MAX_PEERS": "12",
            "BLYAND_NET_BOOTSTRAP": "",
            "BLYAND_PASSPHRASE_FILE": "/run/secrets/key",
            "BLYAND_HOME": "/not/ours",
        },
    )
    assert config.log.json and config.net.max_peers == 12
    assert config.net.bootstrap == ()
    assert config.key.passphrase_file == "/run/secrets/key"


def test_the_written_file_sets_only_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_default_toml(path, {"net.listen": ("/x",), "log.json": False})
    assert tomllib.loads(path.read_text()) == {
        **{made.section: {} for made in OPTIONS.values()},
        "net": {"listen": ["/x"]},
        "log": {"json": False},
    }
    assert load_config(path).net.listen == ("/x",)
    every = "".join(
        f"{line.removeprefix('# ')}\n" if " = " in line else f"{line}\n"
        for line in path.read_text().splitlines()
    )
    path.write_text(every)
    assert set(load_config(path).value_sources.values()) == {str(path)}


def test_the_reference_is_fresh() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == reference(), "run: make docs"
