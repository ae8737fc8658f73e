"""Answers about peers: who is connected, how they behave, and whom we refuse."""

from __future__ import annotations

from collections.abc import Callable

import trio

from blyan_proto.errors import DecodeError
from blyan_proto.rpc import peer as spec
from blyan_proto.rpc.errors import (
    ADDRESS_INVALID,
    INVALID_PARAMS,
    PEER_INVALID,
    PEER_REFUSED,
    PEER_UNKNOWN,
    PEER_UNREACHABLE,
    RpcError,
)
from blyan_proto.rpc.parts import Hosted
from blyan_proto.types import Role, members
from blyand.clock import Clock
from blyand.errors import NoRoute, TooSlow
from blyand.inference.routes import Record
from blyand.net.address import peer_in
from blyand.net.connections import PeerInfo
from blyand.net.host import Host
from blyand.net.identity import public_key_of
from blyand.net.standing import PeerStanding
from blyand.protocols.meeting import Meeting, Met
from blyand.rpc.bind import Answers
from blyand.rules.model.model import layout_for
from blyand.rules.records import MODELS
from blyand.rules.view import View

MOST_MINUTES = 5_256_000  # ten years


def bind(
    answers: Answers,
    *,
    host: Host,
    meeting: Meeting,
    view: Callable[[], View],
    known: Callable[[str], Record],
    clock: Clock,
) -> None:
    """Bind peer.*. `known` tells how a peer answered expert calls."""

    @answers(spec.list_)
    async def peers(params: spec.ListPeers) -> spec.Peers:
        now = trio.current_time()
        return spec.Peers(
            peers=[
                peer_of(met, host.standing.of(peer), view(), known(peer), now)
                for peer, met in meeting.peers.items()
            ]
        )

    @answers(spec.connect)
    async def connect(params: spec.Connect) -> spec.Connected:
        try:
            if peer_in(params.address) == host.peer_id:
                raise RpcError(PEER_REFUSED, "that is this node's own address")
            told = host.standing.of(peer_in(params.address))
            if told.state == "banned":
                raise RpcError(
                    PEER_REFUSED,
                    f"{told.peer} is banned here: {last_of(told)}; "
                    f"`blyanctl peer unban {told.peer}` lets it back",
                )
            peer = await host.connect(params.address)
        except DecodeError as error:
            raise RpcError(ADDRESS_INVALID, str(error)) from error
        except (NoRoute, TooSlow) as error:
            raise RpcError(PEER_UNREACHABLE, str(error)) from error
        met = await _greeted(host, meeting, peer)
        if met is None:
            raise RpcError(
                PEER_REFUSED,
                f"{peer} answered, but is of another network or does not greet us",
            )
        return spec.Connected(peer_id=peer, address=met.info.address)

    @answers(spec.show)
    async def show(params: spec.ShowPeer) -> spec.PeerDetails:
        peer = checked(params.peer_id)
        here = {info.peer_id: info for info in host.peers()}
        told = host.standing.of(peer)
        if peer not in here and not told.reasons and not told.points:
            raise RpcError(
                PEER_UNKNOWN,
                f"{peer} is not connected and did nothing that is remembered; "
                "`blyanctl peer list` and `blyanctl peer bans` show who is known",
            )
        met = meeting.peers.get(peer)
        line = (
            peer_of(met, told, view(), known(peer), trio.current_time())
            if met
            else None
        )
        info = here.get(peer)
        around = host.standing.points_at(info.address) if info else 0.0
        answers = answers_of(known(peer), trio.current_time())
        return details_of(told, info, line, around, answers, clock.now_ms())

    @answers(spec.bans)
    async def bans(params: spec.ListBans) -> spec.Bans:
        now_ms = clock.now_ms()
        return spec.Bans(bans=[ban_of(told, now_ms) for told in host.standing.banned()])

    @answers(spec.ban)
    async def ban(params: spec.BanPeer) -> spec.Banned:
        peer = checked(params.peer_id)
        if peer == host.peer_id:
            raise RpcError(PEER_REFUSED, "that is this node itself")
        if not 1 <= params.minutes <= MOST_MINUTES:
            raise RpcError(INVALID_PARAMS, f"minutes: 1 to {MOST_MINUTES}")
        reason = params.reason or "no reason was given"
        host.standing.ban(peer, 60.0 * params.minutes, reason)
        await host.standing.flush()
        return spec.Banned(peer_id=peer, banned_for_s=60.0 * params.minutes)

    @answers(spec.unban)
    async def unban(params: spec.UnbanPeer) -> spec.Unbanned:
        peer = checked(params.peer_id)
        was = host.standing.of(peer).state
        host.standing.unban(peer)
        host.gossip.forgive(peer)
        await host.standing.flush()
        return spec.Unbanned(peer_id=peer, was=was)

    @answers(spec.disconnect)
    async def disconnect(params: spec.Disconnect) -> spec.Disconnected:
        peer = checked(params.peer_id)
        if all(info.peer_id != peer for info in host.peers()):
            raise RpcError(
                PEER_UNKNOWN,
                f"{peer} is not connected; `blyanctl peer list` shows who is",
            )
        await host.disconnect(peer)
        return spec.Disconnected(peer_id=peer)


