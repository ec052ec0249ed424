"""What happened: frozen records that every flow emits to one `Hook`.

Durations are seconds.  A hit in L1 makes no event: hits are counted where they happen, and reported in bulk.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

Outcome = Literal["stored", "refused", "conflict", "failed", "unstored", "left"]


class Event(msgspec.Struct, frozen=True):
    """Anything that happened."""


class Hook(Protocol):
    """Listens to events; must be quick, must not block, and may be called from any thread."""

    def __call__(self, event: Event, /) -> None: ...


class Served(Event, frozen=True):
    """A read returned a value, after waiting `waited` for it."""

    loader: str
    freshness: str
    tier: str
    age: float
    waited: float


class MemoryHits(Event, frozen=True):
    """L1 has answered this number of reads of a loader since the last such event."""

    loader: str
    reads: int


class MemoryUsed(Event, frozen=True):
    """What L1 holds now, and what it has dropped since the process began.

    Attributes:
        evictions: entries evicted to make room.
        unchanged_drops: entries dropped, and then filled with the same: the store's tracking table was too small.
    """

    entries: int
    bytes: int
    evictions: int
    unchanged_drops: int = 0


class ReadFailed(Event, frozen=True):
    """A read raised: LoadError, LoadTimeout, StoreUnavailable."""

    loader: str
    kind: str
    waited: float


class Loaded(Event, frozen=True):
    """One load of one call ended; `where` is "worker" or "reader".

    `error` says why it failed; its `__cause__` is what the loader raised.
    """

    loader: str
    call: str
    outcome: Outcome
    seconds: float
    attempts: int
    where: str
    error: Exception | None = None


class LeaseTakenOver(Event, frozen=True):
    """A reader took a lease over whose holder had not begun: workers are dead, or the queue is stuck."""

    loader: str
    call: str


class Published(Event, frozen=True):
    """One task message went out."""

    loader: str
    queue: str
    calls: int


class PublishFailed(Event, frozen=True):
    """One task message did not go out; its leases are given back."""

    loader: str
    queue: str
    calls: int
    error: str


class MalformedTask(Event, frozen=True):
    """A worker got a task message that it cannot read; it is dropped."""

    task: str
    reason: str


class TaskRequeued(Event, frozen=True):
    """A worker got loads of a version of a loader that it does not know: they go back to the queue for another worker.

    `requeues` is how often that has been done now.
    """

    loader: str
    queue: str
    calls: int
    requeues: int
    reason: str


class TaskDropped(Event, frozen=True):
    """A worker could not load what a task message asks for, because the store is away; the leases run out."""

    task: str
    calls: int
    error: str


class UnknownTask(Event, frozen=True):
    """A worker got loads of a loader that it does not know; their leases are given back."""

    name: str
    calls: int


class Poisoned(Event, frozen=True):
    """A call's loads kept dying with their worker; it is a cached failure now."""

    loader: str
    call: str
    attempts: int


class UnreadableEntry(Event, frozen=True):
    """An entry is foreign, of another version, or does not decode; read as a miss."""

    call: str
    reason: str


class OtherRelease(Event, frozen=True):
    """The entry of a call is of a release with another return type, parameters or tags: this process loads for itself.

    Once for each such entry and `fresh_for`.
    """

    loader: str
    call: str


class NotStored(Event, frozen=True):
    """A loaded value cannot be stored, because a tag is illegal or a limit is exceeded: it is served uncached."""

    loader: str
    call: str
    reason: str


class NamespaceShared(Event, frozen=True):
    """Another process uses this namespace with another database, or another module's loader of the same name.

    With both, this process is refused.
    """

    namespace: str
    mark: str
    others: tuple[str, ...]


class LoadRefused(Event, frozen=True):
    """A worker cannot load what another release asks for; the readers who wait are woken, and load for themselves."""

    loader: str
    calls: int
    reason: str


class Invalidated(Event, frozen=True):
    """An invalidation is acknowledged."""

    tags: tuple[str, ...]
    mode: str
    entries: int
    seconds: float


class UpkeepMissed(Event, frozen=True):
    """An upkeep task ran for the first time in `since` seconds, though beat should send it every `every`."""

    task: str
    since: float
    every: float


class Warmed(Event, frozen=True):
    """One round of warming of a loader's calls ended."""

    loader: str
    looked: int
    fresh: int
    asked: int
    held: int
    left: int = 0


class WarmingPaused(Event, frozen=True):
    """A round of warming asked for nothing: `misses` and `warm` messages wait for workers in these queues."""

    misses: int
    warm: int


class GarbageCollected(Event, frozen=True):
    """A garbage collection ended; one that ran out of time is not whole, and the next goes on where it stopped.

    `tag_sets` is how many it has looked at; `foreign` is how many keys it has passed over because they are of
    another type than ours.
    """

    members: int
    tag_sets: int
    entries: int
    seconds: float
    is_whole: bool = True
    foreign: int = 0


class ForeignKey(Event, frozen=True):
    """Garbage collection passed over a key of the namespace whose type is not ours: something else writes there."""

    key: str


class OutboxRelayed(Event, frozen=True):
    """A drain delivered rows of the outbox; `lag` is how old the oldest of them was."""

    rows: int
    tags: int
    lag: float


class InvalidationUndelivered(Event, frozen=True):
    """A transaction is committed, and the store did not take its invalidation: the drain will deliver its rows."""

    rows: int
    error: str


class Replayed(Event, frozen=True):
    """The store was restarted or replaced: what was delivered lately is delivered again."""

    rows: int


class StoreLost(Event, frozen=True):
    """A call to the store failed and its breaker opened."""

    error: str


class StoreBack(Event, frozen=True):
    """The store answers again."""


class ListenerUp(Event, frozen=True):
    """The listener receives invalidation messages; L1 may answer."""

    master: str


class ListenerDown(Event, frozen=True):
    """The listener lost its connection, or never got one; L1 is bypassed while the store answers."""

    master: str
    error: str


class ListenerLag(Event, frozen=True):
    """A ping's round trip on the listener's connection, and with it the longest an invalidation message may be late."""

    seconds: float
