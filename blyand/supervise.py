"""Services: long-lived tasks that start in order and may not end.

Strategy. A service that returns or fails stops the daemon, so that a supervisor
outside can start it afresh; only what the world breaks (a lost network) is tried
again, with a growing delay. Errors leave a nursery as groups, therefore every
decision is taken on the leaves of the group, never on its type.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from blyand.errors import DiskFull, LocalFault
from blyand.log import broken, context, fields

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60  # from the start of a service to its task_status.started()


class ServiceExited(Exception):
    """A service returned; services run until they are cancelled."""


class ServiceNotReady(Exception):
    """A service did not report ready in time."""


@dataclass(frozen=True)
class Backoff:
    """Delays between restarts: doubling, bounded, back to the first when healthy."""

    first_s: float = 1.0
    longest_s: float = 60.0
    healthy_s: float = 60.0  # a run this long forgets the failures before it


@dataclass(frozen=True)
class Service:
    """A named ``async def run(*, task_status)``, and what to do when it fails."""

    name: str
    run: Callable[..., Awaitable[None]]
    restart: Backoff | None = None  # None: its failure stops the daemon
    restart_on: tuple[type[Exception], ...] = ()  # failures of the world, not of ours


async def supervise(
    services: Sequence[Service],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Start `services` in order, each ready before the next; run until cancelled.

    Raises a group with what the first failing service raised: its own errors,
    ServiceExited or ServiceNotReady. The others are cancelled before that.
    """
    async with trio.open_nursery() as nursery:
        for service in services:
            with trio.move_on_after(READY_TIMEOUT_S) as patience:
                await nursery.start(_run_one, service, name=service.name)
            if patience.cancelled_caught:
                raise ServiceNotReady(
                    f"{service.name} was not ready within {READY_TIMEOUT_S} s"
                )
        task_status.started()


class _Readiness:
    """Passes the first started() on; a restarted service may say it again."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status: trio.TaskStatus[None] | None = status

    def started(self, value: None = None) -> None:
        status, self._status = self._status, None
        if status is not None:
            status.started(value)


async def _run_one(service: Service, *, task_status: trio.TaskStatus[None]) -> None:
    """Run a service for ever. The boundary where a bug of a service is named."""
    readiness = _Readiness(task_status)
    delay_s = service.restart.first_s if service.restart else 0.0
    with context(service=service.name):
        while True:
            began = trio.current_time()
            try:
                await service.run(task_status=readiness)
                raise ServiceExited(f"{service.name} returned")
            except (Exception, BaseExceptionGroup) as error:
                if not _is_worldly(service, error):
                    _report(error)
                    raise
                assert service.restart is not None
                if trio.current_time() - began >= service.restart.healthy_s:
                    delay_s = service.restart.first_s
                reason = "; ".join(str(leaf) or repr(leaf) for leaf in leaves(error))
            log.warning("restarts", extra=fields(delay_s=delay_s, reason=reason))
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, service.restart.longest_s)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions inside nested groups, or `error` itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _is_worldly(service: Service, error: BaseException) -> bool:
    """True if nothing but failures that the service may be restarted on is in there."""
    return service.restart is not None and all(
        isinstance(leaf, service.restart_on) for leaf in leaves(error)
    )


def _report(error: BaseException) -> None:
    for leaf in leaves(error):
        if isinstance(leaf, (LocalFault, DiskFull, ServiceExited)):
            log.error("stopped: %s", leaf)
        elif isinstance(leaf, Exception):
            broken(log, "a service failed", leaf)
