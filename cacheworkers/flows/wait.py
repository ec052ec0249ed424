"""Waiting: until a push wakes this reader, or time is up."""

from __future__ import annotations

from cacheworkers.core.driver import Flow
from cacheworkers.flows.ports import Ports
from cacheworkers.local.waiters import Flight, Waiter

#: While changes are not reported nobody is woken: waiters look again this often, seconds.
POLL_FOR = 0.05


class Wait:
    """A step: sleep until the waiter is woken; True if it was."""

    __slots__ = ("timeout", "waiter")

    def __init__(self, waiter: Waiter, timeout: float) -> None:
        self.waiter = waiter
        self.timeout = timeout

    def __repr__(self) -> str:
        return "wait"

    def run(self) -> bool:
        """Sleep, blocking this thread."""
        return self.waiter.wait(self.timeout)

    async def arun(self) -> bool:
        """Sleep on the running loop."""
        return await self.waiter.await_(self.timeout)


def wait_for_push(ports: Ports, waiter: Waiter, until: float) -> Flow[None]:
    """Wait to be woken, at most until a monotonic instant."""
    timeout = until - ports.clock.monotonic()
    if not ports.listener.is_up or not watch_load(ports, waiter.flight):
        timeout = min(timeout, POLL_FOR)
    yield Wait(waiter, max(timeout, 0.0))


def watch_load(ports: Ports, flight: Flight) -> bool:
    """Have the end of a flight's load reported, once, and return whether it will be.

    Called when its lease has become known, since some may sleep already; and before each sleep, since it was reported.
    """
    if not flight.token:
        return True  # what it waits for happens in this process
    mark = (flight.wakes, flight.token)
    if flight.watched != mark:
        if not ports.listener.watch(flight):
            return False
        flight.watched = mark
    return not flight.must_poll
