"""What happened: frozen records that every flow emits to one `Hook`.

Durations are seconds.  Hits in L1 make no event: they are counted where they happen, and read in bulk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Outcome = Literal["stored", "refused", "conflict", "failed", "left"]


class Event:
    """Anything that happened."""

    __slots__ = ()


class Hook(Protocol):
    """Listens to events; must be quick, must not block, and may be called from any thread."""

    def __call__(self, event: Event, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Served(Event):
    """A read returned a value, after waiting `waited` for it."""

    loader: str
    freshness: str
    tier: str
    age: float
    waited: float


@dataclass(frozen=True, slots=True)
class ReadFailed(Event):
    """A read raised: LoadError, LoadTimeout, StoreUnavailable."""

    loader: str
    kind: str
    waited: float


@dataclass(frozen=True, slots=True)
class Loaded(Event):
    """One load of one call ended; `where` is "worker" or "reader"."""

    loader: str
    call: str
    outcome: Outcome
    seconds: float
    attempts: int
    where: str


@dataclass(frozen=True, slots=True)
class ClaimDenied(Event):
    """A reader did not get the lease: "held", "moved" (a newer entry is there) or "backoff"."""

    loader: str
    reason: str


@dataclass(frozen=True, slots=True)
class TookOver(Event):
    """A reader took a lease over whose holder had not begun: workers are dead, or the queue is stuck."""

    loader: str
    call: str


@dataclass(frozen=True, slots=True)
class Published(Event):
    """One task message went out."""

    loader: str
    queue: str
    calls: int


@dataclass(frozen=True, slots=True)
class PublishFailed(Event):
    """One task message did not go out; its leases are given back."""

    loader: str
    queue: str
    calls: int
    error: str


@dataclass(frozen=True, slots=True)
class MalformedTask(Event):
    """A worker got a task message that it cannot read; it is dropped."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDropped(Event):
    """A worker could not load what a task message asks for, for want of the store; the leases run out."""

    task: str
    calls: int
    error: str


@dataclass(frozen=True, slots=True)
class UnknownTask(Event):
    """A worker got loads of a loader that it does not know; their leases are given back."""

    name: str
    calls: int


@dataclass(frozen=True, slots=True)
class Poisoned(Event):
    """A call's loads kept dying with their worker; it is a cached failure now."""

    loader: str
    call: str
    attempts: int


@dataclass(frozen=True, slots=True)
class UnreadableEntry(Event):
    """An entry is foreign, of another version, or does not decode; read as a miss."""

    call: str
    reason: str


@dataclass(frozen=True, slots=True)
class Invalidated(Event):
    """An invalidation is acknowledged."""

    tags: tuple[str, ...]
    mode: str
    entries: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Swept(Event):
    """A sweep ended."""

    members: int
    tag_sets: int
    entries: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StoreLost(Event):
    """A call to the store failed and its breaker opened."""

    error: str


@dataclass(frozen=True, slots=True)
class StoreBack(Event):
    """The store answers again."""


@dataclass(frozen=True, slots=True)
class ListenerUp(Event):
    """The listener hears pushes; L1 may answer."""

    master: str


@dataclass(frozen=True, slots=True)
class ListenerDown(Event):
    """The listener lost its connection; L1 is bypassed while the store answers."""

    master: str
    error: str


@dataclass(frozen=True, slots=True)
class ListenerLag(Event):
    """A ping's round trip on the listener's connection, and with it the longest a push may be late."""

    seconds: float


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """Never emitted to the hook that failed; logged."""

    error: str
