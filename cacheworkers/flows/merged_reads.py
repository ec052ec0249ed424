"""Merged reads: `merge_reads` drives the reads of one `get_many` side by side; they share what several need next.

Each is a read like any other, so that it serves, asks, waits and fails by the same rules.  Between them goes whoever
performs their steps: it lets all go on as far as they can, then does in one step what several stand before.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

import msgspec

from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.read_result import Read
from cacheworkers.errors import CacheworkersError, LoadTimeout, StoreUnavailable
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoaderSpec, Loading, LoadRequest, Ports, submit
from cacheworkers.flows.read_state import LoadStrategy, Wait
from cacheworkers.flows.run_loader import run_loader
from cacheworkers.flows.write_loaded import Result
from cacheworkers.local.flight import SLACK, Sleeper
from cacheworkers.local.waiters import Waiter
from cacheworkers.local.wakeup import NamedWaker, Wakeup
from cacheworkers.store.commands.steps import Exchange, Get

K = TypeVar("K")


class _Submit(msgspec.Struct, frozen=True):
    request: LoadRequest


class _Load(msgspec.Struct, frozen=True):
    request: LoadRequest


class _Run(msgspec.Struct, frozen=True):
    loading: Loading


class BatchedLoads(LoadStrategy):
    """The load strategy of reads that go on together: what it yields is answered by `merge_reads`, and is no step."""

    def message(self, ports: Ports, request: LoadRequest) -> None:
        """Return none: what several reads have claimed goes out as one message."""

    def submit(self, ports: Ports, request: LoadRequest) -> Flow[bool]:
        """Hand a request to the dispatcher, with those of the others."""
        is_taken: bool = yield from _ask_under_lease(ports, request, _Submit(request))
        return is_taken

    def load(self, ports: Ports, loader: LoaderSpec, request: LoadRequest) -> Flow[Result]:
        """Load here under the lease, with the others."""
        result: Result = yield from _ask_under_lease(ports, request, _Load(request))
        return result

    def run(self, ports: Ports, loader: LoaderSpec, loading: Loading) -> Flow[dict[str, Any]]:
        """Run the loader here, for the others too."""
        values: dict[str, Any] = yield cast(Step, _Run(loading))
        return values


BATCHED = BatchedLoads()


def merge_reads(
    ports: Ports, loader: LoaderSpec, keys: Iterable[K], one: Callable[[K], Flow[Read]]
) -> Flow[tuple[dict[K, Read], dict[K, CacheworkersError]]]:
    """Return what the read of each key found, and why those of the others failed.

    Args:
        one: makes the read of a key, of a call of this loader, by `BATCHED` means.
    """
    batch = _ReadBatch(ports, loader, {key: one(key) for key in keys})
    try:
        yield from batch.drive()
    finally:
        batch.close()
    return batch.found, batch.errors


class _Sleeper(msgspec.Struct):
    """One that waits for a push, until a monotonic instant; it is in `registered` until something wakes it."""

    waiter: Waiter
    until: float
    place: NamedWaker
    registered: dict[Sleeper, Waiter] | None = None

    def register(self) -> None:
        """Sleep; if it was woken since it last looked, return immediately."""
        self.registered = self.waiter.register(self.place)
        if self.registered is None:
            self.place.release()

    def unregister(self) -> None:
        """Stop sleeping: a wake from now on is for another."""
        if self.registered is not None:
            self.registered.pop(self.place, None)
            self.registered = None


class _ReadBatch(Generic[K]):
    """The reads, and the next step of each."""

    def __init__(self, ports: Ports, loader: LoaderSpec, reads: Mapping[K, Flow[Read]]) -> None:
        self._ports = ports
        self._loader = loader
        self._reads = reads
        self._most = ports.config.batch_size if loader.is_batch else 1
        self._wakeup = Wakeup()
        self._load_until = 0.0
        self._submits: dict[K, LoadRequest] = {}
        self._gets: dict[K, Get] = {}
        self._claims: dict[K, Exchange[Any]] = {}
        self._others: dict[K, Step] = {}
        self._loads: dict[K, LoadRequest] = {}
        self._runs: dict[K, Loading] = {}
        self._sleepers: dict[K, _Sleeper] = {}
        self.found: dict[K, Read] = {}
        self.errors: dict[K, CacheworkersError] = {}

    def drive(self) -> Flow[None]:
        """Let all reads go on to their ends.

        What takes long comes last: all that go on at all have then come as far as they can, and are part of it.
        """
        for key, read in self._reads.items():
            self._advance(key, functools.partial(next, read))
        while len(self.found) + len(self.errors) < len(self._reads):
            if self._submits:
                yield from self._submit()
            elif self._others:
                yield from self._one_step()
            elif self._gets:
                yield from self._get()
            elif self._claims:
                yield from self._claim()
            elif self._loads or self._runs:
                yield from self._load_here()
            else:
                yield from self._sleep()

    def close(self) -> None:
        """End what is left: leases are given back, and others woken in their place."""
        with contextlib.ExitStack() as stack:
            for read in self._reads.values():
                stack.callback(read.close)
            for sleeper in self._sleepers.values():
                sleeper.unregister()

    # -- one read

    def _advance(self, key: K, go: Callable[[], Any]) -> None:
        """Let a read go on to its next step, or to its end."""
        try:
            step = go()
        except StopIteration as stop:
            self.found[key] = stop.value
        except CacheworkersError as error:
            self.errors[key] = error
        else:
            self._sort_step(key, step)

    def _sort_step(self, key: K, step: Any) -> None:
        match step:
            case Wait(waiter=Waiter() as waiter):
                until = self._ports.clock.monotonic() + step.timeout
                sleeper = self._sleepers[key] = _Sleeper(waiter, until, NamedWaker(self._wakeup, key))
                sleeper.register()
            case Get():
                self._gets[key] = step
            case Exchange():
                self._claims[key] = step
            case _Submit():
                self._submits[key] = step.request
            case _Load():
                if not self._loads:
                    self._load_until = self._ports.clock.monotonic() + self._loader.load_for
                self._loads[key] = step.request
            case _Run():
                self._runs[key] = step.loading
            case _:
                self._others[key] = step

    def _send(self, key: K, found: Any) -> None:
        self._advance(key, functools.partial(self._reads[key].send, found))

    def _throw(self, keys: Mapping[K, Any], error: Exception) -> None:
        where = error.__traceback__
        for key in keys:
            # From where it came, for each: raised again and again, it would come from all of them.
            self._advance(key, functools.partial(self._reads[key].throw, error.with_traceback(where)))

    # -- workers and the store

    def _submit(self) -> Flow[None]:
        """Hand all requests to the dispatcher together, so that it groups them; those that a reader waits for first."""
        requests, self._submits = sorted(self._submits.items(), key=lambda item: item[1].queue != "miss"), {}
        taken = yield from submit(self._ports, [request for _, request in requests])
        for at, (key, _) in enumerate(requests):
            self._send(key, at < taken)

    def _get(self) -> Flow[None]:
        gets, self._gets = self._gets, {}
        joint = self._ports.store.get_many([get.call for get in gets.values()])
        yield from self._perform_together(gets, joint)

    def _claim(self) -> Flow[None]:
        claims, self._claims = self._claims, {}
        yield from self._perform_together(claims, Exchange.joint(list(claims.values())))

    def _perform_together(self, steps: Mapping[K, Step], joint: Step) -> Flow[None]:
        """Perform steps as one."""
        if len(steps) == 1:
            self._others.update(steps)
            return
        try:
            replies = yield joint
        except Exception as error:
            if isinstance(error, StoreUnavailable) and self._ports.store.link.is_cluster:
                self._others.update(steps)  # one master is away, perhaps; that is no matter of the others' readers
            else:
                self._throw(steps, error)
        else:
            for key, reply in zip(steps, replies, strict=True):
                self._send(key, reply)

    def _one_step(self) -> Flow[None]:
        """Perform one read's step by itself."""
        key = next(iter(self._others))
        step = self._others.pop(key)
        try:
            reply = yield step
        except Exception as error:
            self._throw({key: step}, error)
        else:
            self._send(key, reply)

    # -- loads here

    def _load_here(self) -> Flow[None]:
        """Load, while none of the others sleeps: one that is woken has to act immediately."""
        for sleeper in self._sleepers.values():
            sleeper.unregister()
        if self._loads:
            yield from self._load()
        else:
            yield from self._run()
        for sleeper in self._sleepers.values():
            sleeper.register()

    def _load(self) -> Flow[None]:
        """Load under leases: a whole batch, or one call; all of them under one deadline."""
        requests = {key: self._loads.pop(key) for key in list(self._loads)[: self._most]}
        try:
            if self._ports.clock.monotonic() >= self._load_until:
                calls = ", ".join(request.call for request in requests.values())
                raise LoadTimeout(f"{self._loader.load_for:g} s are over before {calls} could be loaded here")
            results = yield from load(
                self._ports, self._loader, list(requests.values()), self._ports.reader, until=self._load_until
            )
        except Exception as error:
            self._throw(requests, error)
        else:
            for key, request in requests.items():
                self._send(key, results[request.call])

    def _run(self) -> Flow[None]:
        """Run the loader and store nothing: for a whole batch, or for one call."""
        parts = {key: self._runs.pop(key) for key in list(self._runs)[: self._most]}
        calls = [call for part in parts.values() for call in part.calls]
        deadline = min(part.deadline for part in parts.values())
        newest = max(part.seq for part in parts.values())
        loading = Loading(calls, {call.text: None for call in calls}, deadline, newest)
        try:
            values = yield from run_loader(self._ports, self._loader, loading, self._ports.reader)
        except Exception as error:
            self._throw(parts, error)
        else:
            for key, part in parts.items():
                part.tags, part.fresh_for, part.unshared = loading.tags, loading.fresh_for, loading.unshared
                self._send(key, values)

    # -- waiting

    def _sleep(self) -> Flow[None]:
        """Wait until any of those who sleep is woken, or their time is up; those due about now get up together."""
        first = min(sleeper.until for sleeper in self._sleepers.values())
        until = max(sleeper.until for sleeper in self._sleepers.values() if sleeper.until <= first + SLACK)
        is_woken = yield Wait(self._wakeup, until - self._ports.clock.monotonic())
        due = {key: self._sleepers[key] for key in self._wakeup.woken_names() if key in self._sleepers}
        if not is_woken:
            due |= {key: sleeper for key, sleeper in self._sleepers.items() if sleeper.until <= until}
        for key, sleeper in due.items():
            sleeper.unregister()
            del self._sleepers[key]
        for key in due:
            self._send(key, True)


def _ask_under_lease(ports: Ports, request: LoadRequest, wish: Any) -> Flow[Any]:
    """Yield what is wanted under a lease, which is given back if it does not come to that."""
    try:
        found = yield cast(Step, wish)
    except BaseException:
        ports.release_soon(request.call, request.token)
        raise
    return found
