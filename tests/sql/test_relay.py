"""The relay keeps what it has done, lets nothing wait behind what is large, and listens with any driver."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, ConfigError
from cacheworkers.sql.outbox import relay, relay_loop
from cacheworkers.sql.outbox.connections import on_connection
from cacheworkers.sql.outbox.outbox import LONG_ROWS, NEW_ROWS, SHORT_ROWS, TRIGGER, WATCH, in_rows
from cacheworkers.testing.servers import wait_until


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def outboxed(make_cache: Callable[..., Cache], engine: Engine) -> Cache:
    cache = make_cache(sessions=sessionmaker(engine))
    cache.outbox.create(engine)
    return cache


def fill(cache: Cache, engine: Engine, *rows: list[str]) -> None:
    with engine.begin() as connection:
        for tags in rows:
            cache.outbox.write(connection, tags, TRIGGER)


def is_invalidated(events: list[Any], tag: str) -> bool:
    return any(tag in each.tags for each in events if type(each).__name__ == "Invalidated")


def large(name: str) -> list[str]:
    return [f"{name}:{number}" for number in range(1000)]


def test_one_step_takes_old_rows_and_short_ones_and_new_ones(outboxed: Cache, engine: Engine) -> None:
    """Behind ten thousand tags and a thousand short rows, the newest row is in the first step."""
    fill(outboxed, engine, *(large(f"bulk{number}") for number in range(10)))
    fill(outboxed, engine, *([f"row:{number}"] for number in range(1000)), ["last"])

    with engine.begin() as connection:
        claimed = outboxed.outbox.claim(connection)

    assert claimed is not None
    assert "last" in claimed.tags and "row:0" in claimed.tags and "bulk0:0" in claimed.tags
    assert len(claimed.ids) == LONG_ROWS + SHORT_ROWS + NEW_ROWS


def test_everything_is_delivered_in_the_end(outboxed: Cache, engine: Engine, events: list[Any]) -> None:
    fill(outboxed, engine, *(large(f"bulk{number}") for number in range(5)), *([f"row:{n}"] for n in range(400)))

    assert outboxed.drain() == 405

    assert outboxed.outbox_backlog().rows == 0
    tags = {tag for each in events if type(each).__name__ == "Invalidated" for tag in each.tags}
    assert len(tags) == 5400


def test_a_relay_that_dies_keeps_the_steps_it_has_done(
    outboxed: Cache, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outboxed, engine, *(large(f"bulk{number}") for number in range(10)))
    deliver, steps = relay._deliver, iter(range(2))

    def dies(*args: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return deliver(*args)

    monkeypatch.setattr(relay, "_deliver", dies)

    with pytest.raises(KeyboardInterrupt):
        outboxed.drain()

    assert outboxed.outbox_backlog().rows == 10 - 2 * LONG_ROWS


def test_a_transaction_is_never_idle_for_long(outboxed: Cache, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers end transactions that are idle; a tag of many members takes longer than they allow."""
    monkeypatch.setattr(relay, "_KEEP_ALIVE_EVERY", 0.0)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda c, cursor, statement, *_: statements.append(statement))
    store = outboxed._ports.store
    store.register([(f"x[{n}]", ["large"], 60.0) for n in range(1500)], load_for=1).run()
    fill(outboxed, engine, ["large"])

    outboxed.drain()

    assert sum("SELECT 1" in statement for statement in statements) >= 3


def test_a_tag_that_cannot_be_invalidated_holds_up_no_other(outboxed: Cache, engine: Engine) -> None:
    """Something foreign is where its set should be: nothing could have been registered there."""
    client: Any = outboxed._ports.store.link.client()
    client.set(outboxed._ports.store.keys.tag_set("foreign"), "x")
    fill(outboxed, engine, ["foreign", "other"], *([f"row:{n}"] for n in range(300)))

    outboxed.drain()

    assert outboxed.outbox_backlog().rows == 0


def test_many_tags_are_several_rows() -> None:
    assert [len(part) for part in in_rows([str(n) for n in range(2500)])] == [1000, 1000, 500]
    assert in_rows([]) == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_engine_is_drained_with_its_own_connect_args(
    make_cache: Callable[..., Cache], database_url: str, driver: str, events: list[Any]
) -> None:
    """A password, certificates or a service name may be there and nowhere else."""
    whole = make_url(database_url.replace("+psycopg", f"+{driver}"))
    engine = create_async_engine(whole.set(query={}), connect_args={"host": whole.query["host"]})
    cache = make_cache(async_sessions=async_sessionmaker(engine))
    cache.outbox.create(engine)
    sync = create_engine(database_url)
    with sync.begin() as connection:
        connection.execute(text("CREATE TABLE product (id int PRIMARY KEY)"))
        cache.triggers({"product": ["product:{id}"]}).install(connection)
    stop = threading.Event()
    draining = threading.Thread(target=cache.drain_until, args=(stop, engine))
    draining.start()
    try:
        for number in range(3):
            with sync.begin() as connection:
                connection.execute(text("INSERT INTO product VALUES (:n)"), {"n": number})
            wait_until(functools.partial(is_invalidated, events, f"product:{number}"))
    finally:
        stop.set()
        draining.join()
    assert cache.outbox_backlog(engine).rows == 0
    asyncio.run(engine.dispose())


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_outbox_is_created_by_an_async_engine(
    make_cache: Callable[..., Cache], database_url: str, driver: str
) -> None:
    engine = create_async_engine(database_url.replace("+psycopg", f"+{driver}"))
    cache = make_cache()

    async def create() -> None:
        cache.outbox.create(engine)
        cache.outbox.create(engine)

    asyncio.run(create())
    cache.outbox.check(engine)


def test_the_outbox_is_created_on_nothing_else(make_cache: Callable[..., Cache]) -> None:
    nothing: Any = "postgresql://"
    with pytest.raises(ConfigError, match="takes an Engine, an AsyncEngine or a Connection, got str"):
        make_cache().outbox.create(nothing)


def test_a_watched_session_s_rows_are_left_to_it(outboxed: Cache, engine: Engine) -> None:
    with engine.begin() as connection:
        outboxed.outbox.write(connection, ["a"], WATCH)

    assert on_connection(engine, outboxed.outbox.claim) is None


def test_a_drain_that_fails_says_so_once_and_once_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay_loop, "RETRY_AFTER", 0.0)
    stop, outcomes = threading.Event(), iter([None, None, OSError("a"), OSError("a"), OSError("b"), None, OSError("c")])

    def drained(engine: Any) -> int:
        outcome = next(outcomes, stop)
        if outcome is stop:
            stop.set()
        if isinstance(outcome, OSError):
            raise outcome
        return 1

    engine: Any = SimpleNamespace(dialect=SimpleNamespace(is_async=False, driver="sqlite"), url="sqlite://")
    relay_loop.RelayLoop(drained, "cw").run([engine], stop)

    tries = "the drain of 'sqlite://' tries again every 0 s: "
    assert caplog.messages == [
        f"{tries}a",
        "the drain of 'sqlite://' goes on",
        f"{tries}c",
        "the drain of 'sqlite://' goes on",
    ]
