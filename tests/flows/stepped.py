"""A reader's process of which everything goes on one step at a time, and every order of such steps.

Real are the flows, the store, the tracking connection, L1 and its gate.  Not real are the listener's thread,
whose work the test does reply by reply, and the time that passes without proof, which is taken from the gate's.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import math
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import hiredis
import msgspec
import pytest
from by_hand import StillTime

from cacheworkers import Cache, Load
from cacheworkers.core.entry import Freshness
from cacheworkers.flows.invalidate import Mode, invalidate_calls, invalidate_tags
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import Stepper

#: Seconds: far longer than any test takes, so that time passes only where a step says so.
L1_FOR = 600.0
ENTRIES = 3
How = Literal["sync", "async"]

_numbers = itertools.count(1)
_here = threading.local()


class _Missed(BaseException):
    """A look into memory alone: it would go to the store now."""


class _Gone(BaseException):
    """A read of what is not there ends: it would wait for a worker, and look again from the beginning."""


class Reading:
    """One read, in a thread of its own, held before each thing that it does to L1.

    Attributes:
        at: what it does next: "guard", "get" (the guard is taken), "track", "keep"; "" when it has ended.
    """

    def __init__(self, loader: Any, number: int, how: How) -> None:
        self.at = "begin"
        self.error: BaseException | None = None
        self._work = (lambda: loader.read(number)) if how == "sync" else (lambda: asyncio.run(loader.aread(number)))
        self._go, self._held = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()
        self._held.acquire()

    def step(self) -> None:
        """Let it do what is next."""
        self._go.release()
        self._held.acquire()
        if self.error is not None:
            raise self.error

    def hold(self, at: str) -> None:
        """Wait, in the read's own thread, until the test lets it go on."""
        self.at = at
        self._held.release()
        self._go.acquire()

    def _run(self) -> None:
        _here.reading = self
        try:
            self._work()
        except _Gone:
            pass
        except BaseException as error:
            self.error = error
        self.at = ""
        self._held.release()


class Promise(msgspec.Struct):
    """An acknowledged invalidation.

    Attributes:
        loaders: of which it was invalidated.
        link: which connection was to receive it, and by which of its replies; infinity if it had died unnoticed.
        at: monotonic instant of the acknowledgement.
        is_due: `l1_for` has passed since.
    """

    number: int
    version: int
    is_soft: bool
    loaders: tuple[str, ...]
    link: int
    position: float
    at: float
    is_due: bool = False


