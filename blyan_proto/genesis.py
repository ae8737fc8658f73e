"""The genesis: what a network is. Its id names the network in every hash and signature."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from blyan_proto.block.economy import Registration
from blyan_proto.codec import I64, U8, U16, U32, U64, Size, encode, message
from blyan_proto.constants import FORMAT_VERSION, MAX_VALIDATORS
from blyan_proto.digest import Domain, digest
from blyan_proto.settings import SETTINGS
from blyan_proto.types import Account, Hash
from blyan_proto.validators import Validator, ValidatorSet


@message
class Parameters:
    """Numbers that the nodes of one network share. Spans are of median chain time."""

    checkpoint_interval_ms: U32  # earliest time between two checkpoints with blocks
    idle_interval_ms: U32  # between two without (DEC-A12)
    checkpoint_blocks: U16  # most blocks in one checkpoint
    checkpoint_bytes: U32  # most block bytes in one checkpoint
    checkpoint_units: U32  # most execution units in one checkpoint
    expiry_span_ms: U64  # a block whose anchor is older is dropped (DEC-A1)
    liveness_span_ms: U64  # a node without heartbeat for longer is not live
    trust_span_ms: U64  # weak subjectivity (DEC-A11)
    retention_span_ms: U64  # payloads of finalised blocks (DEC-B9)
    work_bits: U8  # anti-spam work of a header
    replication: U8  # holders per expert group, unless the model says otherwise
    contributions_limit: U16  # most deltas listed in an update (DEC-B5)
    newcomer_share_ppm: U32  # summed weight of learners new to the network (DEC-B10)
    session_span_ms: U64  # longest session that pins a version (DEC-B8)


DEVNET = Parameters(
    checkpoint_interval_ms=250,
    idle_interval_ms=30_000,
    checkpoint_blocks=512,
    checkpoint_bytes=8 * 1024 * 1024,
    checkpoint_units=100_000,
    expiry_span_ms=3_600_000,
    liveness_span_ms=10_000,
    trust_span_ms=86_400_000,
    retention_span_ms=3_600_000,
    work_bits=8,  # 256 tries, a third of a millisecond
    replication=2,
    contributions_limit=256,
    newcomer_share_ppm=200_000,
    session_span_ms=600_000,
)


@message
class Balance:
    """What an account owns from the start."""

    account: Account
    micro: U64


@message
class Setting:
    """A number of a system that came after version 1 of the genesis."""

    name: Annotated[str, Size(1, 64)]
    value: I64


DEVNET_SETTINGS = (
    Setting("propose_timeout_ms", 1_000),
    Setting("round_growth_ms", 250),
    Setting("vote_timeout_ms", 500),
)


@message
class Genesis:
    """The first facts of a network."""

    version: U8
    name: Annotated[str, Size(1, 64)]
    salt: Hash  # 32 random bytes (DEC-A15)
    time_ms: U64
    parameters: Parameters
    validators: Annotated[tuple[Validator, ...], Size(1, MAX_VALIDATORS)]
    participants: Annotated[tuple[Registration, ...], Size(1, 256)]
    balances: Annotated[tuple[Balance, ...], Size(0, 256)]
    settings: Annotated[tuple[Setting, ...], Size(0, 256)] = ()  # by name, ascending

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(
                f"version {self.version}, this software speaks {FORMAT_VERSION}"
            )
        names = [setting.name for setting in self.settings]
        if names != sorted(set(names)):
            raise ValueError("settings are not ascending and distinct")
        if unknown := set(names) - set(SETTINGS):
            raise ValueError(f"this software does not know {min(unknown)!r}")
        for setting in self.settings:
            known = SETTINGS[setting.name]
            if not known.low <= setting.value <= known.high:
                raise ValueError(
                    f"{setting.name} is {setting.value}, not {known.low} to {known.high}"
                )
        owners = [balance.account for balance in self.balances]
        if len(set(owners)) != len(owners):
            raise ValueError("two balances of one account")
        keys = [participant.key for participant in self.participants]
        if len(set(keys)) != len(keys):
            raise ValueError("two registrations of one key")
        if self.setting("unbond_span_ms") <= self.parameters.trust_span_ms:
            raise ValueError(
                "bonds would be free before the trust span is over (DEC-A11)"
            )

    @property
    def id(self) -> bytes:
        """The network's name: 32 bytes."""
        return _id(self)

    @property
    def founders(self) -> ValidatorSet:
        """The set that signs the first checkpoints."""
        return ValidatorSet(self.validators)

    def setting(self, name: str) -> int:
        """Return a setting, or its default where this genesis does not name it."""
        return _settings(self.settings).get(name, SETTINGS[name].default)


@lru_cache(maxsize=8)  # rules ask for several in every block
def _settings(settings: tuple[Setting, ...]) -> dict[str, int]:
    return {setting.name: setting.value for setting in settings}


@lru_cache(maxsize=8)  # every block that comes is held against it
def _id(genesis: Genesis) -> bytes:
    return digest(Domain.GENESIS, encode(genesis))


MAX_GENESIS_BYTES = 1024 * 1024
