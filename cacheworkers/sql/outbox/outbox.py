"""Outbox: what was changed, written in the transaction that changed it, so that no invalidation is ever lost.

The row is the promise; the invalidation right after the commit only makes it quick.  A process that dies in between,
or a store that is down, leaves the row to the drain, which delivers it at least once.  See "Transactional outbox",
C. Richardson, Microservices Patterns, 2018.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    inspect,
    select,
    update,
)

from cacheworkers.errors import ConfigError

TABLE = "cacheworkers_outbox"
#: Who wrote a row: a watched session, which delivers it itself, or a trigger, for whom the drain does.  A replay puts a
#: mark of its own there: whoever has invalidated the row before must not mark it delivered any more.
WATCH, TRIGGER = "watch", "trigger"
#: How long a watched session's row is left to the process that wrote it, seconds.
GRACE = 2.0
#: Rows of one step of the drain.
BATCH = 100


class Delivery(msgspec.Struct, frozen=True):
    """Rows that were claimed together.

    Attributes:
        ids: the rows.
        tags: all their tags, each once.
        sources: what their sources were.
        lag: how old the oldest row is, seconds.
    """

    ids: tuple[int, ...]
    tags: tuple[str, ...]
    sources: tuple[str, ...]
    lag: float


class Backlog(NamedTuple):
    """What waits in the outbox: how many rows, and how old the oldest is, seconds."""

    rows: int
    oldest_age: float


class Outbox:
    """The table, and what is done with it."""

    def __init__(self, namespace: str, name: str = TABLE) -> None:
        self.namespace = namespace
        self.metadata = MetaData()
        self.table = Table(
            name,
            self.metadata,
            Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
            Column("namespace", String(32), nullable=False),
            Column("source", String(8), nullable=False),
            # Tags hold no control characters, so that one separates them.
            Column("tags", Text, nullable=False),
            Column("written_at", DateTime(timezone=True), nullable=False, server_default=func.current_timestamp()),
            Column("delivered_at", DateTime(timezone=True)),
        )
        column = self.table.c.delivered_at
        # Each row is in one of them: an insert pays for one, and a delivery for the other.
        Index(f"{name}_waiting", self.table.c.namespace, self.table.c.id, postgresql_where=column.is_(None))
        Index(f"{name}_delivered", column, postgresql_where=column.is_not(None))
        self._inserts: dict[tuple[str, str], tuple[str, Sequence[str] | None]] = {}

    def create(self, engine: Engine) -> None:
        """Create the table, if it is not there; with Alembic, use `metadata` instead."""
        self.metadata.create_all(engine)

    def check(self, bind: Engine | Connection) -> None:
        """Make sure that the table is there, with all its columns.

        Raises:
            ConfigError: it is not; found out now, not at the first commit.
        """
        name = self.table.name
        found = inspect(bind)
        url = bind.engine.url
        advice = "create it with cache.outbox.create(engine), or migrate with cache.outbox.metadata"
        if not found.has_table(name):
            raise ConfigError(f"watched sessions need the table {name}, which {url!r} does not have; {advice}")
        there = {column["name"] for column in found.get_columns(name)}
        missing = [column for column in self.table.c.keys() if column not in there]
        if missing:
            raise ConfigError(f"the table {name} of {url!r} has no column {', '.join(missing)}; {advice}")

    def write(self, connection: Connection, tags: Iterable[str], source: str = WATCH) -> int:
        """Write tags in the connection's transaction, and return the row's id."""
        row = {"namespace": self.namespace, "source": source, "tags": "\n".join(tags)}
        dialect = connection.dialect
        if not dialect.insert_returning:
            done = connection.execute(insert(self.table).values(row))
            key = done.inserted_primary_key
            assert key is not None
            return int(key[0])
        # As text, for this is on the way of every watched commit, and compiling takes longer than the round trip.
        name = (dialect.name, dialect.driver)
        if name not in self._inserts:
            made: Any = insert(self.table).values(row).returning(self.table.c.id).compile(dialect=dialect)
            self._inserts[name] = (str(made), made.positiontup)
        statement, order = self._inserts[name]
        values: Any = row if order is None else tuple(row[each] for each in order)
        return int(connection.exec_driver_sql(statement, values).scalar_one())

    def claim(self, connection: Connection, *, grace: float = GRACE, most: int = BATCH) -> Delivery | None:
        """Lock the oldest rows that wait, in the connection's transaction; None if there are none.

        Rows that another drain has locked are passed over.  On databases without `SKIP LOCKED` two drains may deliver
        the same rows, which is harmless.
        """
        table = self.table
        now = connection.execute(select(func.current_timestamp())).scalar_one()
        now = _aware(now)
        old_enough = table.c.written_at <= now - datetime.timedelta(seconds=grace)
        waiting = (
            select(table.c.id, table.c.tags, table.c.source, table.c.written_at)
            .where(table.c.namespace == self.namespace, table.c.delivered_at.is_(None))
            .where((table.c.source != WATCH) | old_enough)
            .order_by(table.c.id)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
        rows = connection.execute(waiting).all()
        if not rows:
            return None
        tags = dict.fromkeys(tag for row in rows for tag in row.tags.split("\n"))
        lag = max((now - _aware(row.written_at)).total_seconds() for row in rows)
        sources = tuple({row.source for row in rows})
        return Delivery(tuple(row.id for row in rows), tuple(tags), sources, max(lag, 0.0))

    def delivered(self, connection: Connection, ids: Sequence[int], sources: Sequence[str] = (WATCH, TRIGGER)) -> None:
        """Mark rows delivered, which are kept for a replay; not those that a replay has taken up meanwhile.

        Args:
            sources: what they were when their tags were not invalidated yet.
        """
        if ids:
            table = self.table
            done = update(table).where(table.c.id.in_(ids), table.c.delivered_at.is_(None), table.c.source.in_(sources))
            connection.execute(done.values(delivered_at=func.current_timestamp()))

    def replay(self, connection: Connection, within: float) -> int:
        """Let the drain deliver anew what was delivered within so many seconds, and what waits; how many rows."""
        since = _aware(connection.execute(select(func.current_timestamp())).scalar_one())
        since -= datetime.timedelta(seconds=within)
        at = self.table.c.delivered_at
        again = update(self.table).where(self.table.c.namespace == self.namespace, at.is_(None) | (at >= since))
        # What waits may be about to be marked, by who has told the old store:
        #   session: commit, invalidate on the old store   drain: replay to the new one   session: mark the row
        # A source that nobody has read yet keeps it from that.  It gives no grace either, as a trigger's does not.
        source = f"r{secrets.token_hex(4)[:7]}"
        return int(connection.execute(again.values(delivered_at=None, source=source)).rowcount)

    def forget(self, connection: Connection, kept_for: float) -> int:
        """Delete what was delivered longer ago than so many seconds; how many rows."""
        before = _aware(connection.execute(select(func.current_timestamp())).scalar_one())
        before -= datetime.timedelta(seconds=kept_for)
        old = delete(self.table).where(self.table.c.namespace == self.namespace, self.table.c.delivered_at < before)
        return int(connection.execute(old).rowcount)

    def backlog(self, connection: Connection) -> Backlog:
        """Return how many rows wait to be delivered, and for how long."""
        return Backlog(self.waiting(connection), self.lag(connection))

    def waiting(self, connection: Connection) -> int:
        """Return how many rows wait to be delivered."""
        mine = (self.table.c.namespace == self.namespace) & self.table.c.delivered_at.is_(None)
        return int(connection.execute(select(func.count()).select_from(self.table).where(mine)).scalar_one())

    def lag(self, connection: Connection) -> float:
        """Return how old the oldest row is that waits to be delivered, seconds; 0 if none does.

        A watched session delivers its own within milliseconds.  More than `GRACE` and a round of the drain says that
        no drain is at work, or that the store takes nothing.
        """
        mine = (self.table.c.namespace == self.namespace) & self.table.c.delivered_at.is_(None)
        # By id, which has an index; rows are written in about the order of their numbers.
        oldest = select(self.table.c.written_at).where(mine).order_by(self.table.c.id).limit(1)
        found = connection.execute(select(oldest.scalar_subquery(), func.current_timestamp())).one()
        if found[0] is None:
            return 0.0
        return max((_aware(found[1]) - _aware(found[0])).total_seconds(), 0.0)


def age_of(instant: Any, now: Any) -> float:
    """Return how long before `now` an instant was, both as the database answers them, seconds."""
    return max(0.0, (_aware(now) - _aware(instant)).total_seconds())


def _aware(instant: Any) -> datetime.datetime:
    """Return an instant with its zone: SQLite answers UTC, as text or without one."""
    if isinstance(instant, str):
        instant = datetime.datetime.fromisoformat(instant)
    found: datetime.datetime = instant if instant.tzinfo else instant.replace(tzinfo=datetime.UTC)
    return found
