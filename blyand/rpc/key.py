"""Answers about this node's key: which it is, and changing it."""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.rpc import key as spec
from blyan_proto.rpc.errors import KEY_REFUSED, RpcError
from blyan_proto.signing import SigningKey
from blyand.election.rotation import Rotation
from blyand.net.identity import peer_id_of
from blyand.rpc.bind import Answers
from blyand.rpc.ordering import Ordering
from blyand.rules.chain.validators import is_member
from blyand.rules.economy.rotation import ACCOUNTS
from blyand.rules.view import View

NOTE = (
    "the account, its money, its bond and its seats follow; the peer id does not: name "
    "the new one in the bootstrap lists of others. A validator votes with the old key "
    "until the set has the new one, so keep the home's files"
)


def bind(
    answers: Answers,
    *,
    keys: tuple[SigningKey, ...],
    rotation: Rotation,
    ordering: Ordering,
    view: Callable[[], View],
) -> None:
    """Bind key.*. `keys`: the current one first."""

    @answers(spec.show)
    async def show(params: spec.GetKey) -> spec.Held:
        current, *older = keys
        held = ACCOUNTS.get(view(), current.account)
        signing = [key.public for key in keys if is_member(view(), key.public)]
        return spec.Held(
            account=current.account,
            key=current.public,
            older=[key.public for key in older],
            peer_id=peer_id_of(current.public),
            rotations=held.rotations if held else 0,
            rotated_ms=held.time_ms if held else None,
            signs_as_validator=signing[0] if signing else None,
        )

    @answers(spec.rotate)
    async def rotate(params: spec.Rotate) -> spec.Rotated:
        block, new = await rotation.rotate()
        refused = await ordering.wait(block.id)
        if refused is not None:
            raise RpcError(KEY_REFUSED, f"the network refused it: {refused}")
        return spec.Rotated(
            block=block.id, key=new.public, peer_id=peer_id_of(new.public), note=NOTE
        )
