"""A real PgBouncer in transaction mode, with fewer connections to the server than clients have to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from cacheworkers import Cache, Load
from cacheworkers.ops.doctor import diagnose
from cacheworkers.testing.servers import free_port, wait_until

from .conftest import Base, Product

pytestmark = pytest.mark.pgbouncer

DOCUMENTED: dict[str, dict[str, Any]] = {
    "psycopg": {"prepare_threshold": None},
    "asyncpg": {"statement_cache_size": 0, "prepared_statement_name_func": lambda: ""},
}


@pytest.fixture
def bouncer(database_url: str) -> Iterator[URL]:
    """The database's URL behind PgBouncer, which has two connections to it."""
    whole = make_url(database_url)
    port = free_port()
    directory = Path(tempfile.mkdtemp())  # pytest's own are closed to the user that the server runs as
    directory.chmod(0o755)
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={whole.query['host']} port={whole.port or 5432} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 100\nignore_startup_parameters = options\n"
    )
    settings.chmod(0o644)
    program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    user = {"user": "nobody"} if os.getuid() == 0 else {}
    process = subprocess.Popen([program, "-q", str(settings)], stderr=subprocess.PIPE, text=True, cwd="/", **user)  # type: ignore[call-overload]

    def is_up() -> bool:
        if process.poll() is not None:
            raise AssertionError(process.stderr.read())
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(is_up)
        yield whole.set(host="127.0.0.1", port=port, query={})
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(directory)


@pytest.fixture
def pooled(bouncer: URL) -> Iterator[Engine]:
    engine = create_engine(bouncer, connect_args=DOCUMENTED["psycopg"])
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Product(id=number, category_id=1, price=0) for number in range(8))
    yield engine
    engine.dispose()


def cache_on(make_cache: Callable[..., Cache], engine: Engine) -> tuple[Cache, Any]:
    """Return a cache whose sessions are behind PgBouncer, and its loader."""
    cache = make_cache(sessions=sessionmaker(engine))
    cache.outbox.create(engine)

    @cache.loader(tags=("product:{product_id}",), fresh_for=300)
    def price(load: Load, product_id: int) -> int:
        return load.session.get_one(Product, product_id).price

    return cache, price


def test_threads_of_watched_sessions(make_cache: Callable[..., Cache], pooled: Engine) -> None:
    """More than PgBouncer has connections, each often enough for psycopg to prepare its statements otherwise."""
    cache, price = cache_on(make_cache, pooled)
    sessions = sessionmaker(pooled)
    cache.watch(sessions, {Product: ["product:{id}"]})
    seen: list[tuple[int, int]] = []

    def reprice(product_id: int) -> None:
        for wanted in range(1, 13):
            with sessions.begin() as session:
                session.get_one(Product, product_id).price = wanted
            seen.append((wanted, price.get(product_id)))

    threads = [threading.Thread(target=reprice, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(seen) == 8 * 12 and all(wanted == found for wanted, found in seen)
    wait_until(lambda: cache.outbox_backlog().rows == 0)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_tasks_of_watched_sessions(
    make_cache: Callable[..., Cache], pooled: Engine, bouncer: URL, driver: str, events: list[Any]
) -> None:
    cache, _ = cache_on(make_cache, pooled)
    engine = create_async_engine(bouncer.set(drivername=f"postgresql+{driver}"), connect_args=DOCUMENTED[driver])
    sessions = async_sessionmaker(engine)
    cache.watch(sessions, {Product: ["product:{id}"]})

    async def reprice(product_id: int) -> None:
        for wanted in range(1, 9):
            async with sessions.begin() as session:
                (await session.get_one(Product, product_id)).price = wanted

    async def all_of_them() -> None:
        await asyncio.gather(*(reprice(number) for number in range(8)))
        await engine.dispose()

    asyncio.run(all_of_them())

    assert sum(type(each).__name__ == "Invalidated" for each in events) == 64


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_triggers_and_a_draining_process(
    make_cache: Callable[..., Cache], pooled: Engine, bouncer: URL, driver: str
) -> None:
    """It polls: NOTIFY does not pass.  Others' transactions do not get what it has set on a connection."""
    cache, price = cache_on(make_cache, pooled)
    engine = create_async_engine(bouncer.set(drivername="postgresql+asyncpg"), connect_args=DOCUMENTED["asyncpg"])
    with pooled.begin() as connection:
        cache.triggers({"product": ["product:{id}"]}).install(connection)
    stop = threading.Event()
    drained = pooled if driver == "psycopg" else engine.sync_engine
    draining = threading.Thread(target=cache.drain_until, args=(stop, drained))
    draining.start()
    try:
        for wanted in range(1, 6):
            with pooled.begin() as connection:
                connection.exec_driver_sql(f"UPDATE product SET price = {wanted} WHERE id = 1")
            wait_until(lambda wanted=wanted: price.get(1) == wanted)
        # The first price is loaded without an invalidation: each later one may be seen by that of the row before.
        wait_until(lambda: cache.outbox_backlog().rows == 0)
    finally:
        stop.set()
        draining.join()


@pytest.mark.parametrize(("settings", "level"), [(DOCUMENTED["psycopg"], "ok"), ({}, "warning")])
def test_doctor_finds_the_wrong_setting(
    make_cache: Callable[..., Cache], pooled: Engine, bouncer: URL, settings: dict[str, Any], level: str
) -> None:
    cache = make_cache(sessions=sessionmaker(create_engine(bouncer, connect_args=settings)))

    [found] = [each for each in diagnose(cache, is_running=False) if each.check == "pooler"]

    assert found.level == level
    assert ('connect_args={"prepare_threshold": None}' in found.what) == (level == "warning")
