"""Every option of a daemon, declared once: default, unit, bounds, help.

Order of precedence: default < config.toml < environment < command line. A part of the
daemon receives its own section and nothing else. Numbers on which nodes must agree are
no options: they stand in blyan_proto.constants or in the genesis. docs/config.md is
made from this file.
"""

from __future__ import annotations

import difflib
import json
import textwrap
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from blyand.errors import ConfigFault
from blyand.options import Option, Value, option
from blyand.sections import HttpSection, LogSection, NetSection, SyncSection


@dataclass(frozen=True)
class NodeSection:
    """What this node offers to the network."""

    roles: tuple[str, ...] = option(
        ("learn", "serve"),
        "What to do here: learn (train experts), serve (answer with them), validate "
        "(sign checkpoints while this node is in the set), archive (never prune).",
        choices=("learn", "serve", "validate", "archive"),
    )


@dataclass(frozen=True)
class KeySection:
    """The node's key, which is its identity and its account."""

    passphrase_file: str = option(
        "",
        "File with the passphrase of the key, mode 0600. Empty: <home>/passphrase.",
        unit="path",
        env="BLYAND_PASSPHRASE_FILE",
    )


@dataclass(frozen=True)
class StoreSection:
    """What this node keeps on its disk."""

    disk_mib: int = option(
        0,
        "Most that the home may take; 0: no limit. When it is used up, what may be pruned "
        "goes at once, then nothing new is kept.",
        unit="MiB",
    )


@dataclass(frozen=True)
class ComputeSection:
    """Processor and accelerator."""

    device: str = option(
        "auto", "Where tensors are computed: auto, cpu, cuda or cuda:N."
    )
    threads: int = option(
        0,
        "Threads of one tensor operation. 0: cores divided by daemons_on_host.",
        high=1024,
    )
    daemons_on_host: int = option(
        1, "Blyan daemons that share this machine.", low=1, high=1024
    )
    worker_nice: int = option(
        10,
        "Niceness of worker processes, so that training yields to serving. 20: they run "
        "only while a core is idle, and wait as long as others of this machine compute.",
        high=20,
    )


@dataclass(frozen=True)
class TrainingSection:
    """Learning; its numbers come from the run, not from here."""

    enabled: bool = option(
        True, "Take part in the runs this node joined. false: pause locally."
    )
    processes: int = option(
        0,
        "Processes that share each batch of the inner steps, each on its own CUDA device "
        "or on the processor. 0: one per CUDA device where compute.device is auto, else 1.",
        high=64,
    )
    edge: str = option(
        "auto",
        "Edges carry the deltas of a region to primaries in others. auto: be one where "
        "this node is drawn, and go by others. off: neither.",
        choices=("auto", "off"),
    )
    sharded: bool = option(
        False,
        "Experimental: each of these processes keeps only a part of every parameter and "
        "of the optimizer's state, for models that do not fit one device.",
    )
    least_percent: int = option(
        5,
        "Training stands still while this node computes answers, but for this part of "
        "the time. 100: it goes on beside them.",
        high=100,
    )


@dataclass(frozen=True)
class InferenceSection:
    """Serving."""

    memory_mib: int = option(
        0,
        "Memory for experts that are ready to serve, of the accelerator if there is one. "
        "0: half of it, divided by daemons_on_host.",
        unit="MiB",
    )
    cache_mib: int = option(
        0,
        "Memory for the keys and values of all answers under way; above it BUSY. "
        "0: an eighth of the machine's, divided by daemons_on_host.",
        unit="MiB",
    )
    allow_templates: tuple[str, ...] = option(
        (),
        "Chat templates of other people's models that may run here: blake3 of the text in "
        "hex, or all. Those of models that this node published always may.",
    )
    spans: str = option(
        "off",
        "Whole layers to hold and serve beyond what placement gives this node, so that "
        "a token passes them in one hop: layers like 0-3; auto: as many as memory_mib "
        "has room for, where fewest nodes have them; off. Placement stays as it is.",
    )
    replicate: bool = option(
        True,
        "Hold and serve copies of the experts that this node sees used most, as far as "
        "memory_mib, the disk and its tier allow; what nobody used for an hour goes.",
    )
    max_requests: int = option(
        64, "Requests of peers served at once; above it BUSY.", low=1, high=4096
    )
    numerics: str = option(
        "reference",
        "How peers are asked to compute. reference: float32 throughout. bf16, int8, int4: "
        "16 bits on the wire, weights of at least so many bits.",
        choices=("reference", "bf16", "int8", "int4"),
    )
    recipe: str = option(
        "f32",
        "How the weights of experts are held, where a request allows it: f32 (as stored, "
        "mapped), bf16, int8, int4. Smaller ones are faster and less exact.",
        choices=("f32", "bf16", "int8", "int4"),
    )
    lookup: int = option(
        7,
        "Tokens to guess at once, from what followed before in prompt and answer, where it "
        "pays; they are computed together, and the answer is the same. 0: none.",
        low=0,
        high=7,
    )
    slice_mib: int = option(
        0,
        "Experts at peers that take more than this in float32 are asked for in slices of "
        "at most this size, of several holders at once. 0: whole.",
        unit="MiB",
    )


@dataclass(frozen=True)
class RpcSection:
    """The control socket."""

    socket: str = option(
        "", "Unix socket for blyanctl. Empty: <home>/blyand.sock.", unit="path"
    )


@dataclass(frozen=True)
class Config:
    """All sections, and where each value came from ("net.listen" -> "default")."""

    node: NodeSection = NodeSection()
    key: KeySection = KeySection()
    net: NetSection = NetSection()
    store: StoreSection = StoreSection()
    compute: ComputeSection = ComputeSection()
    training: TrainingSection = TrainingSection()
    inference: InferenceSection = InferenceSection()
    sync: SyncSection = SyncSection()
    rpc: RpcSection = RpcSection()
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()
    value_sources: Mapping[str, str] = field(default_factory=dict)


