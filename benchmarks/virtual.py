"""Processes, workers and a store in virtual time: the library's own flows, and no waiting.

What decides is the library's: its read, load, invalidate, report and warm flows, its L1, waiters and counts run as they
are.  Made up here are the clock, the seconds that a load takes, and the store, whose few commands answer as the scripts
in `cacheworkers/store/lua` do.  Reading and writing the store takes no time; a push takes `PUSH`, a message `MESSAGE`.
"""

from __future__ import annotations

import bisect
import functools
import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from cacheworkers.config import Config
from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import CacheworkersError
from cacheworkers.events import Loaded
from cacheworkers.flows import read as reading
from cacheworkers.flows.invalidate import invalidate_calls
from cacheworkers.flows.keep_warm import Queued, report_accesses, warm_round
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoaderSpec, Loading, LoadRequest, Ports
from cacheworkers.flows.read_state import ReadOptions, Wait
from cacheworkers.local.coherence import Coherence
from cacheworkers.local.flight import Flight
from cacheworkers.local.l1 import L1, MISSING
from cacheworkers.local.read_forecasts import Known
from cacheworkers.local.waiters import Waiter, Waiters
from cacheworkers.store.commands.replies import Begun, Claim, Claimed, Held, Moved, Registered, Snapshot

#: Seconds from a change in the store until a process has received it.
PUSH = 0.001
#: Seconds from an ask until a worker has it.
MESSAGE = 0.005
#: When virtual time begins; any instant that is later than every duration.
BEGIN = 1_000_000_000.0


def read_at_of(before: float | None, reads: int, now: float, half_life: float) -> float:
    """Return the `read_at` of a call after `reads` more reads now; `before` is the old one; as `add_accesses.lua`."""
    read_at = now + half_life * math.log2(reads)
    if before is None:
        return read_at
    younger, older = max(read_at, before), min(read_at, before)
    return younger + half_life * math.log2(1 + 2 ** ((older - younger) / half_life))


class World:
    """Virtual time, and what happens in it.

    Attributes:
        now: seconds.
        loading, most_loading: loads under way, and the most of them together.
        loads: call -> how many loads have begun.
        on_load: called with each call whose load begins, and when.
        queries: how many times a loader was called; a batch loader loads many with one.
    """

    def __init__(self, seed: int, load_time: Callable[[random.Random], float]) -> None:
        self.now = BEGIN
        self.chance = random.Random(seed)
        self.loading = self.most_loading = 0
        self.loads: Counter[str] = Counter()
        self.on_load: Callable[[str, float], object] = lambda call, now: None
        self.queries = 0
        self._load_time = load_time
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], object]]] = []

    def at(self, instant: float, act: Callable[[], object]) -> None:
        """Have something happen at an instant."""
        heapq.heappush(self._due, (instant, next(self._numbers), act))

    def every(self, seconds: float, act: Callable[[], object], first: float) -> None:
        """Have something happen again and again."""

        def again() -> None:
            act()
            self.at(self.now + seconds, again)

        self.at(self.now + first, again)

    def pass_until(self, instant: float) -> None:
        """Let time pass, and happen what is due until then."""
        due = self._due
        while due and due[0][0] <= instant:
            self.now, _, act = heapq.heappop(due)
            act()
        self.now = instant

    def load(self, calls: Sequence[str], done: Callable[[], object]) -> None:
        """Begin a load, and say when it is done."""
        self.loads.update(calls)
        for call in calls:
            self.on_load(call, self.now)
        self.queries += 1
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)

        def end() -> None:
            self.loading -= 1
            done()

        self.at(self.now + self._load_time(self.chance), end)

    def drive(self, flow: Flow[Any], done: Callable[[Any], object], value: Any = None) -> None:
        """Drive a flow as far as it goes without time passing, later on to its end; `done` gets result or error."""
        try:
            while True:
                step = flow.send(value)
                if isinstance(step, Wait) and isinstance(step.waiter, Waiter):
                    sleeper = _Sleeper(self, flow, done, step.waiter)
                    if step.waiter.register(sleeper) is not None:
                        self.at(self.now + step.timeout, sleeper.time_is_up)
                        return
                    value = True
                elif isinstance(step, _Load):
                    found = dict.fromkeys(step.calls, 0)
                    self.load(step.calls, lambda found=found: self.drive(flow, done, found))  # type: ignore[misc]
                    return
                else:
                    value = step.run()
        except StopIteration as stop:
            done(stop.value)
        except CacheworkersError as error:
            done(error)


