"""The outbox table: tags written in the transaction that changed their rows, so that no invalidation is ever lost.

The invalidation right after the commit only makes it quick.  A process that dies in between, or a store that is down,
leaves the row to the relay, which delivers it at least once.  See "Transactional outbox", C. Richardson, Microservices
Patterns, 2018.
"""

from __future__ import annotations

import datetime
import re
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
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateSchema

from cacheworkers.errors import ConfigError
from cacheworkers.sql.outbox.connections import on_connection, shown_url, sync_half
from cacheworkers.sql.sqlalchemy_internals import first_value

TABLE = "cacheworkers_outbox"
HOW_TO_MAKE_IT = (
    "cache.outbox.create(engine) makes it; or a migration does, where cache.outbox.table.to_metadata(Base.metadata) "
    "puts it beside your tables"
)
#: How databases say that a table or a column is not there.
_ABSENT = re.compile(r"not exist|n't exist|no such|no column|unknown column", re.IGNORECASE)
#: What wrote a row: a watched session, which delivers it itself, or a trigger, whose rows the relay delivers; of the
#: latter kind are those whose tags are to be invalidated softly.  A replay sets a source of its own: a process that has
#: invalidated the row before must no longer mark it delivered.
WATCH, TRIGGER, SOFT_TRIGGER = "watch", "trigger", "softtrig"
#: How long a watched session's row is left to the process that wrote it, seconds.
GRACE = 2.0
#: Most tags of one row.
ROW_TAGS = 1000
#: Of one step of the relay: rows with few tags, oldest first, and as many of them newest first; and rows of any size.
#: Such a step takes some 50 ms, so that what one bulk statement has left does not hold up what was changed after it.
SHORT_ROWS, NEW_ROWS, LONG_ROWS = 100, 50, 2
#: Longest text of a row with few tags.
SHORT = 1000


def is_absent(error: Exception) -> bool:
    """Return whether a database has said that a table or a column is not there."""
    return isinstance(error, ProgrammingError | OperationalError) and bool(_ABSENT.search(str(error.orig)))


def reason(error: Exception) -> str:
    """Return what the driver said, on one line, and how to make the outbox where it is not there."""
    says = " ".join(str(getattr(error, "orig", None) or error).split())
    return f"{says}; {HOW_TO_MAKE_IT}" if is_absent(error) else says


class Claimed(msgspec.Struct, frozen=True):
    """Rows that were claimed together.

    Attributes:
        ids: the rows.
        tags: all their tags, each once.
        soft: those of them that are only to be invalidated softly.
        sources: what their sources were.
        lag: how old the oldest row is, seconds.
    """

    ids: tuple[int, ...]
    tags: tuple[str, ...]
    soft: frozenset[str]
    sources: tuple[str, ...]
    lag: float


class Backlog(NamedTuple):
    """How many rows wait to be delivered, and how old the oldest is, seconds."""

    rows: int
    oldest_age: float


