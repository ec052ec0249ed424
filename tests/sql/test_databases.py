"""Which databases are drained: those that watched sessions write to, however many, and never the loaders' replica."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cacheworkers import Cache, ConfigError, OutboxUnavailable
from cacheworkers.ops.doctor import diagnose
from cacheworkers.sql.outbox.outbox import TRIGGER
from cacheworkers.testing.servers import wait_until


class Base(DeclarativeBase):
    pass


class One(Base):
    __tablename__ = "one"
    id: Mapped[int] = mapped_column(primary_key=True)


class Two(Base):
    __tablename__ = "two"
    id: Mapped[int] = mapped_column(primary_key=True)


MAPPING = {One: ["one:{id}"], Two: ["two:{id}"]}


@pytest.fixture
def engines(cache: Cache, tmp_path: Path) -> list[Engine]:
    """Two databases, each with an outbox."""
    made = [create_engine(f"sqlite:///{tmp_path / name}.db") for name in ("one", "two")]
    for engine in made:
        Base.metadata.create_all(engine)
        cache.outbox.create(engine)
    return made


def write(cache: Cache, engine: Engine, tag: str) -> None:
    with engine.begin() as connection:
        cache.outbox.write(connection, [tag], TRIGGER)


def waiting(cache: Cache, engine: Engine) -> int:
    with engine.connect() as connection:
        return cache.outbox.waiting(connection)


def invalidated(events: list[Any]) -> set[str]:
    return {tag for event in events if type(event).__name__ == "Invalidated" for tag in event.tags}


def worst(cache: Cache) -> dict[str, str]:
    """Doctor's checks of databases, and how bad the worst finding of each is."""
    found: dict[str, str] = {}
    for finding in diagnose(cache, timeout=60.0):
        if finding.check.startswith(("database", "outbox", "triggers")):
            found.setdefault(finding.check, finding.level)  # worst first
    return found


def test_the_watched_database_is_drained_where_loaders_read_another(
    make_cache: Callable[..., Cache], database_url: str, tmp_path: Path, events: list[Any]
) -> None:
    primary = create_engine(database_url)
    replica = create_engine(f"sqlite:///{tmp_path / 'replica.db'}")
    cache = make_cache(sessions=sessionmaker(replica))
    Base.metadata.create_all(primary)
    cache.outbox.create(primary)
    cache.watch(sessionmaker(primary), MAPPING)
    write(cache, primary, "one:1")

    cache._drain_by_beat()

    assert invalidated(events) == {"one:1"}
    assert set(worst(cache).values()) == {"ok"}
    primary.dispose()


def test_each_of_several_databases_is_drained(cache: Cache, engines: list[Engine], events: list[Any]) -> None:
    cache.watch(sessionmaker(binds={One: engines[0], Two: engines[1]}), MAPPING)
    for engine, tag in zip(engines, ("one:1", "two:1"), strict=True):
        write(cache, engine, tag)
    assert cache.outbox_backlog().rows == 2

    cache._drain_by_beat()

    assert invalidated(events) == {"one:1", "two:1"}
    assert cache.outbox_backlog().rows == 0
    assert worst(cache)["outbox-lag"] == "ok"


def test_doctor_looks_at_the_outbox_of_each_database(cache: Cache, engines: list[Engine]) -> None:
    cache.watch(sessionmaker(binds={One: engines[0], Two: engines[1]}), MAPPING)
    cache.outbox.metadata.drop_all(engines[1])

    [missing] = [finding for finding in diagnose(cache, timeout=60.0) if finding.check == "outbox-missing"][:1]

    assert missing.level == "error" and repr(engines[1].url) in missing.what


def test_a_sessionmaker_may_be_bound_later(cache: Cache, engines: list[Engine]) -> None:
    sessions = sessionmaker()
    cache.watch(sessions, MAPPING)
    sessions.configure(bind=engines[0])
    write(cache, engines[0], "one:1")

    cache._drain_by_beat()

    assert waiting(cache, engines[0]) == 0


def test_a_database_that_is_away_does_not_hold_up_another(
    cache: Cache, engines: list[Engine], caplog: pytest.LogCaptureFixture
) -> None:
    cache.watch(sessionmaker(binds={One: engines[0], Two: engines[1]}), MAPPING)
    write(cache, engines[1], "two:1")
    cache.outbox.metadata.drop_all(engines[0])

    with pytest.raises(OutboxUnavailable, match=r"one\.db"):
        cache._drain_by_beat()

    assert waiting(cache, engines[1]) == 0
    assert "the outbox is not drained" in caplog.text

    caplog.clear()
    with pytest.raises(OutboxUnavailable):
        cache._drain_by_beat()
    assert not caplog.records, "it is said once a minute"
    cache.outbox.create(engines[0])
    cache._drain_by_beat()
    assert "the outbox is drained again" in caplog.text


class Unbound(Session):
    """Sessions that are given their engine when they are made."""


