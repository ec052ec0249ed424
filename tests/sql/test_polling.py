"""SQLite: no SKIP LOCKED, no LISTEN; its outbox is drained by looking again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from cacheworkers import Cache, Config, Load
from cacheworkers.sql.outbox.outbox import TRIGGER, WATCH
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until


class OutboxRelayed:
    """A cache with an outbox on SQLite, and drains that poll it."""

    def __init__(self, cache: Cache, path: Path, events: list[Any]) -> None:
        self.cache = cache
        self.engine: Engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 20})
        cache.outbox.create(self.engine)
        self._events = events
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, drains: int) -> None:
        for _ in range(drains):
            thread = threading.Thread(target=self.cache.drain_until, args=(self._stop, self.engine))
            thread.start()
            self._threads.append(thread)

    def write(self, tag: str, source: str = TRIGGER, age: float = 0.0) -> None:
        with self.engine.begin() as connection:
            number = self.cache.outbox.write(connection, [tag], source)
            older = "UPDATE cacheworkers_outbox SET written_at = datetime(written_at, ?) WHERE id = ?"
            connection.exec_driver_sql(older, (f"-{age} seconds", number))

    def waiting(self) -> int:
        with self.engine.connect() as connection:
            return self.cache.outbox.waiting(connection)

    def lag(self) -> float:
        with self.engine.connect() as connection:
            return self.cache.outbox.lag(connection)

    def mark(self, *sources: str) -> None:
        """Mark all rows, as who delivered them does, unless a replay has had them."""
        with self.engine.begin() as connection:
            rows = [row.id for row in connection.exec_driver_sql("SELECT id FROM cacheworkers_outbox")]
            self.cache.outbox.delivered(connection, rows, sources)

    def replay(self) -> None:
        with self.engine.begin() as connection:
            self.cache.outbox.replay(connection, 60.0)

    def delivered(self) -> set[str]:
        return set().union(*self.invalidated())

    def invalidated(self) -> list[set[str]]:
        """The tags of each invalidation so far."""
        return [set(event.tags) for event in self._events if type(event).__name__ == "Invalidated"]

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        self.engine.dispose()


@pytest.fixture
def polled(cache: Cache, tmp_path: Path, events: list[Any]) -> Iterator[OutboxRelayed]:
    made = OutboxRelayed(cache, tmp_path / "shop.db", events)
    yield made
    made.close()


def test_a_row_is_found_without_a_notification(polled: OutboxRelayed) -> None:
    """Written while the drain is between two looks; the entry of its tag goes."""

    @polled.cache.loader(tags=("n:{n}",), fresh_for=300)
    def number(load: Load, n: int) -> int:
        return n

    number.get(1)
    polled.start(1)
    wait_until(lambda: polled.cache._ports.store.run_ids().run()[0])  # it has looked once

    polled.write("n:1")

    wait_until(lambda: polled.waiting() == 0)
    assert number.peek(1) is None


def test_rows_of_a_session_that_died_are_found_after_their_grace(
    polled: OutboxRelayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheworkers.sql.outbox.relay.drain_outbox.__kwdefaults__", {"grace": 600.0})
    polled.write("young", WATCH)
    polled.write("orphan", WATCH, age=3600.0)

    assert polled.cache.drain(polled.engine) == 1

    assert polled.delivered() == {"orphan"}


def test_two_drains_leave_nothing(polled: OutboxRelayed) -> None:
    """Both may deliver one row, which is harmless; none is left out."""
    polled.start(2)
    for n in range(30):
        polled.write(f"n:{n}")

    wait_until(lambda: polled.waiting() == 0)

    assert polled.delivered() == {f"n:{n}" for n in range(30)}


def test_lag_is_the_age_of_the_oldest_row_that_waits(polled: OutboxRelayed) -> None:
    assert polled.lag() == 0.0
    polled.write("a", age=3600.0)
    polled.write("b")

    assert 3600.0 <= polled.lag() < 3660.0
    polled.cache.drain(polled.engine)
    assert polled.lag() == 0.0


def test_a_row_that_is_marked_after_a_replay_is_delivered_again(polled: OutboxRelayed) -> None:
    """Its session wrote to the old store alone, whatever it may say later."""
    polled.write("n:1", WATCH)
    polled.cache.invalidate("n:1")
    before = len(polled.invalidated())
    polled.replay()

    polled.mark(WATCH)
    polled.cache.drain(polled.engine)

    assert polled.invalidated()[before:] == [{"n:1"}]
    assert polled.waiting() == 0


def test_a_batch_that_is_marked_after_a_replay_is_delivered_again(
    polled: OutboxRelayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One drain has written to the old store, another replays to the new one, and then the first marks its rows."""
    polled.write("n:1")
    outbox = polled.cache.outbox
    plain = outbox.delivered

    def replayed_first(*given: Any) -> None:
        polled.replay()
        monkeypatch.setattr(outbox, "delivered", plain)
        plain(*given)

    monkeypatch.setattr(outbox, "delivered", replayed_first)
    polled.cache.drain(polled.engine)

    assert polled.invalidated() == [{"n:1"}, {"n:1"}]
    assert polled.waiting() == 0


class Base(DeclarativeBase):
    pass


class Price(Base):
    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


def test_a_store_that_is_down_at_commit_costs_no_invalidation(tmp_path: Path, events: list[Any]) -> None:
    """The commit succeeds, the row stays; the drain delivers once the store is back."""
    with Valkey() as server:
        engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
        sessions = sessionmaker(engine)
        config = Config(redis_url=server.url, store_timeout=1.0, breaker_for=0.0)
        cache = Cache(config, sessions=sessions, hook=events.append)
        Base.metadata.create_all(engine)
        cache.outbox.create(engine)
        cache.watch(sessions, {Price: ["price:{id}"]})

        @cache.loader(tags=("price:{number}",), fresh_for=300)
        def price(load: Load, number: int) -> int:
            return load.session.get_one(Price, number).amount

        with sessions.begin() as session:
            session.add(Price(id=1, amount=10))
        assert price.get(1) == 10
        server.pause()
        with sessions.begin() as session:
            session.get_one(Price, 1).amount = 11
        assert [type(event).__name__ for event in events if type(event).__name__ == "InvalidationUndelivered"] == [
            "InvalidationUndelivered"
        ]
        server.resume()

        with engine.begin() as connection:
            assert connection.exec_driver_sql("SELECT amount FROM price").scalar() == 11
            connection.exec_driver_sql(
                "UPDATE cacheworkers_outbox SET written_at = datetime(written_at, '-60 seconds')"
            )
        wait_until(lambda: cache.drain() == 1)
        assert price.get(1) == 11
        cache.close()
        engine.dispose()
