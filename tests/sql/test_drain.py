"""What a crash or an outage leaves in the outbox is delivered, by however many drains, and again to a new store."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from mutation import Mutation, python
from sqlalchemy import Engine, create_engine, select, update
from sqlalchemy.orm import Session, sessionmaker

from cacheworkers import Cache, Config, ConfigError, OutboxUnavailable, StoreError, UnwatchedWrite
from cacheworkers.ops.cli import drain
from cacheworkers.ops.doctor import diagnose
from cacheworkers.ops.output import as_json, as_text
from cacheworkers.sql.outbox import relay as draining
from cacheworkers.sql.outbox.outbox import TRIGGER, Outbox
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

from .conftest import Base, Product, Shop


def write(shop: Shop, *tags: str, source: str = TRIGGER) -> None:
    """Write a row as a trigger would."""
    with shop.engine.begin() as connection:
        shop.cache.outbox.write(connection, tags, source)


@contextlib.contextmanager
def shop_of_its_own(database_url: str, events: list[Any], **config: Any) -> Iterator[tuple[Valkey, Shop]]:
    """A shop, and its store, which may be stopped; closed however a test ends."""
    with Valkey() as server:
        shop = Shop(
            functools.partial(Cache, Config(redis_url=server.url, **config), hook=events.append), database_url, events
        )
        try:
            yield server, shop
        finally:
            shop.cache.close()
            shop.engine.dispose()


def test_the_command_says_what_it_has_delivered(shop: Shop) -> None:
    write(shop, "a", "b")

    said = [CliRunner().invoke(drain, [], obj=(shop.cache, show)).output for show in (as_text, as_text, as_json)]

    assert said[:2] == ["1 row of the outbox delivered\n", "0 rows of the outbox delivered\n"]
    assert json.loads(said[2]) == {"rows": 0}


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

    monkeypatch.setattr("cacheworkers.sql.outbox.relay.drain_outbox.__kwdefaults__", {"grace": 600.0})
    assert shop.cache.drain() == 0
    monkeypatch.setattr("cacheworkers.sql.outbox.relay.drain_outbox.__kwdefaults__", {"grace": 0.0})
    assert shop.cache.drain() == 1


def test_a_store_that_is_down_at_commit_costs_no_invalidation(database_url: str, events: list[Any]) -> None:
    """The commit succeeds, the row stays; the drain delivers once the store is back."""
    with shop_of_its_own(database_url, events, store_timeout=2.0, breaker_for=0.0) as (server, shop):
        shop.watch()
        cache = shop.cache
        shop.add(1)
        assert shop.price.get(1) == 10
        wait_until(lambda: shop.price.read(1).tier == "l1")
        server.pause()

        with shop.sessions.begin() as session:
            session.get_one(Product, 1).price = 11
        assert any(type(event).__name__ == "InvalidationUndelivered" for event in events)
        assert len(cache._ports.l1) == 0
        with pytest.raises(StoreError):
            shop.cache.drain()
        server.resume()
        with shop.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE cacheworkers_outbox SET written_at = written_at - interval '1 minute'")

        wait_until(lambda: cache.drain() == 1)
        assert shop.price.get(1) == 11


def test_a_draining_process_goes_on_as_soon_as_the_store_is_back(
    database_url: str, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at its next look, which here would come too late: until then the store answers with what is old."""
    monkeypatch.setattr("cacheworkers.sql.outbox.relay_loop.DRAIN_WITHIN", 600.0)
    with shop_of_its_own(database_url, events, store_timeout=2.0, breaker_for=0.05) as (server, shop):
        shop.watch()
        cache = shop.cache
        shop.cache.drain()
        server.pause()
        write(shop, "product:1")
        stop = threading.Event()
        thread = threading.Thread(target=cache.drain_until, args=(stop,))
        thread.start()
        wait_until(lambda: any(type(event).__name__ == "StoreLost" for event in events))

        server.resume()

        wait_until(lambda: shop.invalidated() == [{"product:1"}])
        stop.set()

        def has_ended() -> bool:
            run_sql(shop.engine, "NOTIFY cacheworkers_cw")  # wakes it, so that it sees that it is to stop
            return not thread.is_alive()

        wait_until(has_ended)


