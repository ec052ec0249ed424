"""What a crash or an outage leaves in the outbox is delivered, by however many drains, and anew to a new store."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from cacheworkers import Cache, Config, ConfigError, OutboxUnavailable, StoreError
from cacheworkers.sql.outbox import TRIGGER
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

from .conftest import Base, Product, Shop


def write(shop: Shop, *tags: str, source: str = TRIGGER) -> None:
    """Write a row as a trigger would."""
    with shop.engine.begin() as connection:
        shop.cache.outbox.write(connection, tags, source)


def test_what_waits_is_delivered_once(shop: Shop) -> None:
    write(shop, "a", "b")
    write(shop, "b", "c")

    assert shop.cache.drain() == 2
    assert shop.invalidated() == [{"a", "b", "c"}]
    assert shop.waiting() == 0
    assert shop.cache.drain() == 0


def test_a_fresh_row_is_left_to_the_process_that_wrote_it(shop: Shop, monkeypatch: Any) -> None:
    """It is delivered later, for that process may have died between commit and invalidation."""
    write(shop, "a", source="watch")

    assert shop.cache.drain() == 0
    monkeypatch.setattr("cacheworkers.sql.drain.drain_outbox.__kwdefaults__", {"grace": 0.0})
    assert shop.cache.drain() == 1


def test_a_store_that_is_down_at_commit_costs_no_invalidation(database_url: str, events: list[Any]) -> None:
    """The commit succeeds, the row stays; the drain delivers once the store is back."""
    with Valkey() as server:
        cache = Cache(Config(redis_url=server.url, store_timeout=2.0, breaker_for=0.0), hook=events.append)
        shop = Shop(cache, database_url, events).watch()
        shop.add(1)
        assert shop.price.get(1) == 10
        wait_until(lambda: shop.price.read(1).tier == "l1")
        server.pause()

        with shop.sessions.begin() as session:
            session.get_one(Product, 1).price = 11
        assert any(type(event).__name__ == "Undelivered" for event in events)
        assert len(cache._ports.l1) == 0
        with pytest.raises(StoreError):
            cache.drain()
        server.resume()
        with shop.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE cacheworkers_outbox SET written_at = written_at - interval '1 minute'")

        wait_until(lambda: cache.drain() == 1)
        assert shop.price.get(1) == 11
        cache.close()
        shop.engine.dispose()


def test_a_drain_that_dies_before_it_has_marked_is_repeated(shop: Shop, monkeypatch: Any) -> None:
    write(shop, "a")
    with monkeypatch.context() as patch:

        def dies(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(shop.cache.outbox, "delivered", dies)
        with pytest.raises(KeyboardInterrupt):
            shop.cache.drain()

    assert shop.cache.drain() == 1
    assert shop.invalidated() == [{"a"}, {"a"}]


def test_drains_share_the_work(shop: Shop) -> None:
    """What one has locked, another passes over."""
    for number in range(250):
        write(shop, f"t:{number}")
    rows: list[int] = []

    threads = [threading.Thread(target=lambda: rows.append(shop.cache.drain())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(rows) == 250
    assert sorted(tag for tags in shop.invalidated() for tag in tags) == sorted(f"t:{n}" for n in range(250))


def test_a_new_store_gets_what_the_old_one_was_told_lately(database_url: str, events: list[Any]) -> None:
    """A failover, or a restart from an old snapshot, may have brought invalidated entries back."""
    with Valkey() as server:
        cache = Cache(Config(redis_url=server.url, store_timeout=2.0, breaker_for=0.0), hook=events.append)
        shop = Shop(cache, database_url, events)
        write(shop, "a")
        cache.drain(shop.engine)
        client = cache._ports.store.link.client()
        assert cache.drain(shop.engine) == 0
        client.set(cache._ports.store.keys.run_id, "another server's")  # what a replica or a snapshot would have

        assert cache.drain(shop.engine) == 1
        assert any(type(event).__name__ == "Replayed" for event in events)
        assert cache.drain(shop.engine) == 0
        cache.close()
        shop.engine.dispose()


def test_delivered_rows_are_forgotten_in_time(shop: Shop) -> None:
    write(shop, "a")
    shop.cache.drain()
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cacheworkers_outbox SET delivered_at = delivered_at - interval '1 hour'")

    shop.cache.drain()

    with shop.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM cacheworkers_outbox").scalar() == 0


def test_lag_is_the_age_of_the_oldest_row_that_waits(shop: Shop) -> None:
    def lag() -> float:
        with shop.engine.connect() as connection:
            return shop.cache.outbox.lag(connection)

    assert lag() == 0.0
    write(shop, "a")
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cacheworkers_outbox SET written_at = written_at - interval '1 hour'")
    write(shop, "b")

    assert 3600.0 <= lag() < 3660.0
    shop.cache.drain()
    assert lag() == 0.0


def test_a_drain_without_an_engine_says_so(make_cache: Any) -> None:
    with pytest.raises(ConfigError, match="engine"):
        make_cache().drain()


# -- triggers

INSERT = "INSERT INTO product (id, category_id, price) SELECT i, 7, i FROM generate_series(1, {}) i"
MALFORMED = [{"a b": ["x"]}, {"product": "x"}, {"product": ["x:{id!r}"]}, {"product": ["a\n"]}]


@pytest.fixture
def triggered(shop: Shop) -> Shop:
    triggers = shop.cache.triggers({"product": ["product:{id}", "category:{category_id}"]})
    with shop.engine.connect() as connection:
        triggers.install(connection)
        connection.commit()
    return shop


def run_sql(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


def delivered(shop: Shop) -> list[set[str]]:
    before = len(shop.invalidated())
    shop.cache.drain()
    return shop.invalidated()[before:]


def test_statements_of_anybody_are_invalidated(triggered: Shop) -> None:
    """Old and new values, once a statement however many rows it changes."""
    run_sql(triggered.engine, INSERT.format(3))
    assert delivered(triggered) == [{"product:1", "product:2", "product:3", "category:7"}]

    run_sql(triggered.engine, "UPDATE product SET category_id = 8 WHERE id = 2")
    assert delivered(triggered) == [{"product:2", "category:7", "category:8"}]

    run_sql(triggered.engine, "DELETE FROM product WHERE id = 3")
    assert delivered(triggered) == [{"product:3", "category:7"}]

    run_sql(triggered.engine, "UPDATE product SET price = 1 WHERE id = 999")
    assert delivered(triggered) == []


def test_a_bulk_update_is_a_few_rows(triggered: Shop) -> None:
    run_sql(triggered.engine, INSERT.format(5000))

    assert triggered.waiting() == 6
    triggered.cache.drain()
    assert len(set().union(*triggered.invalidated())) == 5001


def test_sessions_leave_tables_with_triggers_to_them(triggered: Shop) -> None:
    """One row for one change; bulk statements are allowed, for they are covered."""
    from sqlalchemy import update

    with triggered.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))
    assert triggered.waiting() == 1
    with triggered.sessions.begin() as session:
        session.execute(update(Product).values(price=11))

    assert delivered(triggered) == [{"product:1", "category:7"}]


def test_a_draining_process_is_woken_by_the_change(triggered: Shop, monkeypatch: Any) -> None:
    """At once: not by its look every so often, which here would come too late."""
    monkeypatch.setattr("cacheworkers.sql.watching.DRAIN_WITHIN", 600.0)
    stop = threading.Event()
    thread = threading.Thread(target=triggered.cache.drain_until, args=(stop,))
    thread.start()
    client_count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%'"

    def is_listening() -> bool:
        with triggered.engine.connect() as connection:
            return bool(connection.exec_driver_sql(client_count).scalar())

    wait_until(is_listening)
    run_sql(triggered.engine, "INSERT INTO product (id, category_id, price) VALUES (1, 7, 1)")

    wait_until(lambda: triggered.invalidated() == [{"product:1", "category:7"}])
    stop.set()
    run_sql(triggered.engine, "DELETE FROM product")  # wakes it, so that it sees that it is to stop
    thread.join(20)
    assert not thread.is_alive()


def test_triggers_are_shown_versioned_and_removed(triggered: Shop) -> None:
    triggers = triggered.cache.triggers({"product": ["product:{id}", "category:{category_id}"]})
    others = triggered.cache.triggers({"product": ["other:{id}"]})
    with triggered.engine.connect() as connection:
        assert triggers.missing(connection) == [] and others.missing(connection) == ["product"]
        assert "CREATE TRIGGER" in triggers.sql()
        triggers.remove(connection)
        assert triggers.missing(connection) == ["product"]
        connection.commit()

    run_sql(triggered.engine, "INSERT INTO product (id, category_id, price) VALUES (9, 9, 9)")
    assert triggered.waiting() == 0


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ({"nowhere": ["x:{id}"]}, "no table nowhere"),
        ({"product": ["x:{colour}"]}, "no column 'colour'.*category_id"),
    ],
)
def test_what_the_database_does_not_have_is_named(shop: Shop, templates: Any, message: str) -> None:
    with shop.engine.connect() as connection, pytest.raises(ConfigError, match=message):
        shop.cache.triggers(templates).install(connection)


@pytest.mark.parametrize("templates", MALFORMED)
def test_malformed_triggers_are_refused(shop: Shop, templates: Any) -> None:
    with pytest.raises(ConfigError):
        shop.cache.triggers(templates)


def test_a_missing_outbox_is_found_before_triggers_are_installed(shop: Shop) -> None:
    shop.cache.outbox.metadata.drop_all(shop.engine)

    with shop.engine.connect() as connection, pytest.raises(ConfigError, match="cacheworkers_outbox"):
        shop.cache.triggers({"product": ["x:{id}"]}).install(connection)


def test_tags_with_quotes_and_percents(shop: Shop) -> None:
    Base.metadata.create_all(shop.engine)
    with shop.engine.connect() as connection:
        shop.cache.triggers({"product": ["it's 100%:{id}"]}).install(connection)
        connection.commit()
    with Session(shop.engine) as session, session.begin():
        session.add(Product(id=1, category_id=1, price=1))

    assert delivered(shop) == [{"it's 100%:1"}]


def test_a_database_that_is_away_is_named(shop: Shop) -> None:
    """In the library's words, and without its password."""
    away = create_engine("postgresql+psycopg://shop:secret@127.0.0.1:1/shop")

    with pytest.raises(OutboxUnavailable, match=r"outbox at postgresql\+psycopg://shop:\*\*\*@127") as raised:
        shop.cache.drain(away)
    assert "\n" not in str(raised.value)
