"""`blyand init`: a home with a configuration, an encrypted key and a genesis."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blyan_proto.block.economy import Hardware, Registration
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Genesis
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role
from blyand import genesis as genesis_file
from blyand import keystore
from blyand.config import Config, NodeSection, load_config, write_default_toml
from blyand.errors import ConfigFault
from blyand.finality.beacon import chain_of
from blyand.founding import Plan, found
from blyand.home import Home, create_home
from blyand.options import Value

FOUNDER_ROLES = (*NodeSection().roles, "archive")
SUPPLY_MICRO = 1_000_000 * 1_000_000  # what a network of one node starts with


@dataclass(frozen=True)
class Made:
    """What `init` made."""

    home: Home
    public: bytes
    account: bytes
    network: bytes
    registration: Registration  # what a founder hands over to be in a genesis


def initialise(
    path: Path,
    genesis: Path | None,
    options: Mapping[str, Value],
    force: bool,
) -> Made:
    """Make a home, or with `force` give an existing one another genesis.

    Without a genesis file the node begins a network of its own, and archives it: who
    joins later executes the chain from its start, and needs a node that has all of it.
    ConfigFault when the home is in use for another network, or is not a Blyan home.
    """
    if genesis is None:
        options = {"node.roles": FOUNDER_ROLES, **options}
    home = create_home(path)
    known = home.key.exists()
    if known and home.genesis.exists() and not force:
        raise ConfigFault(
            f"{path} is initialised already; --force replaces its genesis and keeps its key"
        )
    if known and home.database.exists() and any(home.database.iterdir()):
        raise ConfigFault(
            f"{path} holds blocks of a network; use another home for another network"
        )
    key = keystore.open(home) if known else keystore.create(home)
    if not home.config.exists():
        write_default_toml(home.config, options)
    config = load_config(home.config, {}, {})
    roles = role_bits(config.node.roles)
    founded = genesis_file.load(genesis) if genesis else _alone(key, config, roles)
    genesis_file.save(founded, home.genesis)
    founder = _registration(key, config, roles)
    return Made(home, key.public, key.account, founded.id, founder)


def hardware() -> Hardware:
    """Return what this machine claims about itself: processor only, before torch is up."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware(device="cpu", memory_bytes=pages, cores=os.cpu_count() or 1)


def role_bits(names: tuple[str, ...]) -> int:
    """Return the bits of role names as the configuration spells them."""
    return sum(int(Role[name.upper()]) for name in set(names))


def _registration(key: SigningKey, config: Config, roles: int) -> Registration:
    """Return what a founder is in a genesis as."""
    return Registration(
        version=FORMAT_VERSION,
        key=key.public,
        roles=roles,
        region=config.net.region,
        hardware=hardware(),
        bond_micro=0,
        beacon_tail=chain_of(key.secret).tail if roles & Role.VALIDATE else None,
    )


def _alone(key: SigningKey, config: Config, roles: int) -> Genesis:
    """Return the genesis of a node that begins a network, and so validates."""
    registration = _registration(key, config, roles | int(Role.VALIDATE))
    return found(Plan(balances={key.account: SUPPLY_MICRO}), [registration])
