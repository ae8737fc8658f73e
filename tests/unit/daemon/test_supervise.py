"""Supervision: order, readiness, what is restarted and what ends the daemon."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from blyand import supervise as supervise_module
from blyand.errors import StorageFault
from blyand.supervise import (
    Backoff,
    Service,
    ServiceExited,
    ServiceNotReady,
    leaves,
    supervise,
)


class Network(Exception):
    """A failure of the world."""


def run(*services: Service) -> list[BaseException]:
    """Supervise until it fails; return the leaves of what it raised."""
    try:
        trio.run(
            supervise, services, clock=trio.testing.MockClock(autojump_threshold=0)
        )
    except ExceptionGroup as group:
        return list(leaves(group))
    raise AssertionError("supervise returned")


async def steady(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


def test_services_start_in_order_each_ready_before_the_next() -> None:
    steps: list[str] = []

    def service(name: str) -> Service:
        async def body(*, task_status: trio.TaskStatus[None]) -> None:
            steps.append(f"{name} begins")
            await trio.sleep(1)
            steps.append(f"{name} ready")
            task_status.started()
            await trio.sleep_forever()

        return Service(name, body)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(supervise, [service("a"), service("b")])
            steps.append("all")
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert steps == ["a begins", "a ready", "b begins", "b ready", "all"]


def test_a_service_that_returns_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def brief(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    errors = run(Service("steady", steady), Service("brief", brief))
    assert [type(error) for error in errors] == [ServiceExited]
    assert "brief returned" in caplog.text and "BROKEN" not in caplog.text


def test_a_bug_is_logged_as_broken_and_stops(caplog: pytest.LogCaptureFixture) -> None:
    async def buggy(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(divide)
            await trio.sleep_forever()

    async def divide() -> None:
        raise ZeroDivisionError

    backoff = Service("buggy", buggy, Backoff(), (Network,))
    assert [type(error) for error in run(backoff)] == [ZeroDivisionError]
    assert caplog.text.count("BROKEN") == 1


def test_a_local_fault_stops_without_broken(caplog: pytest.LogCaptureFixture) -> None:
    async def full(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise StorageFault("the disk is full")

    assert [str(error) for error in run(Service("full", full))] == ["the disk is full"]
    assert "BROKEN" not in caplog.text


def test_the_world_is_retried_with_a_growing_delay_that_resets() -> None:
    began: list[float] = []

    async def dialer(*, task_status: trio.TaskStatus[None]) -> None:
        began.append(trio.current_time())
        task_status.started()
        if len(began) == 5:
            await trio.sleep(100)  # a healthy spell
        if len(began) == 7:
            raise ZeroDivisionError
        async with trio.open_nursery():  # arrives in a group
            raise Network("no route")

    backoff = Backoff(first_s=1, longest_s=4, healthy_s=60)
    errors = run(Service("dialer", dialer, backoff, (Network,)))
    assert [type(error) for error in errors] == [ZeroDivisionError]
    pauses = [round(b - a) for a, b in zip(began, began[1:])]
    assert pauses == [1, 2, 4, 4, 101, 2]


def test_a_group_with_one_unexpected_leaf_is_not_retried() -> None:
    async def mixed(*, task_status: trio.TaskStatus[None]) -> None:
        raise ExceptionGroup("", [Network(), ExceptionGroup("", [ValueError("bug")])])

    errors = run(Service("mixed", mixed, Backoff(), (Network,)))
    assert [type(error) for error in errors] == [Network, ValueError]


def test_a_service_that_is_never_ready_stops_the_daemon() -> None:
    async def silent(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    errors = run(Service("steady", steady), Service("silent", silent))
    assert [type(error) for error in errors] == [ServiceNotReady]
    assert str(supervise_module.READY_TIMEOUT_S) in str(errors[0])
