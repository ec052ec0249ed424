"""Connections to the databases with an outbox, for code on threads, whatever driver an engine has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from cacheworkers.sql.sqlalchemy_internals import SHARED_POOLS, engine_like, options_of

T = TypeVar("T")


def sync_half(engine: Engine | AsyncEngine) -> Engine:
    """Return an engine, of an async one its sync half."""
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


def shown_url(engine: Engine) -> str:
    """Return an engine's URL as texts may show it: without its password, which drivers take in the query too."""
    url = engine.url
    return repr(url.set(query={name: url.query[name] for name in ("host", "port") if name in url.query}))


def bound_engines(sessions: Any) -> Iterator[Engine]:
    """Yield the engines that a session factory is bound to, as far as it says so; of async ones their sync half."""
    options = options_of(sessions)
    for bind in dict.fromkeys((options.get("bind"), *(options.get("binds") or {}).values())):
        if isinstance(bind, Engine | AsyncEngine):
            yield sync_half(bind)


def on_connection(engine: Engine, do: Callable[[Connection], T]) -> T:
    """Return what a function makes of a connection; of an async engine, a new one on a loop of its own, in a thread.

    Raises:
        SQLAlchemyError, OSError: the database does not answer; and what the function raises.
    """
    if not engine.dialect.is_async:
        with engine.connect() as connection:
            return do(connection)

    async def done() -> T:
        async with AsyncEngine(without_pool(engine)).connect() as connection:
            return await connection.run_sync(do)

    return _run_on_thread(lambda: asyncio.run(done())).result()


def _run_on_thread(work: Callable[[], T]) -> Future[T]:
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    # A daemon: a database that never answers does not keep the process from ending.
    threading.Thread(target=run, name="cacheworkers-database", daemon=True).start()
    return result


def without_pool(engine: Engine) -> Engine:
    """Return an engine like this one, with its `connect_args` and listeners, whose connections are closed after use.

    A worker that checks the database before its pool forks must not keep a connection: its children would have it too.
    """
    if isinstance(engine.pool, SHARED_POOLS):  # SQLite in memory: its connection is the database
        return engine
    return engine_like(engine, NullPool)