def test_the_command_delivers_until_a_signal(shop: Shop) -> None:
    """`cacheworkers drain --follow`, as in a container: SIGTERM is its regular end."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def write_and_end() -> None:
        wait_until(lambda: signal.getsignal(signal.SIGTERM) != handlers[0])
        for tag in ("product:1", "product:2"):  # the second after the first: it goes on
            write(shop, tag)
            wait_until(lambda tag=tag: {tag} in shop.invalidated())
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as other:
        ended = other.submit(write_and_end)
        done = CliRunner().invoke(drain, ["--follow"], obj=(shop.cache, print), catch_exceptions=False)
        ended.result()

    assert done.exit_code == 0
    assert done.stderr.startswith("delivers what cacheworkers_outbox gets at postgresql+psycopg://")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_a_store_that_is_down_at_an_async_commit_costs_no_invalidation(database_url: str, events: list[Any]) -> None:
    with shop_of_its_own(database_url, events, store_timeout=1.0, breaker_for=0.0) as (server, shop):
        shop.watch()
        cache = shop.cache
        shop.add(1)

        async def change() -> None:
            async with shop.async_sessions.begin() as session:
                (await session.get_one(Product, 1)).price = 11
            await shop.async_engine.dispose()

        server.pause()
        asyncio.run(change())
        server.resume()

        assert any(type(event).__name__ == "InvalidationUndelivered" for event in events)
        run_sql(shop.engine, "UPDATE cacheworkers_outbox SET written_at = written_at - interval '1 minute'")
        wait_until(lambda: cache.drain() == 1)
        assert shop.price.get(1) == 11


@pytest.mark.parametrize("is_left", [False, True])
def test_an_invalidation_that_is_not_delivered_is_logged_once_and_when_it_was(
    database_url: str,
    events: list[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_left: bool,
) -> None:
    """With its tags, why, and what delivers it; also where its rows had to be left to the drain, which says so."""
    caplog.set_level(logging.INFO, "cacheworkers")
    monkeypatch.setattr("cacheworkers.sql.watch.delivery.GRACE", 0.0 if is_left else 600.0)

    def answers() -> bool:
        with contextlib.suppress(StoreError):
            return bool(cache._ports.store.next_seq().run())
        return False

    def change(product: int) -> None:
        with shop.sessions.begin() as session:
            session.add(Product(id=product, category_id=1, price=product))

    def said(words: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if words in record.getMessage()]

    with (
        shop_of_its_own(database_url, events, breaker_for=0.05) as (server, shop),
        redis.Redis.from_url(server.url) as admin,
    ):
        shop.watch()
        cache = shop.cache
        admin.config_set("requirepass", "another")
        admin.client_kill_filter(_type="normal", skipme=True)

        change(1)
        change(2)
        wait_until(lambda: not is_left or not cache._watching._delivery._failed)
        admin.config_set("requirepass", "")
        wait_until(answers)
        if is_left:
            change(3)
        wait_until(lambda: said("what is committed is invalidated again"))

        [undelivered], [again] = said("its invalidation is not delivered"), said("is invalidated again")
        assert "product:1" in undelivered and "AuthenticationError" in undelivered
        assert "`cacheworkers drain`" in undelivered
        assert ("; rows that were left to the outbox's drain, beat's or `cacheworkers drain`: 2" in again) is is_left
        if is_left:
            run_sql(shop.engine, "UPDATE cacheworkers_outbox SET written_at = written_at - interval '1 minute'")
            cache.drain()
            assert said("the outbox's drain has delivered what writers had not, or had not marked")


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


def test_a_new_store_gets_what_the_old_one_was_sent_lately(database_url: str, events: list[Any]) -> None:
    """A failover, or a restart from an old snapshot, may have brought invalidated entries back."""
    with shop_of_its_own(database_url, events, store_timeout=2.0, breaker_for=0.0) as (_, shop):
        cache = shop.cache
        write(shop, "a")
        cache.drain(shop.engine)
        client = cache._ports.store.link.client()
        assert cache.drain(shop.engine) == 0
        client.set(cache._ports.store.keys.run_id, "another server's")  # what a replica or a snapshot would have

        assert cache.drain(shop.engine) == 1
        assert any(type(event).__name__ == "Replayed" for event in events)
        assert cache.drain(shop.engine) == 0


def restart(server: Valkey, cache: Cache) -> None:
    """Kill a store and start it again, and wait until its cache has found that out."""

    def answers() -> bool:
        with contextlib.suppress(StoreError):
            return bool(cache._ports.store.run_ids().run())
        return False

    server.kill()
    server.start()
    wait_until(answers)


@pytest.mark.parametrize("is_drained_before", [True, False], ids=["drained before the snapshot", "not yet"])
def test_a_store_that_is_back_with_an_older_snapshot_gets_what_came_after_it(
    database_url: str, events: list[Any], is_drained_before: bool
) -> None:
    """Whether or not a drain had noted yet which server it was."""
    with shop_of_its_own(database_url, events, store_timeout=2.0, breaker_for=0.0) as (server, shop):
        shop.add(1)
        if is_drained_before:
            shop.cache.drain(shop.engine)
        shop.price.get(1)
        shop.cache._ports.store.link.client().save()
        write(shop, "product:1")
        assert shop.cache.drain(shop.engine) == 1
        assert shop.price.peek(1) is None

        restart(server, shop.cache)

        assert shop.price.peek(1) is not None
        assert shop.cache.drain(shop.engine) == 1
        assert shop.price.peek(1) is None


def test_an_empty_store_is_sent_nothing_again(database_url: str, events: list[Any]) -> None:
    with shop_of_its_own(database_url, events, store_timeout=2.0, breaker_for=0.0) as (server, shop):
        write(shop, "a")
        shop.cache.drain(shop.engine)

        restart(server, shop.cache)

        assert shop.cache.drain(shop.engine) == 0


def test_a_session_that_marks_its_row_after_a_replay_has_notified_the_old_store_only(
    unwatched: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """commit, invalidate on the old store; replay to the new one; mark: the drain delivers the row all the same."""
    marks: list[tuple[int, ...]] = []
    monkeypatch.setattr(unwatched.cache._watching._delivery, "_acknowledge", lambda engine, rows: marks.append(rows))
    shop = unwatched.watch()
    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))
    with shop.engine.begin() as connection:
        assert shop.cache.outbox.replay(connection, 60.0) == 1

    [rows] = marks
    with shop.engine.begin() as connection:
        shop.cache.outbox.delivered(connection, rows)

    assert delivered(shop) == [{"product:1", "category:7"}]


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


def test_a_drain_of_a_database_without_an_outbox_says_so(shop: Shop) -> None:
    shop.cache.outbox.metadata.drop_all(shop.engine)

    with pytest.raises(
        OutboxUnavailable, match=r"cannot be drained.*cacheworkers_outbox.*cache.outbox.create\(engine\) makes it"
    ):
        shop.cache.drain()


# -- triggers

INSERT = "INSERT INTO product (id, category_id, price) SELECT i, 7, i FROM generate_series(1, {}) i"
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "a table that is no name": ({"a b": ["x"]}, "must be a name.*'a b'"),
    "a name with two schemas": ({"a.b.c": ["x"]}, "must be a name.*'a.b.c'"),
    "a table in two spellings": ({"product": ["x"], '"product"': ["y"]}, "given twice"),
    "one text for templates": ({"product": "x"}, "triggers on product take a list.*'x'"),
    "a conversion": ({"product": ["x:{id!r}"]}, r"'x:\{id!r\}' of product.*plain columns"),
    "an open brace": ({"product": ["x:{id"]}, "'x:{id' of product is malformed"),
    "a control character": ({"product": ["a\n{id}"]}, "of product.*control characters"),
    "over the limit": ({"product": ["t" * 201 + "{id}"]}, "of product.*at most 200 bytes.*has 201"),
    "an empty text": ({"product": [""]}, "of product.*non-empty"),
}


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
    with triggered.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))
    with triggered.sessions.begin() as session:
        session.execute(update(Product).values(price=11))

    assert triggered.invalidated() == [{"product:1", "category:7"}] * 2
    with triggered.engine.connect() as connection:
        assert connection.execute(select(triggered.cache.outbox.table.c.source)).scalars().all() == ["trigger"] * 2


def test_a_draining_process_is_woken_by_the_change(triggered: Shop, monkeypatch: Any) -> None:
    """Immediately: not by its look every so often, which here would come too late."""
    monkeypatch.setattr("cacheworkers.sql.outbox.relay_loop.DRAIN_WITHIN", 600.0)
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
    thread.join(60)
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
        ({"elsewhere.product": ["x:{id}"]}, "no table product in schema elsewhere"),
        ({"cheap": ["x:{id}"]}, "cheap is a view"),
        ({"sold_2024": ["x:{id}"]}, "sold_2024 is a partition of sold"),
        ({"sold_2024": ["x:{id}"], "sold": []}, "sold_2024 is a partition of sold"),
    ],
)
def test_what_the_database_does_not_have_is_named(shop: Shop, templates: Any, message: str) -> None:
    run_sql(shop.engine, "CREATE VIEW cheap AS SELECT * FROM product WHERE price < 10")
    run_sql(shop.engine, "CREATE TABLE sold (id int) PARTITION BY RANGE (id)")
    run_sql(shop.engine, "CREATE TABLE sold_2024 PARTITION OF sold FOR VALUES FROM (1) TO (100)")

    with shop.engine.connect() as connection, pytest.raises(ConfigError, match=message):
        shop.cache.triggers(templates).install(connection)


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_triggers_are_refused(cache: Cache, what: str) -> None:
    templates, message = MALFORMED[what]

    with pytest.raises(ConfigError, match=message):
        cache.triggers(templates)


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


@pytest.mark.parametrize("query", ["password=secret", "sslpassword=secret", "options=-c%20a.b=secret"])
def test_nor_is_a_password_in_the_query_of_its_url_shown(make_cache: Callable[..., Cache], query: str) -> None:
    """Drivers take it there too, and under names of their own; where the server is may be there as well."""
    away = create_engine(f"postgresql+psycopg:///shop?host=127.0.0.1&port=1&user=shop&{query}")
    cache = make_cache(sessions=sessionmaker(away))
    said = [f"{finding.check} {finding.what}" for finding in diagnose(cache, is_running=False)]

    for look in (cache.drain, cache.outbox_backlog):
        with pytest.raises(OutboxUnavailable, match=r"psycopg:///shop\?host=127\.0\.0\.1&port=1 cannot") as raised:
            look(away)
        said.append(str(raised.value))
    assert "host=127.0.0.1&port=1 is unavailable" in "".join(said)
    assert "secret" not in "".join(said)


def test_parts_of_a_table_have_triggers_of_their_own(shop: Shop) -> None:
    """A statement on the whole fires those of the whole, one on a part those of the part."""
    run_sql(shop.engine, "CREATE TABLE sold (id int) PARTITION BY RANGE (id)")
    run_sql(shop.engine, "CREATE TABLE sold_2024 PARTITION OF sold FOR VALUES FROM (1) TO (100)")
    install(shop, {"sold": ["sold:{id}"], "sold_2024": ["sold:{id}"]})

    run_sql(shop.engine, "INSERT INTO sold VALUES (1)")
    assert delivered(shop) == [{"sold:1"}]
    run_sql(shop.engine, "INSERT INTO sold_2024 VALUES (2)")
    assert delivered(shop) == [{"sold:2"}]


def install(shop: Shop, templates: dict[str, list[str]], cache: Cache | None = None) -> None:
    with shop.engine.connect() as connection:
        (cache or shop.cache).triggers(templates).install(connection)
        connection.commit()


def test_a_truncation_invalidates_every_row(triggered: Shop) -> None:
    run_sql(triggered.engine, INSERT.format(3))
    delivered(triggered)

    run_sql(triggered.engine, "TRUNCATE product CASCADE")

    assert delivered(triggered) == [{"product:1", "product:2", "product:3", "category:7"}]


def test_rows_that_the_database_deletes_fire_triggers(shop: Shop) -> None:
    run_sql(shop.engine, "CREATE TABLE part (id int PRIMARY KEY, whole int REFERENCES product ON DELETE CASCADE)")
    install(shop, {"part": ["part:{id}"]})
    shop.add(1)
    run_sql(shop.engine, "INSERT INTO part VALUES (5, 1)")
    delivered(shop)

    run_sql(shop.engine, "DELETE FROM product")

    assert delivered(shop) == [{"part:5"}]


def test_a_copy_fires_triggers(triggered: Shop) -> None:
    import psycopg

    url = triggered.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY product (id, category_id, price) FROM STDIN") as copy:
            copy.write("1\t7\t10\n")

    assert delivered(triggered) == [{"product:1", "category:7"}]


def test_a_value_that_makes_no_legal_tag_does_not_stop_the_drain(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """No entry can have it as a tag; the rows after it are delivered."""
    install(shop, {"product": ["{slug}", "product:{id}"]})
    rows = [(1, "a\x7fb"), (2, "x" * 300), (3, ""), (4, "good")]
    with shop.engine.begin() as connection:
        for number, slug in rows:
            insert_one = "INSERT INTO product (id, category_id, price, slug) VALUES (%s, 1, 1, %s)"
            connection.exec_driver_sql(insert_one, (number, slug))

    [tags] = delivered(shop)

    assert tags == {"product:1", "product:2", "product:3", "product:4", "good"}
    assert caplog.text.count("skipped a tag") == 3


def test_names_that_are_too_long_or_alike(shop: Shop, make_cache: Any) -> None:
    """Postgres cuts names off at 63 bytes, and knows no `-` in them: triggers must not replace one another."""
    long = "a_table_with_a_name_that_is_much_too_long_for_two_of_them"
    for table in (f"{long}_1", f"{long}_2"):
        run_sql(shop.engine, f"CREATE TABLE {table} (id int PRIMARY KEY)")
    one, other = (make_cache(namespace=f"a_namespace_of_{mark}_thirty_bytes") for mark in "-_")
    templates = {f"{long}_1": ["one:{id}"], f"{long}_2": ["two:{id}"]}
    for cache in (one, other):
        install(shop, templates, cache)

    with shop.engine.connect() as connection:
        assert [cache.triggers(templates).missing(connection) for cache in (one, other)] == [[], []]
    run_sql(shop.engine, f"INSERT INTO {long}_2 VALUES (1)")
    for cache in (one, other):
        with shop.engine.connect() as connection:
            assert cache.outbox.waiting(connection) == 1


@pytest.mark.parametrize(
    "undo",
    [
        "DROP TRIGGER cacheworkers_{namespace}_product_update ON product",
        "ALTER TABLE product DISABLE TRIGGER USER",
        "ALTER TABLE product DISABLE TRIGGER cacheworkers_{namespace}_product_insert",
    ],
)
def test_a_trigger_that_is_gone_or_disabled_is_missing(triggered: Shop, undo: str) -> None:
    run_sql(triggered.engine, undo.format(namespace=triggered.cache.config.namespace))

    triggers = triggered.cache.triggers({"product": ["product:{id}", "category:{category_id}"]})
    with triggered.engine.connect() as connection:
        assert triggers.missing(connection) == ["product"]


# -- triggers and sessions


@pytest.mark.parametrize("undo", ["DROP TRIGGER {name}_{kind} ON product", "ALTER TABLE product DISABLE TRIGGER USER"])
def test_triggers_that_go_while_sessions_rely_on_them_lose_nothing(triggered: Shop, undo: str) -> None:
    """The first transaction that would have relied on them fails; from then on the sessions write the outbox."""
    with triggered.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))
    delivered(triggered)
    name = f"cacheworkers_{triggered.cache.config.namespace}_product"
    for kind in ("insert", "update", "delete", "truncate"):
        run_sql(triggered.engine, undo.format(name=name, kind=kind))

    with pytest.raises(UnwatchedWrite, match="triggers of product have gone"), triggered.sessions.begin() as session:
        session.get_one(Product, 1).price = 11
    with triggered.sessions() as session, pytest.raises(UnwatchedWrite, match="product"):
        session.execute(update(Product).values(price=11))
    with triggered.sessions.begin() as session:
        session.get_one(Product, 1).price = 12

    assert triggered.invalidated()[-1] == {"product:1", "category:7"}
    assert triggered.price.get(1) == 12


@pytest.mark.parametrize("event", ["insert", "update", "delete", "truncate"])
@pytest.mark.parametrize("undo", ["DROP TRIGGER {name} ON product", "ALTER TABLE product DISABLE TRIGGER {name}"])
def test_triggers_of_which_one_is_gone_are_not_relied_on(triggered: Shop, event: str, undo: str) -> None:
    """The other three would say nothing of what it saw."""
    triggered.add(1, category_id=7)
    delivered(triggered)
    run_sql(triggered.engine, undo.format(name=f"cacheworkers_{triggered.cache.config.namespace}_product_{event}"))
    triggered.events.clear()

    with triggered.sessions.begin() as session:
        session.delete(session.get_one(Product, 1))

    assert triggered.invalidated() == [{"product:1", "category:7"}]


@pytest.mark.parametrize("whose", ["another schema's", "another namespace's", "half of them"])
def test_triggers_that_are_not_the_table_s_own_are_not_relied_on(shop: Shop, make_cache: Any, whose: str) -> None:
    namespace = shop.cache.config.namespace
    if whose == "another schema's":
        run_sql(shop.engine, "CREATE SCHEMA elsewhere")
        run_sql(shop.engine, "CREATE TABLE elsewhere.product (id int PRIMARY KEY)")
        install(shop, {"elsewhere.product": ["product:{id}"]})
    elif whose == "another namespace's":
        install(shop, {"product": ["product:{id}"]}, make_cache(namespace=f"{namespace}_product"))
        install(shop, {"product": ["product:{id}"]}, make_cache(namespace=f"{namespace}x"))
    else:
        install(shop, {"product": ["product:{id}"]})
        for kind in ("update", "delete"):
            run_sql(shop.engine, f"DROP TRIGGER cacheworkers_{namespace}_product_{kind} ON product")

    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))

    assert shop.invalidated() == [{"product:1", "category:7"}]


# -- without a part of it


@pytest.mark.parametrize(
    ("part", "race"),
    [
        (
            python(draining, "replay_to_a_new_store", "if noted == now:", "if True:"),
            test_a_new_store_gets_what_the_old_one_was_sent_lately,
        ),
        (python(Outbox, "replay", "delivered_at=None, ", ""), test_a_new_store_gets_what_the_old_one_was_sent_lately),
        (
            python(draining, "replay_to_a_new_store", " or has_loaded", ""),
            functools.partial(
                test_a_store_that_is_back_with_an_older_snapshot_gets_what_came_after_it, is_drained_before=False
            ),
        ),
        (
            python(draining, "replay_to_a_new_store", "if noted or has_loaded else ()", ""),
            test_an_empty_store_is_sent_nothing_again,
        ),
    ],
)
def test_a_replay_without_a_part_is_missed(
    database_url: str, events: list[Any], monkeypatch: pytest.MonkeyPatch, part: Mutation, race: Any
) -> None:
    part(monkeypatch)

    with pytest.raises(AssertionError):
        race(database_url, events)