class Outbox:
    """The outbox table: writing, claiming, marking and replaying its rows."""

    def __init__(self, namespace: str, schema: str = "") -> None:
        """
        Args:
            schema: of the table; empty takes the one that the connection has by default.
        """
        self.namespace = namespace
        self.metadata = MetaData(schema=schema or None)
        self.table = Table(
            TABLE,
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
        # Each row is in one of them: an insert pays for one index, and a delivery for the other.
        Index(f"{TABLE}_waiting", self.table.c.namespace, self.table.c.id, postgresql_where=column.is_(None))
        Index(f"{TABLE}_delivered", column, postgresql_where=column.is_not(None))
        self._inserts: dict[tuple[str, str], tuple[str, Sequence[str] | None]] = {}

    @property
    def quoted_name(self) -> str:
        """The table's name with its schema, in quotes as PostgreSQL's `to_regclass` takes them."""
        parts = (self.table.schema, self.table.name)
        return ".".join('"' + part.replace('"', '""') + '"' for part in parts if part is not None)

    def create(self, engine: Engine | AsyncEngine | Connection) -> None:
        """Create the table and its schema, if they do not exist; migrations make it of `table` or `metadata` instead.

        Args:
            engine: of any driver, sync or async.

        Raises:
            ConfigError: it is neither engine nor Connection.
            SQLAlchemyError, OSError: the database does not answer.
        """
        if isinstance(engine, Connection):
            self._create(engine)
        elif isinstance(engine, Engine | AsyncEngine):
            on_connection(sync_half(engine), self._create_and_commit)
        else:
            raise ConfigError(
                f"outbox.create takes an Engine, an AsyncEngine or a Connection, got {type(engine).__name__}; with an "
                f"AsyncConnection, `await connection.run_sync(cache.outbox.create)`"
            )

    def _create(self, connection: Connection) -> None:
        schema = self.table.schema
        # Asked first: whoever may not create schemas may not create one that is there either.
        if schema is not None and not inspect(connection).has_schema(schema):
            connection.execute(CreateSchema(schema))
        self.metadata.create_all(connection)

    def _create_and_commit(self, connection: Connection) -> None:
        self._create(connection)
        connection.commit()

    def check(self, bind: Engine | AsyncEngine | Connection) -> None:
        """Make sure that the table exists, with all its columns.

        Raises:
            ConfigError: it does not.
        """
        if isinstance(bind, AsyncEngine):
            on_connection(bind.sync_engine, self.check)
            return
        missing = self.missing(bind)
        if missing:
            raise ConfigError(
                f"watched sessions need {', '.join(missing)}, which {shown_url(bind.engine)} does not have; "
                f"{HOW_TO_MAKE_IT}"
            )

    def missing(self, bind: Engine | Connection) -> tuple[str, ...]:
        """Return what a database lacks of it: the table, or some of its columns."""
        table, found = self.table, inspect(bind)
        if not found.has_table(table.name, table.schema):
            return (f"the table {table.fullname}",)
        there = {column["name"] for column in found.get_columns(table.name, table.schema)}
        return tuple(f"the column {table.fullname}.{name}" for name in table.c.keys() if name not in there)

    def write(self, connection: Connection, tags: Iterable[str], source: str = WATCH) -> int:
        """Write tags in the connection's transaction, and return the row's id.

        Raises:
            ConfigError: the table, or a column of it, is not there.
            SQLAlchemyError: the database fails otherwise.
        """
        try:
            return self._write(connection, tags, source)
        except (ProgrammingError, OperationalError) as error:
            if is_absent(error):
                raise ConfigError(
                    f"watched sessions need the table {self.table.fullname}, and {shown_url(connection.engine)} says: "
                    f"{reason(error)}"
                ) from error
            raise

    def _write(self, connection: Connection, tags: Iterable[str], source: str) -> int:
        row = {"namespace": self.namespace, "source": source, "tags": "\n".join(tags)}
        dialect = connection.dialect
        if not dialect.insert_returning:
            done = connection.execute(insert(self.table).values(row))
            key = done.inserted_primary_key
            assert key is not None
            return int(key[0])
        # As text, past SQLAlchemy: every watched commit does this, and either takes longer than the round trip.
        name = (dialect.name, dialect.driver)
        if name not in self._inserts:
            made: Any = insert(self.table).values(row).returning(self.table.c.id).compile(dialect=dialect)
            self._inserts[name] = (str(made), made.positiontup)
        statement, order = self._inserts[name]
        values: Any = row if order is None else tuple(row[each] for each in order)
        return int(first_value(connection, statement, values))

    def claim(self, connection: Connection, *, grace: float = GRACE) -> Claimed | None:
        """Lock some rows that wait, in the connection's transaction; None if there are none.

        The oldest ones, those with few tags, and the newest of these: each kind proceeds whatever waits of the others.
        Rows that another relay has locked are skipped.  On databases without `SKIP LOCKED` two relays may deliver the
        same rows, which is harmless.
        """
        table = self.table
        now = connection.execute(select(func.current_timestamp())).scalar_one()
        now = _aware(now)
        old_enough = table.c.written_at <= now - datetime.timedelta(seconds=grace)
        length = func.octet_length if connection.dialect.name == "postgresql" else func.length
        is_short = length(table.c.tags) <= SHORT
        waiting = (
            select(table.c.id, table.c.tags, table.c.source, table.c.written_at)
            .where(table.c.namespace == self.namespace, table.c.delivered_at.is_(None))
            .where((table.c.source != WATCH) | old_enough)
            .with_for_update(skip_locked=True)
        )
        rows: dict[int, Any] = {}
        for some in (
            waiting.order_by(table.c.id).limit(LONG_ROWS),
            waiting.where(is_short).order_by(table.c.id).limit(SHORT_ROWS),
            waiting.where(is_short).order_by(table.c.id.desc()).limit(NEW_ROWS),
        ):
            found = connection.execute(some).all()
            if not found and not rows:
                return None
            rows.update((row.id, row) for row in found)
        tags: dict[str, bool] = {}
        for row in rows.values():
            for tag in row.tags.split("\n"):
                tags[tag] = tags.get(tag, True) and row.source == SOFT_TRIGGER
        soft = frozenset(tag for tag, is_soft in tags.items() if is_soft)
        lag = max((now - _aware(row.written_at)).total_seconds() for row in rows.values())
        sources = tuple({row.source for row in rows.values()})
        return Claimed(tuple(rows), tuple(tags), soft, sources, max(lag, 0.0))

    def delivered(
        self, connection: Connection, ids: Sequence[int], sources: Sequence[str] = (WATCH, TRIGGER, SOFT_TRIGGER)
    ) -> None:
        """Mark rows delivered; they are kept for a replay.  Rows that a replay has taken up meanwhile are skipped.

        Args:
            sources: the rows' sources when they were claimed.
        """
        if ids:
            table = self.table
            done = update(table).where(table.c.id.in_(ids), table.c.delivered_at.is_(None), table.c.source.in_(sources))
            connection.execute(done.values(delivered_at=func.current_timestamp()))

    def replay(self, connection: Connection, within: float) -> int:
        """Have delivered again what waits, and what was delivered in the last `within` seconds; how many rows."""
        since = _aware(connection.execute(select(func.current_timestamp())).scalar_one())
        since -= datetime.timedelta(seconds=within)
        at = self.table.c.delivered_at
        again = update(self.table).where(self.table.c.namespace == self.namespace, at.is_(None) | (at >= since))
        # A row that waits may be about to be marked by a session that has invalidated on the old store:
        #   session: commit, invalidate on the old store   relay: replay to the new one   session: mark the row
        # A source that nobody has read yet prevents that.  Like a trigger's, it gives no grace.
        source = f"r{secrets.token_hex(4)[:7]}"
        return int(connection.execute(again.values(delivered_at=None, source=source)).rowcount)

    def forget(self, connection: Connection, kept_for: float) -> int:
        """Delete rows delivered more than `kept_for` seconds ago; how many."""
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

    def lags(self, connection: Connection) -> dict[str, float]:
        """Return the age of the oldest row that waits, seconds, by namespace: applications may share the table."""
        written = (self.table.c.namespace, func.min(self.table.c.written_at), func.current_timestamp())
        waiting = select(*written).where(self.table.c.delivered_at.is_(None)).group_by(self.table.c.namespace)
        rows = connection.execute(waiting)
        return {str(name): (_aware(now) - _aware(oldest)).total_seconds() for name, oldest, now in rows}

    def lag(self, connection: Connection) -> float:
        """Return the age of the oldest row that waits to be delivered, seconds; 0 if none does.

        A watched session delivers its own within milliseconds.  More than `GRACE` and a round of the relay means that
        no relay runs, or that the store takes no writes.
        """
        mine = (self.table.c.namespace == self.namespace) & self.table.c.delivered_at.is_(None)
        # By id, which has an index; rows are written in about the order of their numbers.
        oldest = select(self.table.c.written_at).where(mine).order_by(self.table.c.id).limit(1)
        found = connection.execute(select(oldest.scalar_subquery(), func.current_timestamp())).one()
        if found[0] is None:
            return 0.0
        return max((_aware(found[1]) - _aware(found[0])).total_seconds(), 0.0)


def in_rows(tags: Sequence[str]) -> list[Sequence[str]]:
    """Return tags in parts of which each is a row: what is delivered of many is kept, whatever happens to the rest."""
    return [tags[at : at + ROW_TAGS] for at in range(0, len(tags), ROW_TAGS)]


def _aware(instant: Any) -> datetime.datetime:
    """Return an instant with its zone: SQLite returns UTC, as text or without one."""
    if isinstance(instant, str):
        instant = datetime.datetime.fromisoformat(instant)
    found: datetime.datetime = instant if instant.tzinfo else instant.replace(tzinfo=datetime.UTC)
    return found