def checked(peer_id: str) -> str:
    """Return a peer id that is one; RpcError otherwise."""
    try:
        public_key_of(peer_id)
    except DecodeError as error:
        raise RpcError(
            PEER_INVALID,
            f"{peer_id[:100]!r} is no peer id; copy one from `blyanctl peer list`",
        ) from error
    return peer_id


def last_of(told: PeerStanding) -> str:
    """Return the last thing that counted against a peer."""
    return told.reasons[-1].sentence if told.reasons else "the reason is forgotten"


def ban_of(told: PeerStanding, now_ms: int) -> spec.Ban:
    """Return a ban as declared."""
    return spec.Ban(
        peer_id=told.peer,
        banned_for_s=max(0.0, ((told.banned_until or 0) - now_ms) / 1000),
        bans=told.bans,
        error=told.reasons[-1].error if told.reasons else "",
        reason=last_of(told),
    )


def details_of(
    told: PeerStanding,
    info: PeerInfo | None,
    line: spec.Peer | None,
    address_points: float,
    answers: spec.ExpertAnswers,
    now_ms: int,
) -> spec.PeerDetails:
    """Return all about a peer: `info` if it is connected, `line` if it is greeted."""
    until = told.banned_until
    return spec.PeerDetails(
        peer_id=told.peer,
        state=told.state,
        score=round(told.points, 1),
        banned_for_s=None if until is None else max(0.0, (until - now_ms) / 1000),
        bans=told.bans,
        connected=info is not None,
        address=info.address if info else None,
        address_score=round(address_points, 1) if info else None,
        outbound=not info.inbound if info else None,
        connected_s=line.connected_s if line else None,
        latency_ms=line.latency_ms if line else None,
        software=line.software if line else None,
        roles=line.roles if line else [],
        region=line.region if line else None,
        finalised=line.finalised if line else None,
        hosted=line.hosted if line else [],
        answers=answers,
        reasons=[
            spec.Reason(
                age_s=max(0.0, (now_ms - reason.time_ms) / 1000),
                error=reason.error,
                points=reason.points,
                sentence=reason.sentence,
            )
            for reason in reversed(told.reasons)
        ],
    )


async def _greeted(host: Host, meeting: Meeting, peer: str) -> Met | None:
    """Wait for a peer's hello; None when it hangs up before, or takes too long."""

    async def hung_up() -> None:
        await host.wait_gone(peer)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hung_up)
        await meeting.greeted(peer)
        nursery.cancel_scope.cancel()
    return meeting.peers.get(peer)


def peer_of(
    met: Met, told: PeerStanding, view: View, known: Record, now: float
) -> spec.Peer:
    """Return one peer as declared. `now`: trio time."""
    greeting, answers = met.greeting, answers_of(known, now)
    return spec.Peer(
        peer_id=met.info.peer_id,
        address=met.info.address,
        outbound=not met.info.inbound,
        software=greeting.software,
        roles=role_names(greeting.roles),
        region=greeting.region,
        finalised=greeting.finalised,
        hosted=hosted_of(view, greeting.model, greeting.held),
        latency_ms=answers.median_ms,
        score=round(told.points, 1),
        state=told.state,
        calls=answers.calls,
        wrong=answers.wrong,
        connected_s=max(0.0, now - met.since),
    )


def answers_of(known: Record, now: float) -> spec.ExpertAnswers:
    """Return how a peer answered expert calls. `now`: trio time."""
    window = known.window(1)
    record = "proven" if known.proven else "none yet"
    return spec.ExpertAnswers(
        calls=known.answered,
        busy=known.busy,
        failed=known.failed,
        wrong=known.wrong,
        confirmed=known.right,
        record="left out" if known.out_until_s > now else record,
        median_ms=window.at(0.5) * 1e3 if window else None,
        slow_ms=window.at(0.9) * 1e3 if window else None,
    )


def role_names(bits: int) -> list[str]:
    """Return the names of role bits; bits that this version does not know are left out."""
    return [str(role.name).lower() for role in Role if bits & role]


def hosted_of(view: View, model: bytes | None, held: bytes) -> list[Hosted]:
    """Return the groups that a peer's bitmap names, as far as its model is known here."""
    record = MODELS.get(view, model) if model else None
    if record is None:
        return []
    groups = layout_for(record.model).groups
    names = [group.name for group in groups if group.index in members(held)]
    return [Hosted(model=record.model.name, groups=names)] if names else []
