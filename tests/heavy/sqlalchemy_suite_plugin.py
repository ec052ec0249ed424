"""A pytest plugin for SQLAlchemy's own ORM suite: every mapped class is watched, every flush judged.

Each watched row has a tag of each of its columns.  Before and after a flush all watched tables are read; the tags of
rows that have come, gone or changed must be among those that the flush has written.  Set by the environment:
`SUITE_REDIS` is the store's URL, `SUITE_REPORT` the file that the counts are written to.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

_counts: collections.Counter[str] = collections.Counter()
_untagged: list[tuple[str, str, str]] = []
_refused: list[tuple[str, str]] = []
_broken: list[tuple[str, str]] = []
_test = "?"
_suite: Any = None


def text(value: object) -> str:
    """Return a value as a part of a tag."""
    return "".join(each if each.isprintable() else "?" for each in str(value)).encode("ascii", "replace").decode()[:60]


def tag(table: str, column: str, value: object) -> str:
    return f"{table[:60]}.{column[:40]}={text(value)}"


class Suite:
    """The cache, and the hooks for the classes that are mapped now."""

    def __init__(self) -> None:
        from cacheworkers import Cache, Config
        from cacheworkers.sql.outbox.outbox import Outbox
        from cacheworkers.sql.watch.delivery import Delivery

        namespace = f"suite{os.getpid() % 100000}"
        self.cache = Cache(Config(redis_url=os.environ["SUITE_REDIS"], namespace=namespace))
        self.outbox = self.cache.outbox
        self.hooks: Any = None
        self.mapping: Any = None
        self.watched: Any = None
        self.written: set[str] = set()
        #: The flushes that run, with the rows before each.
        self.before: list[tuple[Any, dict[Any, Any]]] = []
        #: Table -> the columns that all its classes map: others have no tag.
        self.tagged: dict[Any, set[str]] = {}
        write = Outbox.write

        def noted(outbox: Any, connection: Any, tags: Iterable[str], *rest: Any) -> int:
            tags = list(tags)
            if connection.dialect.name != "postgresql":
                outbox.table.create(connection, checkfirst=True)
            self.written.update(tags)
            return write(outbox, connection, tags, *rest)

        Outbox.write = noted  # type: ignore[method-assign]
        Delivery._acknowledge = lambda *_: None  # type: ignore[attr-defined]
        self.cache._watching._delivery._acknowledge = lambda *_: None
        self._let_statements_through()
        self._follow_sessions()

    def _let_statements_through(self) -> None:
        """Let statements outside the unit of work run, as with `cacheworkers_unwatched`; not a flush's own."""
        from cacheworkers.errors import UnwatchedWrite
        from cacheworkers.sql.watch.session_hooks import SessionHooks

        judge = SessionHooks.before_statement

        def judged(hooks: Any, state: Any, connection: Any, statement: str, context: Any) -> None:
            try:
                judge(hooks, state, connection, statement, context)
            except UnwatchedWrite:
                if state.flush is not None and state.flush.is_running:
                    _broken.append((_test, statement[:200]))
                    raise
                hooks._dirty(state.session).note_unknown(connection)

        SessionHooks.before_statement = judged  # type: ignore[method-assign]

    def _follow_sessions(self) -> None:
        from sqlalchemy import event
        from sqlalchemy.orm import Mapper, Session
        from sqlalchemy.orm.mapper import _all_registries

        from cacheworkers.sql.watch import watched_connections

        begin, flush = Session.__init__, Session._flush  # type: ignore[attr-defined]

        def forget_others() -> None:
            """Take the hooks away when other classes are mapped: an application names all its classes together."""
            if self.watched is not None and frozenset(self.mappers()) != self.watched:
                self.unwatch()
                self.watched = None

        def read_before(session: Any, transaction: Any, connection: Any) -> None:
            self.read_before(session)

        def listen() -> None:
            """Listen again where a test has taken all listeners away."""
            for target, name, hook in (
                (Session, "after_begin", read_before),
                (Mapper, "before_configured", forget_others),
                *watched_connections.OF_ALL,
            ):
                if not event.contains(target, name, hook):
                    event.listen(target, name, hook)

        def begun(session: Any, *args: Any, **options: Any) -> None:
            listen()
            forget_others()
            if not any(each._new_mappers for each in _all_registries()):  # a watch configures: a test may wait for that
                self.watch_all()
            begin(session, *args, **options)

        def flushed(session: Any, objects: Any = None) -> None:
            listen()
            self.watch_all()
            self.join(session)
            _counts["flushes"] += 1
            if self.hooks is None or not (session._new or session._deleted or session.identity_map._modified):
                return flush(session, objects)
            outer, self.written = self.written, set()
            self.before.append((session, {}))
            self.read_before(session)
            try:
                flush(session, objects)
                self.compare(self.before[-1][1], self.rows(session))
            finally:
                self.before.pop()
                self.written |= outer  # a flush inside of a flush is also the outer's

        Session.__init__ = begun  # type: ignore[method-assign]
        Session._flush = flushed  # type: ignore[attr-defined]

    def join(self, session: Any) -> None:
        """Have hooks that are newer than a session's transaction know of it."""
        from cacheworkers.sql.watch.watched_connections import state_for

        transaction = session.get_nested_transaction() or session.get_transaction()
        if self.hooks is not None and transaction is not None:
            for connection, *_ in set(transaction._connections.values()):
                state_for(self.hooks, session).begin_on(connection)

    def read_before(self, session: Any) -> None:
        """Read the rows on the connections that a session has, before its flush: the flush begins the others itself."""
        for flushing, rows in self.before:
            if flushing is session:
                for table, there in self.rows(session).items():
                    rows.setdefault(table, there)

    def rows(self, session: Any) -> dict[Any, Any]:
        """Return the rows of all watched tables, as far as a session has begun a transaction where they are."""
        from sqlalchemy import select

        found: dict[Any, Any] = {}
        transaction = session.get_nested_transaction() or session.get_transaction()
        begun: dict[Any, Any] = {}
        while transaction is not None:
            begun = {**transaction._connections, **begun}
            transaction = transaction.parent
        for table in self.mapping.tables():
            mapper = next((each for each in self.mappers() if table in each.tables), None)
            arguments = {"mapper": mapper} if mapper is not None else {"clause": table}
            with contextlib.suppress(Exception):
                connection = begun[session.get_bind(**arguments)][0]
                with connection.begin_nested():
                    there = connection.execute(select(table)).all()
                columns = [column.key for column in table.columns]
                found[table] = collections.Counter(tuple(zip(columns, map(text, row), strict=True)) for row in there)
        return found

    def compare(self, before: dict[Any, Any], after: dict[Any, Any]) -> None:
        for table in before.keys() & after.keys():
            for row in [*(before[table] - after[table]), *(after[table] - before[table])]:
                _counts["changed rows"] += 1
                missing = [
                    made
                    for key, value in row
                    if key in self.tagged.get(table, ()) and (made := tag(table.name, key, value)) not in self.written
                ]
                if missing:
                    _counts["untagged rows"] += 1
                    _untagged.append((_test, table.name, f"{row}: {missing}"))

    @staticmethod
    def mappers() -> list[Any]:
        from cacheworkers.sql.sqlalchemy_internals import all_mappers

        return all_mappers()

    def watch_all(self) -> None:
        """Watch what is mapped now, unless it is watched."""
        from sqlalchemy.orm import Session

        from cacheworkers.errors import ConfigError

        mapped = frozenset(self.mappers())
        if mapped == self.watched:
            return
        self.unwatch()
        self.watched = mapped
        if not mapped:
            return
        try:
            self.cache.watch(Session, dict(self.tags_of_all()))
        except ConfigError as error:
            _counts["refused set-ups"] += 1
            _refused.append((_test, str(error)))
            return
        except Exception as error:  # a mapping that is wrong on purpose, or a fault
            _counts["crashed set-ups"] += 1
            _broken.append((_test, f"watch: {type(error).__name__}: {error}"))
            return
        _counts["set-ups"] += 1
        self.hooks = self.cache._watching._hooks[-1]
        self.mapping = self.hooks._mapping

    def unwatch(self) -> None:
        """Take the hooks away again, which only a test needs."""
        from sqlalchemy import event
        from sqlalchemy.orm import Session

        from cacheworkers.sql.watch import watched_connections

        hooks, self.hooks = self.hooks, None
        self.cache._watching._hooks.clear()
        self.cache._watching._watched.clear()
        if hooks is None:
            return
        targets: list[tuple[Any, str, Any]] = [
            (Session, name, hook) for name, hook in hooks._hooks_of_writing().items()
        ]
        targets += [
            (Session, "transient_to_pending", hooks._on_pending),
            (Session, "after_begin", hooks._on_begin),
            (Session, "before_flush", hooks._on_before_flush),
        ]
        watched_connections._all_hooks = ()
        for target, name, hook in targets:
            with contextlib.suppress(Exception):
                event.remove(target, name, hook)

    def tags_of_all(self) -> Iterator[tuple[Any, Any]]:
        from sqlalchemy import Table

        from cacheworkers.sql.watch.mapped_columns import row_columns

        mapped, secondary = set(), set()
        self.tagged = {}
        for mapper in self.mappers():
            with contextlib.suppress(Exception):  # a mapping that is wrong on purpose
                mapper._check_configure()
                names = [
                    (
                        name,
                        [
                            each
                            for each in mapper.column_attrs[name].columns
                            if isinstance(each.table, Table)
                            # Another column of the same name has a value of its own, which no attribute shows.
                            and (each is column or each.primary_key or each.foreign_keys)
                        ],
                    )
                    for name, column in row_columns(mapper).items()
                    if getattr(column, "table", None) is not None
                ]
                mapped.add(mapper.local_table)
                for table in mapper.tables:
                    mine = {each.key for _, columns in names for each in columns if each.table is table}
                    self.tagged[table] = self.tagged.get(table, mine) & mine
                secondary.update(each.secondary for each in mapper.relationships if isinstance(each.secondary, Table))
                yield (
                    mapper.class_,
                    lambda row, names=names: [
                        tag(each.table.name, each.key, getattr(row, name))
                        for name, columns in names
                        for each in columns
                    ],
                )
        for table in secondary - mapped:
            self.tagged[table] = set(table.columns.keys())
            yield (
                table,
                lambda row, table=table: [tag(table.name, key, getattr(row, key)) for key in table.columns.keys()],
            )


