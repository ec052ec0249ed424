"""What is written to a view or partition changes other tables; a text that does not say what it changes is refused."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from cacheworkers.errors import UnwatchedWrite

from .conftest import Shop

VIEWS = [
    "CREATE VIEW cheap AS SELECT id, price, category_id FROM product WHERE price < 1000",
    'CREATE VIEW "Cheapest" AS SELECT id, price FROM cheap',
    "CREATE VIEW notes AS SELECT id, text FROM unrelated",
    "CREATE TABLE old_product () INHERITS (product)",
    "CREATE TABLE other_product (LIKE product)",
    "CREATE PROCEDURE reprice() LANGUAGE sql AS $$ UPDATE product SET price = 1 $$",
]


@pytest.fixture
def viewed(shop: Shop) -> Shop:
    with shop.engine.begin() as connection:
        for statement in VIEWS:
            connection.execute(text(statement))
    shop.add(1)
    return shop


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE cheap SET price = 2",
        'UPDATE "Cheapest" SET price = 2',
        "DELETE FROM cheap",
        "MERGE INTO cheap c USING (SELECT 1 AS id) s ON c.id = s.id WHEN MATCHED THEN UPDATE SET price = 2",
        "UPDATE old_product SET price = 2",
        "TRUNCATE old_product",
        "CREATE TABLE gone AS WITH d AS (DELETE FROM product RETURNING id) SELECT id FROM d",
        "COPY (DELETE FROM product RETURNING id) TO STDOUT",
        "EXECUTE reprice_all",
        "UPDATE U&\"prod!0075ct\" UESCAPE '!' SET price = 2",
        "DO E'BEGIN UPD\\x41TE product SET price = 2; END'",
        "CALL reprice()",
        "DO $$ BEGIN EXECUTE 'UPDATE product SET price = 2'; END $$",
    ],
)
def test_it_is_refused_with_the_way_out(viewed: Shop, statement: str) -> None:
    with pytest.raises(UnwatchedWrite, match=r"install triggers .* on .*product.*cacheworkers_unwatched"):
        with viewed.sessions.begin() as session:
            session.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE notes SET text = 'x'",
        "SELECT * FROM cheap FOR UPDATE",
        "INSERT INTO other_product SELECT * FROM product",
        "CREATE TABLE copied AS SELECT id, price FROM product",
        "CREATE TABLE mine (product_id int REFERENCES product ON DELETE CASCADE ON UPDATE CASCADE)",
    ],
)
def test_other_views_are_written_as_ever(viewed: Shop, statement: str) -> None:
    with viewed.sessions.begin() as session:
        session.execute(text(statement))


def test_a_view_made_later_is_found(viewed: Shop) -> None:
    with viewed.sessions.begin() as session:
        session.execute(text("UPDATE notes SET text = 'x'"))
        session.execute(text("CREATE VIEW later AS SELECT id, price FROM product"))

    with pytest.raises(UnwatchedWrite), viewed.sessions.begin() as session:
        session.execute(text("UPDATE later SET price = 2"))


def test_the_database_is_asked_once_for_each_name(viewed: Shop) -> None:
    asked: list[Any] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "pg_views" in statement:
            asked.append(statement)

    from sqlalchemy import event

    event.listen(viewed.engine, "before_cursor_execute", note)
    for _ in range(3):
        with viewed.sessions.begin() as session:
            session.execute(text("UPDATE unrelated SET text = 'x'"))

    assert len(asked) == 1


@pytest.mark.parametrize("statement", ["UPDATE cheap SET price = 2", "CALL reprice()"])
def test_with_triggers_it_runs(viewed: Shop, statement: str) -> None:
    tables = {"product": ["product:{id}", "category:{category_id}"], "product_label": ["label:{label_id}"]}
    with viewed.engine.begin() as connection:
        viewed.cache.triggers(tables).install(connection)
    assert viewed.price.get(1) == 10

    with viewed.sessions.begin() as session:
        session.execute(text(statement))

    assert viewed.price.get(1) < 10