class Processes:
    """A reader's process, a writer's, the database and the link between them.

    Attributes:
        versions: the database: number -> version.
        price, label: loaders of the reader's with one tag in common; their value is the version.
    """

    def __init__(self, reader: Cache, writer: Cache, patch: pytest.MonkeyPatch) -> None:
        self._time = StillTime(patch, reader, writer)
        self.versions: dict[int, int] = {}
        self.loaders = {name: self._declared(reader, name) for name in ("price", "label")}
        for name in self.loaders:
            self._declared(writer, name)
        self.ports, self.others = reader._ports, writer._ports
        self._specs = writer._loaders
        for ports in (self.ports, self.others):
            ports.listener._thread = threading.current_thread()  # begins none of its own
        self.promises: list[Promise] = []
        self._readings: list[Reading] = []
        self._connection: Any = None
        self._queue: collections.deque[Any] = collections.deque()
        self._link, self._arrived, self._delivered, self._is_broken = 0, 0, 0, False
        self._filler = iter(range(10**9))
        self._hold_reads()

    def _declared(self, cache: Cache, name: str) -> Any:
        def version(load: Load, number: int) -> int:
            return self.versions[number]

        version.__name__ = name
        return cache.loader(tags=("product:{number}",), fresh_for=300, stale_for=300, jitter=0, early=0)(version)

    def _hold_reads(self) -> None:
        ports, l1 = self.ports, self.ports.l1
        guard, fill, claim, barrier = l1.guard, l1.fill, ports.store.claim, ports.listener.barrier
        track = ports.listener.track

        def held_guard(call: str) -> int:
            if not hasattr(_here, "reading"):
                raise _Missed
            hold("guard")
            mark = guard(call)
            hold("get")
            return mark

        def held_track(call: str, entry: Any) -> bool:
            hold("track")
            return track(call, entry)

        def held_fill(call: str, **entry: Any) -> Any:
            hold("keep")
            return fill(call, **entry)

        def revalidations_only(call: str, token: str, **options: Any) -> Any:
            if not options.get("seen"):
                raise _Gone
            return claim(call, token, **options)

        enter = ports.waiters.crowds.enter

        def entered(key: Any, *rest: Any) -> Any:
            """Each read looks for itself: whom it follows is no matter of memory's."""
            if not hasattr(_here, "reading"):
                raise _Missed
            return enter((key, _here.reading), *rest)

        ports.waiters.crowds.enter = entered  # type: ignore[method-assign]
        l1.guard, l1.fill = held_guard, held_fill  # type: ignore[method-assign]
        ports.listener.track = held_track  # type: ignore[method-assign]
        self.guard = guard
        ports.store.claim = revalidations_only  # type: ignore[method-assign]
        ports.release_soon = lambda call, token: None
        ports.dispatcher = _Nobody()
        ports.listener.barrier = lambda timeout: _Barrier(self, barrier(0.0))  # type: ignore[assignment,return-value]

    # -- a run

    def begin(self) -> int:
        """Return a product of its own, loaded into the store at version 1, while the link is up and L1 is empty."""
        self._time.begin()
        if self._connection is None or self._is_broken:
            self.notice()
            self.reconnect()
        self.ping()
        self.deliver_all()
        self.ports.l1.clear()
        self.promises.clear()
        number = next(_numbers)
        self.versions[number] = 1
        for name in self.loaders:
            self.load(name, number)
        self.deliver_all()
        return number

    def end(self, *numbers: int) -> None:
        """Let reads end, and remove what is stored."""
        for reading in self._readings:
            while reading.at:
                reading.step()
        self._readings.clear()
        client = self.others.store.link.client()
        for number in numbers:
            client.unlink(*client.keys(f"{self.others.store.keys.namespace}:*{number}*") or ["nothing"])
        self._collect()

    # -- steps of a reader

    def reading(self, name: str, number: int, how: How = "sync") -> Reading:
        """Begin a read; it stands before the guard."""
        self._time.go_on()
        reading = Reading(self.loaders[name], number, how)
        self._readings.append(reading)
        return reading

    def read(self, name: str, number: int) -> None:
        """Read, with nothing in between."""
        reading = self.reading(name, number)
        while reading.at:
            reading.step()

    def evict(self) -> None:
        """Keep so much else that nothing of what was there has room."""
        l1 = self.ports.l1
        [slot] = list(l1.slots.values())[:1] or [None]
        for _ in range(4 * ENTRIES if slot else 0):
            call = f"filler[{next(self._filler)}]"
            l1.fill(call, entry=slot.entry, value=0, until=math.inf, guard=self.guard(call))

    # -- steps of a writer

    def commit(self, number: int) -> None:
        """Change the database."""
        self._time.go_on()
        self.versions[number] += 1

    def invalidation(self, number: int, mode: Mode = "hard", *, by: str = "others") -> Stepper[Any]:
        """Return an invalidation of the product's tag."""
        return Stepper(invalidate_tags(getattr(self, by), [f"product:{number}"], mode))

    def invalidation_of_call(self, name: str, number: int) -> Stepper[Any]:
        """Return an invalidation of one call."""
        return Stepper(invalidate_calls(self.others, [f"{name}[{number}]"], "hard"))

    def go_on(self, flow: Stepper[Any], until: str = "") -> None:
        """Perform a flow's next step; with `until`, all that come before that one."""
        while flow.at and not (until and flow.at.startswith(until)):
            flow.step()
            self._collect()
            if not until:
                break
        if flow.error is not None:
            raise flow.error

    def finish(self, flow: Stepper[Any]) -> None:
        """Perform all that is left of a flow."""
        while flow.at:
            self.go_on(flow)

    def acknowledged(
        self, number: int, version: int, *, of: str = "", is_soft: bool = False, is_own: bool = False
    ) -> None:
        """Note that an invalidation of a version has returned."""
        position = math.inf if self._is_broken else self._arrived
        link = self._link if self._connection is not None else -1
        loaders = (of,) if of else tuple(self.loaders)
        now = time.monotonic()
        self.promises.append(Promise(number, version, is_soft, loaders, link, position, now, is_due=is_own))

    def load(self, name: str, number: int) -> None:
        """Load and store the product, as a worker does, whoever held the lease."""
        self._time.go_on()
        store, call, token = self.others.store, f"{name}[{number}]", secrets.token_hex(8)
        store.link.client().unlink(store.keys.lease(call))
        store.claim(call, token, lease_for=30).run()
        ask = LoadRequest(name, call, token, "", "miss")
        Stepper(load(self.others, self._specs[name], [ask], self.others.worker)).finish()
        self._collect()

    def lose(self, name: str, number: int) -> None:
        """Delete an entry by hand."""
        self.others.store.link.client().unlink(self.others.store.keys.entry(f"{name}[{number}]"))
        self._collect()

    # -- steps of the listener, and of the link

    @property
    def has_replies(self) -> bool:
        """Whether something has arrived that has not been processed, or is queued to be sent."""
        return bool(self._queue) or bool(
            self._connection is not None and not self._is_broken and self._connection._queue
        )

    @property
    def is_connected(self) -> bool:
        """Whether the listener believes that it is."""
        return self._connection is not None

    @property
    def is_broken(self) -> bool:
        """Whether nothing arrives any more, and nobody knows."""
        return self._is_broken

    def deliver(self) -> None:
        """Process one reply: a push, or an answer; if nothing has arrived, send what is queued."""
        if not self._queue:
            self.send()
            return
        self._delivered += 1
        listener = self.ports.listener
        listener._process(self._connection)
        listener._prove()

    def deliver_all(self) -> None:
        """Process all that has arrived."""
        while self.has_replies:
            self.deliver()

    def ping(self) -> None:
        """Send a ping."""
        self.ports.listener._ping([self._connection])
        self._collect()

    def send(self) -> None:
        """Send what is queued to be asked about."""
        self._connection.flush()
        self._collect()

    def break_link(self) -> None:
        """Let nothing arrive from now on."""
        self._is_broken = True

    def notice(self) -> None:
        """Lose the connection: what has arrived, and was not processed, is lost too."""
        self._queue.clear()
        self.ports.listener._lose(OSError("cut"))
        self._connection, self._is_broken = None, False

    def reconnect(self) -> None:
        """Connect; L1 answers again once the first ping has been answered."""
        listener = self.ports.listener
        listener._connect()
        [self._connection] = listener.connections
        self._connection.collect_for = math.inf  # what is made after the ping is sent when the test says so
        self._receive = self._connection.messages
        self._connection.messages = lambda: [self._queue.popleft()]
        self._link += 1
        self._arrived = self._delivered = 0
        self._collect()

    def pass_time(self) -> None:
        """Let `l1_for` pass without proof."""
        coherence, connection = self.ports.coherence, self._connection
        coherence.usable_at -= L1_FOR
        coherence.proven_at -= L1_FOR
        coherence._void_until -= L1_FOR
        if connection is not None:
            connection.proven_at = connection.proven_at and connection.proven_at - L1_FOR
            for ping in connection.pings:
                ping.sent -= L1_FOR
        for promise in self.promises:
            promise.is_due = True

    def _collect(self) -> None:
        """Receive what the store has sent so far, to be processed later."""
        if self._connection is None:
            return
        marker = secrets.token_bytes(8)
        self._connection.socket.sendall(hiredis.pack_command(("ECHO", marker)))
        while True:
            for reply in self._receive():
                if reply == marker:
                    return
                if not self._is_broken:
                    self._queue.append(reply)
                    self._arrived += 1

    # -- what must hold

    def check(self) -> None:
        """Look into memory: nothing there is older than what it has received, or should have."""
        for promise in self.promises:
            for name in promise.loaders:
                if not self._is_due(promise, f"{name}[{promise.number}]"):
                    continue
                loader = self.loaders[name]
                found = _in_memory(loader.read, promise.number)
                value = _in_memory(loader.get, promise.number)
                if found is None or (found.value >= promise.version and value in (None, found.value)):
                    continue
                assert promise.is_soft and found.freshness is not Freshness.FRESH, (
                    f"{name}[{promise.number}] is {found.value} in memory, {promise.version} was acknowledged"
                )

    def _is_due(self, promise: Promise, call: str) -> bool:
        if promise.is_due or self._connection is None or promise.link != self._link:
            return True
        if self.ports.coherence.proven_at > promise.at:
            return True
        # What was read before that change, and is kept after it, is being asked about.
        asked = [*self._connection._sent, *(each for _, on_replies in self._connection._queue for each in on_replies)]
        if any(isinstance(each, functools.partial) and call in each.args for each in asked):
            return False
        return self._delivered >= promise.position