def _declared() -> Iterator[Option]:
    for section in fields(Config):
        if isinstance(section.default, _SECTIONS):
            kinds = typing.get_type_hints(type(section.default))
            for made in fields(section.default):
                yield _option(section.name, made, kinds[made.name])


def _option(section: str, made: Field[Any], kind: Any) -> Option:
    assert made.default is not MISSING
    about = dict(made.metadata)
    about["env"] = about["env"] or f"BLYAND_{section}_{made.name}".upper()
    kind = typing.get_origin(kind) or kind
    return Option(section, made.name, kind, made.default, **about)


_SECTIONS = tuple(
    type(section.default)
    for section in fields(Config)
    if section.default is not MISSING
)
OPTIONS: dict[str, Option] = {made.key: made for made in _declared()}


def load_config(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """Return the configuration of a daemon.

    `file` may be missing; `flags` maps "section.name" to a typed value, None meaning
    not given. Raises ConfigFault, one sentence with the place and the remedy.
    """
    values: dict[str, Value] = {key: made.default for key, made in OPTIONS.items()}
    sources = dict.fromkeys(OPTIONS, "default")
    for key, value, where in (
        *_from_file(file),
        *_from_environment(environment or {}),
        *_from_flags(flags or {}),
    ):
        values[key], sources[key] = value, where
    sections: dict[str, Any] = {
        section.name: type(section.default)(
            **{
                name: values[f"{section.name}.{name}"]
                for name in (made.name for made in fields(section.default))
            }
        )
        for section in fields(Config)
        if isinstance(section.default, _SECTIONS)
    }
    return Config(**sections, value_sources=sources)


def _from_file(file: Path | None) -> Iterator[tuple[str, Value, str]]:
    if file is None or not file.exists():
        return
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigFault(f"cannot read {file}: {error}") from error
    sections = sorted({made.section for made in OPTIONS.values()})
    for section, table in tables.items():
        if section not in sections:
            raise _unknown(f"{file}: section [{section}]", section, sections)
        if not isinstance(table, dict):
            raise ConfigFault(f"{file}: write {section} as a section, [{section}]")
        for name, value in table.items():
            made = _find(f"{section}.{name}", str(file))
            yield made.key, made.check(value, str(file)), str(file)


def _from_environment(
    environment: Mapping[str, str],
) -> Iterator[tuple[str, Value, str]]:
    by_name = {made.env: made for made in OPTIONS.values()}
    prefixes = tuple({f"BLYAND_{made.section}_".upper() for made in OPTIONS.values()})
    for name, text in sorted(environment.items()):
        if name in by_name:
            where = f"environment {name}"
            yield by_name[name].key, by_name[name].parse(text, where), where
        elif name.startswith(prefixes):
            raise _unknown(f"environment variable {name}", name, by_name)


def _from_flags(flags: Mapping[str, object]) -> Iterator[tuple[str, Value, str]]:
    for key, value in flags.items():
        made = _find(key, "command line")
        if value is not None:
            yield key, made.check(value, "command line"), "command line"


def _find(key: str, where: str) -> Option:
    if key not in OPTIONS:
        raise _unknown(f"{where}: option {key}", key, OPTIONS)
    return OPTIONS[key]


def _unknown(what: str, given: str, known: Iterable[str]) -> ConfigFault:
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.0)
    return ConfigFault(f"{what} is unknown; the nearest known one is {near[0]}")


def write_default_toml(path: Path, values: Mapping[str, Value] | None = None) -> None:
    """Write a commented configuration file in which only `values` are set.

    `values` maps "section.name" to a value. Raises ConfigFault if the disk refuses.
    """
    chosen = {
        key: _find(key, str(path)).check(value, str(path))
        for key, value in (values or {}).items()
    }
    try:
        path.write_text(_toml(chosen))
        path.chmod(0o600)
    except OSError as error:
        raise ConfigFault(f"cannot write {path}: {error}") from error


def _toml(chosen: Mapping[str, Value]) -> str:
    lines = ["# Options of blyand. A line without # sets one; docs/config.md has more."]
    for section, doc, options in _sections():
        lines += ["", f"# {doc}", f"[{section}]"]
        for made in options:
            unit = f" ({made.unit})" if made.unit else ""
            lines += textwrap.wrap(
                made.help + unit, 86, initial_indent="# ", subsequent_indent="# "
            )
            mark = "" if made.key in chosen else "# "
            value = chosen.get(made.key, made.default)
            lines.append(f"{mark}{made.name} = {_spell(value)}")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return docs/config.md."""
    lines = [
        "# Configuration of blyand",
        "",
        "Made from `blyand/config.py` by `make docs`; do not edit.",
        "",
        "Order of precedence: default, then `<home>/config.toml`, then the environment,",
        "then the command line. `blyanctl node config` shows each value and its source.",
        "Lists in environment variables are separated by commas.",
    ]
    for section, doc, options in _sections():
        lines += ["", f"## [{section}]", "", doc, ""]
        lines += ["| option | default | allowed | environment | meaning |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for made in options:
            lines.append(
                f"| `{made.name}` | `{_spell(made.default)}` | {made.allowed} "
                f"| `{made.env}` | {made.help} |"
            )
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[str, str, list[Option]]]:
    for section in fields(Config):
        if isinstance(section.default, _SECTIONS):
            options = [
                made for made in OPTIONS.values() if made.section == section.name
            ]
            yield section.name, str(type(section.default).__doc__), options


def _spell(value: Value) -> str:
    """TOML and JSON spell these values alike."""
    return json.dumps(value)