class _Sleeper:
    """Where a flow sleeps; released by the library's waiters as the lock of a sleeping thread is."""

    def __init__(self, world: World, flow: Flow[Any], done: Callable[[Any], object], waiter: Waiter) -> None:
        self._world = world
        self._flow = flow
        self._done = done
        self._waiter = waiter
        self._is_up = False

    def release(self) -> None:
        """Get up: woken."""
        if not self._is_up:
            self._is_up = True
            self._world.at(self._world.now, self._go_on)

    def time_is_up(self) -> None:
        """Get up: slept long enough."""
        if not self._is_up:
            self._is_up = True
            self._waiter.flight.threads.pop(self, None)
            self._go_on()

    def _go_on(self) -> None:
        self._world.drive(self._flow, self._done, self._waiter.woken)


@dataclass(frozen=True, slots=True)
class _Load:
    """A step: run the loader for these calls."""

    calls: list[str]


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that has been done."""

    result: Any

    def run(self) -> Any:
        return self.result

    async def arun(self) -> Any:
        return self.result


@dataclass(slots=True)
class _Lease:
    token: str
    until: float
    fence: str = ""
    is_taken_over: bool = False
    is_warm: bool = False


class VirtualStore:
    """What the flows ask of a store, in a dictionary; calls have no tags, and loads do not fail."""

    #: A load's steps are separate, as on a Cluster.
    has_one_slot = False

    def __init__(self, world: World) -> None:
        self._world = world
        self.entries: dict[str, tuple[bytes, float]] = {}
        self.changed: Callable[[str], object] = lambda call: None
        self._leases: dict[str, _Lease] = {}
        self._seq = 0
        self._scores: dict[str, float] = {}
        self._known = Known()
        self._ranked: list[tuple[str, float]] = []
        self._max_scores = 0

    def raw(self, call: str) -> bytes | None:
        """Return the envelope that is there."""
        found = self.entries.get(call)
        return found[0] if found is not None and self._world.now < found[1] else None

    def get(self, call: str) -> _Done:
        return _Done(self.raw(call))

    def get_many(self, calls: Sequence[str]) -> _Done:
        return _Done([self.raw(call) for call in calls])

    heads = get_many

    def life(self, call: str) -> tuple[float, float] | None:
        """Return when the last entry was created, and until when it is or was fresh; None once it is dropped."""
        found = self.entries.get(call)
        head = envelope.head_of(found[0]) if found is not None else None
        return (head.created, head.fresh_until) if head is not None else None

    def claim(
        self,
        call: str,
        token: str,
        *,
        lease_for: float,
        seen: bytes,
        expected: str = "",
        heeds_backoff: bool = True,
        least_seq: int | None = None,
        is_last: bool = False,
        enqueue: object = None,
    ) -> _Done:
        return _Done(self._claim(call, token, lease_for, seen, expected))

    def offer(self, entry: Entry, lives: float) -> _Done:
        """Leave nothing to other processes' readers: they wait for the next load, as when the store is full."""
        return _Done(None)

    def claim_many(
        self,
        claims: Sequence[tuple[str, str, bytes]],
        *,
        lease_for: float,
        warms: bool = False,
    ) -> _Done:
        return _Done([self._claim(call, token, lease_for, seen, "", warms) for call, token, seen in claims])

    def _claim(self, call: str, token: str, lease_for: float, seen: bytes, expected: str, warms: bool = False) -> Claim:
        now = self._world.now
        lease = self._lease(call)
        if lease is not None and lease.token == token:
            return Claimed()
        if envelope.version_of(self.raw(call)) != seen:
            return Moved()
        is_expected = lease is not None and lease.token == expected
        if lease is not None:
            may_be_taken = is_expected or (lease.is_warm and not warms)
            if not may_be_taken or lease.fence or lease.is_taken_over:
                return Held(lease.token, bool(lease.fence), lease.is_taken_over, lease.until - now)
        self._leases[call] = _Lease(token, now + lease_for, is_taken_over=is_expected, is_warm=warms)
        return Claimed()

    def _lease(self, call: str) -> _Lease | None:
        lease = self._leases.get(call)
        return lease if lease is not None and self._world.now < lease.until else None

    def begin(
        self, calls: Sequence[tuple[str, str, str, bytes]], *, load_for: float, is_redelivered: bool = False
    ) -> _Done:
        return _Done([self._begin(call, token, fence, seen, load_for) for call, token, fence, seen in calls])

    def _begin(self, call: str, token: str, fence: str, seen: bytes, load_for: float) -> Begun | None:
        lease, raw = self._lease(call), self.raw(call)
        if lease is None:
            if envelope.version_of(raw) != seen:
                return None
        elif lease.token != token or lease.fence:
            return None
        self._leases[call] = _Lease(token, self._world.now + load_for, fence)
        return Begun(1, raw)

    def release(self, names: Sequence[tuple[str, str]]) -> _Done:
        mine = [call for call, name in names if (lease := self._lease(call)) and name in (lease.token, lease.fence)]
        for call in mine:
            del self._leases[call]
        return _Done(len(mine))

    def snapshot(self) -> _Done:
        return _Done(Snapshot(self._seq, self._world.now))

    def register(self, calls: Sequence[tuple[str, Sequence[str], float]], *, load_for: float) -> _Done:
        return _Done([Registered(0, self._world.now) for _ in calls])

    def write(self, entries: Sequence[tuple[Entry, str]]) -> _Done:
        stored = []
        for entry, fence in entries:
            lease = self._lease(entry.call)
            stored.append(lease is not None and lease.fence == fence)
            if stored[-1]:
                del self._leases[entry.call]
                self.put(entry)
        return _Done(stored)

    def put(self, entry: Entry) -> None:
        """Store an entry, whoever holds its lease."""
        self.entries[entry.call] = (envelope.pack(entry), entry.expires_at)
        self.changed(entry.call)

    def next_seq(self) -> _Done:
        self._seq = max(self._seq + 1, int(self._world.now * 1000))
        return _Done(self._seq)

    def drop(self, calls: Sequence[str]) -> _Done:
        there = [call for call in calls if self.entries.pop(call, None) is not None]
        for call in calls:
            self._leases.pop(call, None)
        for call in there:
            self.changed(call)
        return _Done(len(there))

    def add_accesses(
        self, loader: str, reads: Sequence[tuple[str, int]], *, half_life: float, most: int, warm_for: float
    ) -> _Done:
        scores, now = self._scores, self._world.now
        for call, count in reads:
            scores[call] = read_at_of(scores.get(call), count, now, half_life)
        if len(scores) > 1.1 * most:
            self._scores = dict(sorted(scores.items(), key=itemgetter(1), reverse=True)[:most])
        self._ranked, self._max_scores = [], most
        return _Done(len(self._scores))

    def count_read_since(self, loader: str, since: float) -> _Done:
        if not self._ranked:
            self._ranked = sorted(self._scores.items(), key=itemgetter(1), reverse=True)[: self._max_scores]
        return _Done(bisect.bisect_right(self._ranked, -since, key=lambda item: -item[1]))

    def known(self, loader: str) -> _Done:
        return _Done(self._known)

    def keep_known(self, loader: str, known: Known) -> _Done:
        self._known = known
        return _Done(None)

    def read_ats(self, loader: str, calls: Sequence[str]) -> _Done:
        return _Done([self._scores.get(call) for call in calls])

    def most_read(self, loader: str, first: int, most: int, since: float) -> _Done:
        if not self._ranked:
            self._ranked = sorted(self._scores.items(), key=itemgetter(1), reverse=True)[: self._max_scores]
        end = bisect.bisect_right(self._ranked, -since, key=lambda item: -item[1])
        return _Done(self._ranked[first : min(first + most, end)])


