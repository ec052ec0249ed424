"""Faults that bring a server back with an older snapshot, a watched writer beside them, and a check that knows both.

Invalidations that were acknowledged after the snapshot are undone until the drain has replayed the outbox: reads may be
as old as the snapshot from the server's death to the end of the replay, from another process's memory for `l1_for`
longer, and no older.  What was acknowledged before the snapshot, and on the new server, holds for these reads too; all
others are checked like those of any other fault.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import redis
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from benchmarks.history import Invalidate, Operation, Read, Recorder, Stale, check
from cacheworkers import Cache
from cacheworkers.events import Event, InvalidationUndelivered
from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import wait_until

LASTS = 0.3
#: How much of the outbox is replayed, seconds; longer than any snapshot is old when its server comes back.
REPLAY_FOR = 30.0
ONCE, TWICE, DRAINLESS = (
    "store back with an older snapshot",
    "store back with it, and again",
    "store back with it, no drain at first",
)


class Base(DeclarativeBase):
    """The table."""


class Number(Base):
    """A version that only rises."""

    __tablename__ = "number"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]


class Versions:
    """The versions in a database; may be given to other processes, each of which connects for itself."""

    def __init__(self, url: str) -> None:
        self._url = url

    @functools.cached_property
    def engine(self) -> Engine:
        """Of this process."""
        return create_engine(self._url)

    @functools.cached_property
    def sessions(self) -> sessionmaker[Session]:
        """Of this process."""
        return sessionmaker(self.engine)

    def __getitem__(self, key: int) -> int:
        with self.sessions() as session:
            return session.get_one(Number, key).version

    def __reduce__(self) -> Any:
        return Versions, (self._url,)


class Undone(NamedTuple):
    """What was acknowledged after `snapshot` was undone from `killed` until `replayed`; `died` is its last death."""

    snapshot: float
    killed: float
    died: float
    replayed: float

    def concerns(self, read: Read, l1_for: float) -> bool:
        """Return whether a read may have seen what the snapshot brought back."""
        late = l1_for if read.tier == "l1" else 0.0
        return read.began - late <= self.replayed and (read.ended is None or read.ended >= self.killed)

    def has_lost(self, operation: Operation) -> bool:
        """Return whether this is an invalidation that the old server may have taken with it."""
        return (
            isinstance(operation, Invalidate)
            and operation.ended is not None
            and operation.ended > self.snapshot
            and operation.began < self.died
        )


def check_with_undone(history: Sequence[Operation], undone: Sequence[Undone], *, l1_for: float) -> list[Stale]:
    """Return what `check` finds, without reads that may have seen a snapshot and were no older than that allows."""
    found: list[Stale] = []
    allowed: dict[tuple[Undone, ...], set[Read]] = {}
    for stale in check(history, l1_for=l1_for):
        those = tuple(each for each in undone if each.concerns(stale.read, l1_for))
        if those and those not in allowed:
            left = [each for each in history if not any(one.has_lost(each) for one in those)]
            allowed[those] = {each.read for each in check(left, l1_for=l1_for)}
        if not those or stale.read in allowed[those]:
            found.append(stale)
    return found


class SnapshotFaults:
    """A server without an append-only file, its database, and a drain that can be stopped."""

    replicas = 0

    def __init__(self, store: Valkey, versions: Versions, new_cache: Callable[..., Cache], keys: int) -> None:
        """
        Args:
            new_cache: called with the store's URL, the versions and a hook.
            keys: how many there are.
        """
        self._store, self.versions, self._new_cache, self._keys = store, versions, new_cache, keys
        self.url = store.url
        self.undone: list[Undone] = []
        #: Kind of fault -> seconds from the server's answer until the outbox was replayed to it.
        self.replaced: dict[str, list[float]] = {}
        self.kinds: dict[str, Callable[[], Callable[[], object]]] = {
            kind: functools.partial(self._bring_back, kind) for kind in (ONCE, TWICE, DRAINLESS)
        }
        #: Reads that were as old as a snapshot, before the replay had ended.
        self.of_snapshots = 0
        self._recorder: Recorder | None = None
        self._stop, self._drain = threading.Event(), threading.Thread()

    def __enter__(self) -> Self:
        Base.metadata.create_all(self.versions.engine)
        with self.versions.sessions.begin() as session:
            session.add_all(Number(id=key, version=0) for key in range(self._keys))
        self._cache = self._new_cache(self.url, self.versions)
        self._cache.outbox.create(self.versions.engine)
        self._start_drain()
        # The first drain notes which server it is.
        wait_until(self._is_noted)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_drain()
        self._cache.close()
        self.versions.engine.dispose()

    def write_on(self, stop: threading.Event, path: str) -> None:
        """Change a key in a watched session; acknowledged is what the store took before the commit returned."""
        undelivered: list[Event] = []

        def hook(event: Event) -> None:
            if isinstance(event, InvalidationUndelivered):
                undelivered.append(event)

        cache = self._new_cache(self.url, self.versions, hook)
        sessions = sessionmaker(self.versions.engine)
        cache.watch(sessions, {Number: ["key:{id}"]}, columns={Number: ["id", "version"]})
        chance = random.Random(2)
        with Recorder(path) as self._recorder:
            while not stop.wait(0.02):
                before, began = len(undelivered), time.monotonic()
                with sessions.begin() as session:
                    row = session.get_one(Number, chance.randrange(self._keys))
                    row.version += 1
                    key, number = row.id, row.version
                if len(undelivered) == before:
                    self._recorder.invalidated(f"key:{key}", began, version=number)
        cache.close()

    def check(self, history: Sequence[Operation], *, l1_for: float) -> list[Stale]:
        """Return the reads that are too old, and count those that a snapshot made old."""
        found = check_with_undone(history, self.undone, l1_for=l1_for)
        self.of_snapshots = len(check(history, l1_for=l1_for)) - len(found)
        return found

    def _bring_back(self, kind: str) -> Callable[[], object]:
        """Kill the server some writes after a snapshot, and start it with that; return what waits for the replay."""
        snapshot = time.monotonic()
        with redis.Redis(port=self._store.port) as client:
            client.save()
        time.sleep(LASTS)
        if kind == DRAINLESS:
            self._stop_drain()
        killed = died = self._restart()
        if kind == TWICE:
            time.sleep(LASTS / 10)
            died = self._restart()
        began = time.monotonic()
        versions = self._all_versions()
        with self.versions.engine.connect() as connection:  # of all commits that made these versions
            last = connection.execute(select(func.max(self._cache.outbox.table.c.id))).scalar_one()

        def wait_for_the_replay() -> None:
            if kind == DRAINLESS:
                time.sleep(LASTS)
                self._start_drain()
            wait_until(lambda: self._is_replayed(last))
            replayed = time.monotonic()
            self.undone.append(Undone(snapshot, killed, died, replayed))
            self.replaced.setdefault(kind, []).append(replayed - began)
            assert self._recorder is not None
            for key, version in versions.items():
                self._recorder.invalidated(f"key:{key}", replayed, version=version)

        return wait_for_the_replay

    def _restart(self) -> float:
        """Kill the server and start it again; return when it was dead."""
        self._store.kill()
        died = time.monotonic()
        time.sleep(LASTS)
        self._store.start()
        return died

    def _is_replayed(self, last: int) -> bool:
        """Return whether the drain has seen the server that runs, and has delivered all rows up to one to it."""
        table = self._cache.outbox.table
        waiting = select(func.count()).where(table.c.id <= last, table.c.delivered_at.is_(None))
        if not self._is_noted():
            return False
        with self.versions.engine.connect() as connection:
            return not connection.execute(waiting).scalar_one()

    def _is_noted(self) -> bool:
        with redis.Redis(port=self._store.port, decode_responses=True) as client:
            return bool(client.get(f"{self._cache.config.namespace}:run") == client.info("server")["run_id"])

    def _all_versions(self) -> dict[int, int]:
        with self.versions.sessions() as session:
            return {row.id: row.version for row in session.scalars(select(Number))}

    def _start_drain(self) -> None:
        self._stop = threading.Event()
        self._drain = threading.Thread(target=self._cache.drain_until, args=(self._stop, self.versions.engine))
        self._drain.start()

    def _stop_drain(self) -> None:
        self._stop.set()
        self._drain.join()


@contextlib.contextmanager
def started(new_cache: Callable[..., Cache], keys: int) -> Iterator[SnapshotFaults]:
    """Start a server, which keeps the snapshots that it is asked for, and a database."""
    with Valkey() as store, Postgres() as postgres:
        with SnapshotFaults(store, Versions(postgres.create_database("faults")), new_cache, keys) as faults:
            yield faults