def hold(at: str) -> None:
    """Hold the read that runs here, if one does."""
    reading: Reading | None = getattr(_here, "reading", None)
    if reading is not None:
        reading.hold(at)


def _in_memory(read: Callable[[int], Any], number: int) -> Any:
    try:
        return read(number)
    except _Missed:
        return None


class _Barrier:
    """A step: the barrier, with the listener's work done while it waits."""

    def __init__(self, processes: Processes, barrier: Any) -> None:
        self._runtimes = processes
        self._ping = barrier._ping

    def __repr__(self) -> str:
        return "barrier"

    def run(self) -> bool:
        pings = self._ping()
        self._runtimes._collect()
        self._runtimes.deliver_all()
        return pings is not None and all(ping.done() and ping.result() for ping in pings)


class _Nobody:
    """Takes asks, and does nothing about them."""

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        return len(asks)


class Step(msgspec.Struct):
    """What one of several does next, if it can."""

    run: Callable[[], None]
    is_possible: Callable[[], bool] = lambda: True


#: Sets a scene up; returns the steps of each actor, in its order, and what is called at the end.
SetUp = Callable[[], tuple[Sequence[Sequence[Step]], Callable[[], None]]]


def every_order(set_up: SetUp) -> Iterator[int]:
    """Run a scene once for every order of its actors' steps, and yield how many runs there were so far."""
    runs, prefix = 0, list[int]()
    while True:
        taken = _run(set_up, functools.partial(_by_prefix, prefix))
        runs += 1
        yield runs
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        prefix = [choice for choice, _ in taken]
        prefix[-1] += 1


def _by_prefix(prefix: Sequence[int], step: int, ready: int) -> int:
    return prefix[step] if step < len(prefix) else 0


def random_orders(set_up: SetUp, most: int, seed: int) -> None:
    """Run a scene in `most` orders of its actors' steps, drawn from a seed."""
    chance = random.Random(seed)
    for _ in range(most):
        _run(set_up, lambda _, ready: chance.randrange(ready))


def _run(set_up: SetUp, choose: Callable[[int, int], int]) -> list[tuple[int, int]]:
    """Run a scene once; return for each step which of how many actors took it.

    Args:
        choose: is given the number of the step and of the actors that can take it; returns which of them does.
    """
    actors, end = set_up()
    taken: list[tuple[int, int]] = []
    at = [0] * len(actors)
    try:
        while ready := [n for n, steps in enumerate(actors) if at[n] < len(steps) and steps[at[n]].is_possible()]:
            choice = choose(len(taken), len(ready))
            taken.append((choice, len(ready)))
            actor = ready[choice]
            actors[actor][at[actor]].run()
            at[actor] += 1
    finally:
        end()
    return taken