@pytest.mark.parametrize("sessions", [Unbound, sessionmaker(), async_sessionmaker()])
def test_nothing_to_drain_is_said(cache: Cache, caplog: pytest.LogCaptureFixture, sessions: Any) -> None:
    """By beat's drain in the log, by the one that was asked for, and by doctor."""
    cache.watch(sessions, MAPPING)
    caplog.set_level(logging.ERROR, "cacheworkers")

    with pytest.raises(ConfigError, match="drain needs an engine"):
        cache._drain_by_beat()

    assert "the outbox is not drained: drain needs an engine" in caplog.text
    assert worst(cache)["outbox-unknown"] == "error"


def test_triggers_that_nobody_drains_are_said(cache: Cache) -> None:
    cache.triggers({"one": ["one:{id}"]})

    with pytest.raises(ConfigError, match="drain needs an engine"):
        cache._drain_by_beat()

    assert worst(cache)["outbox-unknown"] == "error"


def test_a_cache_that_watches_nothing_drains_nothing(cache: Cache) -> None:
    cache._drain_by_beat()

    assert worst(cache) == {}


# -- async sessions


@pytest.mark.parametrize("driver", ["psycopg", "another"])
def test_the_database_of_async_sessions_is_drained(
    cache: Cache, database_url: str, events: list[Any], monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    """Of any driver; those that can listen are woken."""
    plain = create_engine(database_url)
    Base.metadata.create_all(plain)
    cache.outbox.create(plain)
    engine = create_async_engine(database_url)
    monkeypatch.setattr(engine.sync_engine.dialect, "driver", driver)
    cache.watch(async_sessionmaker(engine), MAPPING)
    for tag in ("one:1", "one:2"):
        write(cache, plain, tag)
    assert cache.outbox_backlog().rows == 2

    cache._drain_by_beat()
    assert invalidated(events) == {"one:1", "one:2"}
    assert set(worst(cache).values()) == {"ok"}

    stop = threading.Event()
    thread = threading.Thread(target=cache.drain_until, args=(stop,))
    thread.start()
    write(cache, plain, "one:3")
    wait_until(lambda: "one:3" in invalidated(events))
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    plain.dispose()


def test_a_database_that_sync_and_async_sessions_write_is_one(cache: Cache, database_url: str) -> None:
    plain, engine = create_engine(database_url), create_async_engine(database_url)
    cache.outbox.create(plain)
    cache.watch(async_sessionmaker(engine, class_=AsyncSession), MAPPING)
    cache.watch(type("Sessions", (sessionmaker,), {})(plain, class_=Unbound), MAPPING)

    assert cache._watching.engines == (plain,)
    plain.dispose()


def test_each_of_several_databases_is_drained_until_stopped(
    cache: Cache, engines: list[Engine], events: list[Any]
) -> None:
    cache.watch(sessionmaker(binds={One: engines[0], Two: engines[1]}), MAPPING)
    stop = threading.Event()
    thread = threading.Thread(target=cache.drain_until, args=(stop,))
    thread.start()

    for engine, tag in zip(engines, ("one:1", "two:1"), strict=True):
        write(cache, engine, tag)

    wait_until(lambda: invalidated(events) == {"one:1", "two:1"})
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


# -- a new store


def delivered_before_a_failover(cache: Cache, engines: list[Engine], events: list[Any]) -> None:
    """Deliver a row of each database, and let the store be another from now on."""
    cache.watch(sessionmaker(binds={One: engines[0], Two: engines[1]}), MAPPING)
    for engine, tag in zip(engines, ("one:1", "two:1"), strict=True):
        write(cache, engine, tag)
    cache.drain()
    cache._ports.store.note_run_id("0" * 40).run()
    events.clear()


def test_all_databases_are_replayed_to_a_new_store(cache: Cache, engines: list[Engine], events: list[Any]) -> None:
    """Drained one after the other, too: the first must not say that all is done."""
    delivered_before_a_failover(cache, engines, events)

    assert [cache.drain(engine) for engine in engines] == [1, 1]

    assert invalidated(events) == {"one:1", "two:1"}
    assert cache.drain() == 0


def test_a_database_that_is_away_is_replayed_later(cache: Cache, engines: list[Engine], events: list[Any]) -> None:
    """And the others once only."""
    delivered_before_a_failover(cache, engines, events)
    rename = "ALTER TABLE {} RENAME TO {}".format
    with engines[1].begin() as connection:
        connection.exec_driver_sql(rename("cacheworkers_outbox", "away"))
    with pytest.raises(OutboxUnavailable, match=r"two\.db"):
        cache.drain()
    assert cache.drain(engines[0]) == 0
    assert invalidated(events) == {"one:1"}

    with engines[1].begin() as connection:
        connection.exec_driver_sql(rename("away", "cacheworkers_outbox"))

    assert cache.drain() == 1
    assert invalidated(events) == {"one:1", "two:1"}


def test_an_engine_of_a_driver_that_cannot_listen_is_polled(cache: Cache, engines: list[Engine]) -> None:
    stop = threading.Event()
    relay = threading.Thread(target=cache.drain_until, args=(stop, engines[0]))
    relay.start()
    try:
        for _ in range(2):
            with engines[0].begin() as connection:
                cache.outbox.write(connection, ["one:1"], TRIGGER)
            wait_until(lambda: cache.outbox_backlog(engines[0]).rows == 0)
    finally:
        stop.set()
        relay.join()
