"""What one read asks for, how far it has got, and the steps by which it waits and has its call loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry
from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT
from cacheworkers.core.signature import Call
from cacheworkers.flows.claim_ahead import ClaimAhead
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import Enqueue, LoaderSpec, Loading, LoadRequest, Ports, submit
from cacheworkers.flows.run_loader import run_loader
from cacheworkers.flows.write_loaded import Result
from cacheworkers.local.coalescing import Crowd
from cacheworkers.local.flight import Flight
from cacheworkers.local.waiters import Waiter
from cacheworkers.local.wakeup import Wakeup

#: While changes are not reported nobody is woken: waiters look again this often, seconds.
POLL_FOR = 0.05


class ReadOptions(msgspec.Struct, frozen=True):
    """What one read accepts.

    Attributes:
        decode: payload -> value.
        since: least sequence number; older entries count as missing.
        wait_for: seconds a miss waits for a worker.
        keep: called with entry, value, guard and the monotonic instant until which L1 may answer with it.
        fingerprint: of the loader that reads.
    """

    decode: Callable[[bytes], Any]
    since: int
    wait_for: float
    keep: Callable[[Entry, Any, int, float], None] | None = None
    fingerprint: bytes = NO_FINGERPRINT


class StoreResult(msgspec.Struct, frozen=True):
    """What a caller has found in the store, before the read registers as a waiter.

    Attributes:
        raw: the envelope, if there is one.
        guard, is_coherent: L1's guard and whether pushes were received, in this order, before the store was asked.
    """

    raw: bytes | None
    guard: int = 0
    is_coherent: bool = False


class LoadStrategy:
    """How a read has its call loaded: by itself, or in a subclass with the other reads of a `get_many`."""

    def message(self, ports: Ports, request: LoadRequest) -> Enqueue | None:
        """Return the message to enqueue with the claim; None: it is submitted once it is claimed."""
        return ports.message_of(request)

    def submit(self, ports: Ports, request: LoadRequest) -> Flow[bool]:
        """Hand a request to the dispatcher; False when there is no room: the caller gives the lease back."""
        return (yield from submit(ports, [request])) == 1

    def load(self, ports: Ports, loader: LoaderSpec, request: LoadRequest) -> Flow[Result]:
        """Load here, under the lease that the request names; raises what `flows.load.load` raises."""
        results = yield from load(ports, loader, [request], ports.reader)
        return results[request.call]

    def run(self, ports: Ports, loader: LoaderSpec, loading: Loading) -> Flow[dict[str, Any]]:
        """Run the loader here and store nothing; call text -> value or exception."""
        return (yield from run_loader(ports, loader, loading, ports.reader))


SINGLE = LoadStrategy()


class ReadState(msgspec.Struct):
    """How far a read has got.

    Attributes:
        seen: the version that was found and could not be served.
        lapsed: what to serve if its reload fails.
        lapsed_covers: how many followers had joined when that was looked up.
        give_up_at: monotonic; a lease that was taken over is waited for to its end, then no longer.
        is_answered: the store has answered this turn's look.
        has_looked: it has looked in the store since it is among the waiters, or knows of a waiter that has.
        has_asked, has_waited: it got the lease itself, once; it waited for a load that another had asked for.
        is_refused: a worker of another release has refused the load: it is claimed in spite of that, and done here.
        refused: the version of an entry that is for other reads, which have waited for its load.
        least_seq: the sequence when that was learnt; what was loaded since may be served although it was overtaken.
        least_covers: how many followers had joined then.
        payload: the JSON of the value it ends with.
    """

    call: Call
    options: ReadOptions
    waiter: Waiter
    started: float
    deadline: float
    strategy: LoadStrategy
    crowd: Crowd | None = None
    seen: bytes = b""
    lapsed: tuple[Entry, Any] | None = None
    lapsed_covers: int = 0
    give_up_at: float = 0.0
    is_answered: bool = False
    has_looked: bool = False
    has_asked: bool = False
    has_waited: bool = False
    is_refused: bool = False
    refused: bytes = b""
    least_seq: int | None = None
    least_covers: int = 0
    payload: bytes | None = None

    @property
    def is_joined(self) -> bool:
        """Whether its value is that of a load which another read has asked for."""
        return self.has_waited and not self.has_asked

    def claimed_ahead(self) -> ClaimAhead | None:
        """Return the claim that was sent for this read's crowd, once."""
        crowd = self.crowd
        if crowd is None or crowd.ahead is None:
            return None
        ahead: ClaimAhead = crowd.ahead
        crowd.ahead = None
        return ahead

    def cover(self) -> int:
        """Say to those who follow this read that it looks now."""
        return self.crowd.cover() if self.crowd is not None else 0


class Wait:
    """A step: sleep until one reader, or any of those that go on together, is woken; True if it was."""

    __slots__ = ("timeout", "waiter")

    def __init__(self, waiter: Waiter | Wakeup, timeout: float) -> None:
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
