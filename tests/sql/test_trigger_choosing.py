"""Triggers that choose: columns that matter or do not, and how their tags are invalidated."""

from __future__ import annotations

from typing import Any

import pytest

from cacheworkers import ConfigError

from .conftest import Product, Shop

TAGS = {"product": ["product:{id}", "category:{category_id}"]}


def install(shop: Shop, tags: dict[str, list[str]] = TAGS, **options: Any) -> None:
    """Install triggers, with two products in one category and one in another."""
    shop.add(1, 2)
    shop.add(3, category_id=2)
    with shop.engine.begin() as connection:
        shop.cache.triggers(tags, **options).install(connection)


def test_tags_of_the_watch_that_triggers_lack_are_logged(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Watched sessions leave the table to its triggers: nobody would invalidate these tags."""
    shop.cache.triggers(TAGS | {"product_label": ["label:{label_id}"]})
    assert not caplog.records, "the same tags, of a function and of templates"

    shop.cache.triggers({"label": ["label:{id}"]})
    assert not caplog.records, "not watched"


def test_triggers_that_lack_a_tag_of_the_watch_are_reported_once(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        shop.cache.triggers({"product": ["product:{id}", "price:{price}"]})

    [record] = caplog.records
    assert "cache.watch has tags for product that cache.triggers does not have: category:{category_id}." in (
        record.getMessage()
    )


def tags_of(shop: Shop, statement: str) -> set[str]:
    """Return the tags that are in the outbox after a statement."""
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE cacheworkers_outbox")
        connection.exec_driver_sql(statement)
        rows = connection.exec_driver_sql("SELECT tags FROM cacheworkers_outbox").scalars().all()
    return {tag for row in rows for tag in row.split("\n")}


@pytest.mark.parametrize(
    ("statement", "tags"),
    [
        ("UPDATE product SET price = price + 1 WHERE id = 1", {"product:1"}),
        ("UPDATE product SET slug = 'x', price = 0 WHERE id = 1", {"product:1", "category:1"}),
        ("UPDATE product SET slug = slug WHERE id = 1", {"product:1"}),
        ("UPDATE product SET category_id = 2 WHERE id = 1", {"product:1", "category:1", "category:2"}),
        # Two rows of one category exchange their values.
        (
            "UPDATE product SET slug = CASE slug WHEN 'a' THEN 'b' ELSE 'a' END WHERE category_id = 1",
            {"product:1", "product:2", "category:1"},
        ),
        ("INSERT INTO product (id, category_id, price) VALUES (9, 7, 1)", {"product:9", "category:7"}),
        ("DELETE FROM product WHERE id = 3", {"product:3", "category:2"}),
        ("TRUNCATE product CASCADE", {"product:1", "product:2", "product:3", "category:1", "category:2"}),
    ],
)
def test_a_tag_may_name_its_columns(unwatched: Shop, statement: str, tags: set[str]) -> None:
    install(unwatched, columns={"category:{category_id}": ["slug"]})
    with unwatched.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE product SET slug = CASE id WHEN 1 THEN 'a' ELSE 'b' END")

    assert tags_of(unwatched, statement) == tags


def test_a_change_of_ignored_columns_is_none(unwatched: Shop) -> None:
    """Columns that come later count."""
    install(unwatched, ignore={"product": ["price"]})

    assert tags_of(unwatched, "UPDATE product SET price = price + 1") == set()
    assert tags_of(unwatched, "UPDATE product SET price = 0, slug = 'x' WHERE id = 1") == {"product:1", "category:1"}
    tags_of(unwatched, "ALTER TABLE product ADD colour json DEFAULT '{}'")
    assert tags_of(unwatched, "UPDATE product SET colour = '[]' WHERE id = 1") == {"product:1", "category:1"}


def test_columns_and_ignored_ones_go_together(unwatched: Shop) -> None:
    install(unwatched, columns={"product": ["slug", "price"]}, ignore={"product": ["price"]})

    assert tags_of(unwatched, "UPDATE product SET price = price + 1") == set()
    assert tags_of(unwatched, "UPDATE product SET slug = 'x' WHERE id = 1") == {"product:1", "category:1"}


def test_tags_are_invalidated_softly_by_the_drain_and_by_the_session_that_sees_them(shop: Shop) -> None:
    install(shop, mode={"category:{category_id}": "soft"})

    def modes() -> dict[str, str]:
        found = [each for each in shop.events if type(each).__name__ == "Invalidated"]
        shop.events.clear()
        return {tag: each.mode for each in found for tag in each.tags}

    with shop.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE product SET price = 0 WHERE id = 1")
    shop.cache.drain()
    assert modes() == {"product:1": "hard", "category:1": "soft"}

    with shop.sessions.begin() as session:
        session.get_one(Product, 3).price = 0
    assert modes() == {"product:3": "hard", "category:2": "soft"}


def test_a_tag_that_is_hard_somewhere_is_hard(unwatched: Shop) -> None:
    tags = {"product": ["category:{category_id}"], "label": ["category:{id}"]}
    install(unwatched, tags, mode={"product": "soft"})
    with unwatched.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE product SET price = 0 WHERE id = 1")
        connection.exec_driver_sql("INSERT INTO label (id, name) VALUES (1, 'new')")

    unwatched.cache.drain()

    [event] = [each for each in unwatched.events if type(each).__name__ == "Invalidated"]
    assert (set(event.tags), event.mode) == ({"category:1"}, "hard")


def test_one_of_these_is_outdated_when_its_choice_changes(unwatched: Shop) -> None:
    install(unwatched, ignore={"product": ["price"]})
    with unwatched.engine.connect() as connection:
        assert unwatched.cache.triggers(TAGS, ignore={"product": ["price"]}).missing(connection) == []
        assert unwatched.cache.triggers(TAGS).missing(connection) == ["product"]
        connection.exec_driver_sql("ALTER TABLE product DROP price")
        [fault] = unwatched.cache.triggers(TAGS, ignore={"product": ["price"]}).faults(connection).values()
        assert "no column 'price'" in fault


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ignore": {"label": ["name"]}}, r"triggers\(ignore=\) names 'label', which is not in the mapping"),
        ({"mode": "reload"}, r"triggers\(mode=\) must be \"hard\" or \"soft\""),
        ({"columns": {"product": "slug"}}, r"triggers\(columns=\) takes lists of columns"),
        ({"columns": {"product": ["colour"]}}, "product has no column 'colour'"),
    ],
)
def test_what_is_not_there_is_refused(unwatched: Shop, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        install(unwatched, **options)


def test_columns_need_a_primary_key(unwatched: Shop) -> None:
    with unwatched.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE log (line text, level int)")
        with pytest.raises(ConfigError, match=r"triggers\(columns=\) need the primary key of log, which has none"):
            unwatched.cache.triggers({"log": ["log:{level}"]}, columns={"log": ["line"]}).install(connection)
        unwatched.cache.triggers({"log": ["log:{level}"]}, ignore={"log": ["line"]}).install(connection)
        connection.exec_driver_sql("INSERT INTO log VALUES ('a', 1), ('a', 1), ('a', 2)")
    assert tags_of(unwatched, "UPDATE log SET line = 'b'") == set()
    assert tags_of(unwatched, "UPDATE log SET level = 3 WHERE level = 1") == {"log:1", "log:3"}