def _is_own_statement() -> bool:
    """Return whether the library or this plugin executes a statement now."""
    frame: Any = sys._getframe(1)
    for _ in range(80):
        if frame is None:
            return False
        if frame.f_globals.get("__name__", "").startswith("cacheworkers.") or frame.f_code.co_name == "rows":
            return True
        frame = frame.f_back
    return False


def _leave_out_own_statements() -> None:
    """Have the suite's asserters of statements see those of the test alone, as they do without a watch."""
    from sqlalchemy import event
    from sqlalchemy.testing import assertsql

    @contextlib.contextmanager
    def asserted(engine: Any) -> Iterator[Any]:
        asserter = assertsql.SQLAsserter()
        begun: list[Any] = []

        def before_execute(connection: Any, clause: Any, many: Any, one: Any, options: Any) -> None:
            if not _is_own_statement():
                begun[:] = clause, many, one

        def after_cursor_execute(
            connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
        ) -> None:
            if not context or _is_own_statement():
                return
            if not asserter.accumulated or asserter.accumulated[-1].context is not context:
                asserter.accumulated.append(assertsql.SQLExecuteObserved(context, *begun))
            asserter.accumulated[-1].statements.append(
                assertsql.SQLCursorExecuteObserved(statement, parameters, context, many)
            )

        event.listen(engine, "before_execute", before_execute)
        event.listen(engine, "after_cursor_execute", after_cursor_execute)
        try:
            yield asserter
        finally:
            event.remove(engine, "after_cursor_execute", after_cursor_execute)
            event.remove(engine, "before_execute", before_execute)
            asserter._close()

    original = assertsql.assert_engine
    for module in list(sys.modules.values()):
        if getattr(module, "assert_engine", None) is original:
            module.assert_engine = asserted  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    global _suite, _test
    _test = item.nodeid
    if _suite is None:
        _suite = Suite()
        _leave_out_own_statements()
    from sqlalchemy.testing import config

    if config.db is not None and config.db.dialect.name == "postgresql":
        _suite.outbox.metadata.create_all(config.db)


def pytest_sessionfinish(session: Any) -> None:
    report = {"counts": _counts, "untagged": _untagged, "refused": _refused, "broken": _broken}
    with open(os.environ["SUITE_REPORT"], "w") as file:
        json.dump(report, file, indent=1)
