"""What a watched transaction costs: `python -m benchmarks.outbox [--transactions 2000] [--fsync]`.

The same one-row update, committed: with a plain session; with a watched one, until the commit has returned and until
its tags are invalidated; and with a plain one followed by `cache.invalidate`, which is what a crash in between would
lose.  Taken in turns, in one run.  A second watch makes a tag of a column that is no key, which costs a look at the
row.  Statements are counted by Postgres itself.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cacheworkers import Cache, Config
from cacheworkers.testing import Postgres, Valkey

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    """The benchmark's tables."""


class Price(Base):
    """One row to change."""

    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
    group: Mapped[int]


class Took(NamedTuple):
    """The median of one way, seconds; its ratios to a plain change, and to one invalidated by hand."""

    name: str
    median: float
    of_plain: float
    of_both: float
    statements: int | None


class Ways:
    """The ways to change the row, each with how long it took, seconds."""

    def __init__(self, cache: Cache, engine: Engine) -> None:
        self._cache, self._engine = cache, engine
        self._number = 0
        # An `after_commit` of a session is too late: the watch's own, which invalidates, comes before all others.
        self._committed_at = 0.0
        self._do_commit = engine.dialect.do_commit
        setattr(engine.dialect, "do_commit", self._commit)  # noqa: B010  (an assignment is an error to mypy)
        self.took: dict[str, list[float]] = {}
        self._plain = self._sessions()
        self._keys, self._groups = self._sessions(), self._sessions()
        with self._plain.begin() as session:
            session.add(Price(id=1, amount=0, group=7))
        cache.watch(self._keys, {Price: ["price:{id}"]})
        cache.watch(self._groups, {Price: ["group:{group}"]})

    def all(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield each way once."""
        yield "plain", lambda: self._change("plain", self._plain)
        yield (
            "plain, then invalidate",
            lambda: self._change("plain, then invalidate", self._plain, lambda: self._cache.invalidate("price:1")),
        )
        yield "watched", lambda: self._change("watched", self._keys)
        yield "watched, a tag of another column", lambda: self._change("watched, a tag of another column", self._groups)

    def statements(self, way: Callable[[], None]) -> int:
        """Return how many statements Postgres executes for one change, without BEGIN and COMMIT."""
        count = text(
            "SELECT sum(calls) FROM pg_stat_statements JOIN pg_database ON oid = dbid "
            "WHERE datname = current_database() AND query ~ 'price|cacheworkers_outbox SET|INTO cacheworkers_outbox' "
            "AND query !~ 'delivered_at=|pg_stat'"
        )
        with self._engine.connect() as connection:
            before = connection.execute(count).scalar_one() or 0
            way()
            return int(connection.execute(count).scalar_one() - before)

    def _change(self, name: str, sessions: Sessions, after: Callable[[], object] = lambda: None) -> None:
        self._number += 1
        began = time.perf_counter()
        with sessions.begin() as session:
            session.get_one(Price, 1).amount = self._number
        after()
        self.took.setdefault(name, []).append(time.perf_counter() - began)
        if name == "watched":
            self.took.setdefault("watched, until committed", []).append(self._committed_at - began)

    def _sessions(self) -> Sessions:
        return sessionmaker(self._engine)

    def _commit(self, connection: Any) -> None:
        self._do_commit(connection)
        self._committed_at = time.perf_counter()


def measured(transactions: int, *, fsync: bool = False) -> list[Took]:
    """Return how long each way took, measured in turns."""
    with Valkey() as valkey, Postgres(fsync=fsync) as postgres:
        engine = create_engine(postgres.create_database("outbox"))
        cache = Cache(Config(redis_url=valkey.url, store_timeout=5.0))
        Base.metadata.create_all(engine)
        cache.outbox.create(engine)
        ways = Ways(cache, engine)
        counts = {}
        for name, way in ways.all():
            way()
            counts[name] = ways.statements(way)
        ways.took.clear()
        gc.disable()
        try:
            for _ in range(transactions):
                for _, way in ways.all():
                    way()
        finally:
            gc.enable()
        cache.close()
        engine.dispose()
    medians = {name: statistics.median(times) for name, times in ways.took.items()}
    plain, both = medians["plain"], medians["plain, then invalidate"]
    return [Took(name, each, each / plain, each / both, counts.get(name)) for name, each in medians.items()]


def main() -> None:
    """Measure in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, default=2000)
    parser.add_argument("--fsync", action="store_true", help="commits wait for the disk, as in production")
    options = parser.parse_args()
    found = measured(options.transactions, fsync=options.fsync)
    print(f"{options.transactions:,} transactions each, fsync {'on' if options.fsync else 'off'}")
    for way in found:
        print(
            f"{way.name:<34} median {1000 * way.median:.2f} ms, {way.of_plain:.2f}x of plain, {way.of_both:.2f}x of "
            f"plain, then invalidate{f'; {way.statements} statements' if way.statements is not None else ''}"
        )


if __name__ == "__main__":
    main()