class _Clock:
    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.now

    monotonic = now


class _Listener:
    """Receives every push."""

    is_up = True

    def start(self) -> None: ...

    def watch(self, flight: Flight) -> bool:
        return True

    def barrier(self, timeout: float) -> _Done:
        return _Done(True)


@dataclass
class Workers:
    """Celery's part: a queue each for `miss`, `revalidate` and `warm`, and workers that load.

    Attributes:
        most: workers of each queue; 0 for as many as there is work.
        outcomes: what became of loads, by the library's own events.
    """

    world: World
    spec: LoaderSpec
    most: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    where: str = "worker"
    ports: Any = None

    def __post_init__(self) -> None:
        self._queues: dict[str, deque[list[LoadRequest]]] = {name: deque() for name in ("miss", "revalidate", "warm")}
        self._busy: Counter[str] = Counter()

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        """Take asks together: of a batch loader they are one message, of another one each."""
        size = len(asks) if self.spec.is_batch else 1
        for start in range(0, len(asks), max(1, size)):
            group = list(asks[start : start + size])
            self._queues[group[0].queue].append(group)
            self.world.at(self.world.now + MESSAGE, functools.partial(self._work, group[0].queue))
        return len(asks)

    def queued(self) -> Queued:
        """Return how many asks no worker has taken; those under way from a queue without limit are none."""
        return Queued(len(self._queues["miss"]), len(self._queues["warm"]))

    def note(self, event: Any) -> None:
        """Take an event."""
        if isinstance(event, Loaded):
            self.outcomes[event.outcome] += 1

    def step(self, loader: LoaderSpec, loading: Loading) -> Any:
        """Return the step that loads: this is a runner, too."""
        return _Load([call.text for call in loading.calls])

    def _work(self, queue: str) -> None:
        if not self._queues[queue] or (self.most and self._busy[queue] >= self.most):
            return
        group = self._queues[queue].popleft()
        self._busy[queue] += 1

        def done(result: Any) -> None:
            self._busy[queue] -= 1
            self._work(queue)

        self.world.drive(load(self.ports, self.spec, group, self), done)


class Process:
    """One web process: its L1, its waiters, its counts."""

    def __init__(self, world: World, store: VirtualStore, workers: Workers, spec: LoaderSpec, config: Config) -> None:
        self.world = world
        self.store = store
        self.workers = workers
        self.spec = spec
        coherence = Coherence()
        coherence.prove(float("inf"))
        self.l1, self.waiters = L1(config.l1_entries, config.l1_bytes), Waiters()
        self.ports = Ports(
            config=config,
            store=store,  # type: ignore[arg-type]  # answers what these flows ask
            listener=_Listener(),  # type: ignore[arg-type]
            clock=_Clock(world),  # type: ignore[arg-type]
            coherence=coherence,
            l1=self.l1,
            waiters=self.waiters,
            dispatcher=workers,
            reader=workers,
            worker=workers,
            emit=workers.note,
            release_soon=self._release,
            slow_loads=None,  # type: ignore[arg-type]  # every load begins
            chance=world.chance.random,
        )
        self.ports.access_counter.remember(spec.name, spec.policy, config.access_half_life)
        self.l1.on_gone = self.ports.access_counter.note_gone

    def read_through_store(self, call: Call, done: Callable[[Any], object]) -> Entry | None:
        """Read what L1 does not answer: the fresh entry, or None and `done` gets the Read, or the error, in time."""
        text = call.text
        is_known_missing = False
        if text not in self.waiters.flights:
            guard = self.l1.guard(text)
            raw = self.store.raw(text)
            is_known_missing = raw is None
            if raw is not None:
                found = reading.fresh_hit(self.ports, self.spec, text, raw, 0, _not_decoded)
                if found is not None:
                    entry, _, _, until = found
                    self.l1.fill(text, entry=entry, value=MISSING, until=until, guard=guard)
                    self.ports.access_counter.count(text)
                    return entry

        def keep(entry: Entry, value: Any, guard: int, until: float) -> None:
            self.l1.fill(text, entry=entry, value=MISSING, until=until, guard=guard)

        wanted = ReadOptions(_not_decoded, 0, self.spec.policy.wait_for, keep)
        flow = reading.read(self.ports, self.spec, call, wanted, is_known_missing=is_known_missing)
        self.world.drive(flow, done)
        return None

    def invalidate(self, call: str) -> None:
        """Drop an entry everywhere."""
        self.world.drive(invalidate_calls(self.ports, [call], "hard"), _nothing)

    def report_accesses(self) -> None:
        """Report to the store what was read."""
        self.world.drive(report_accesses(self.ports), _nothing)

    def warm(self) -> None:
        """Do one round of warming, as beat has it done."""
        loaders = {self.spec.name: self.spec}
        self.world.drive(warm_round(self.ports, loaders, lambda: _Done(self.workers.queued())), _nothing)

    def receive(self, call: str) -> None:
        """Take a push."""
        self.l1.drop(call)
        self.waiters.wake(call)

    def _release(self, call: str, name: str) -> None:
        self.store.release([(call, name)])
        self.waiters.wake(call)


def _not_decoded(payload: bytes) -> bytes:
    return payload


def _nothing(result: Read | CacheworkersError | Any) -> None:
    if isinstance(result, CacheworkersError):
        raise result


@dataclass
class System:
    """Web processes, workers and beat around one store."""

    world: World
    store: VirtualStore
    workers: Workers
    processes: list[Process]

    @classmethod
    def made(cls, world: World, spec: LoaderSpec, config: Config, *, processes: int, workers: int) -> System:
        """Return one that runs: pushes arrive, accesses are reported, and beat warms."""
        store, crew = VirtualStore(world), Workers(world, spec, workers)
        crowd = [Process(world, store, crew, spec, config) for _ in range(processes)]
        upkeep = Process(world, store, crew, spec, config)
        crew.ports = upkeep.ports

        def changed(call: str) -> None:
            for process in crowd:
                world.at(world.now + PUSH, functools.partial(process.receive, call))

        store.changed = changed
        if config.warm_interval:
            for at, process in enumerate(crowd):
                world.every(
                    config.access_report_interval,
                    process.report_accesses,
                    first=config.access_report_interval * (at + 1) / processes,
                )
            world.every(config.warm_interval, upkeep.warm, first=config.warm_interval)
        return cls(world, store, crew, crowd)
