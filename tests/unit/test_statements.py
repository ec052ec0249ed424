"""A statement that changes a watched table is told by its text, however its name is written; others are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite

from cacheworkers.sql.watch.statements import Statements

ITEM = Statements(changed=["item", "order", 'we"ird', "two words"], deleted=["house"], truncated=["street"])

CHANGES = [
    'UPDATE "tenant-1".item SET price = 1',
    'DELETE FROM "tenant-1".item WHERE id = 1',
    'INSERT INTO "tenant-1".item (id) VALUES (1)',
    'UPDATE "my schema"."item" SET x = 1',
    'UPDATE "a.b" . "item" SET x = 1',
    'UPDATE"item"SET x = 1',
    'UPDATE ONLY"item" SET x = 1',
    "UPDATE ONLY (item) SET x = 1",
    'UPDATE "order" SET x = 1',
    "INSERT INTO [my-s].[item] (id) VALUES (1)",
    "UPDATE `t-1`.`item` SET x = 1",
    "UPDATE 'item' SET x = 1",
    'UPDATE "we""ird" SET x = 1',
    'INSERT INTO "a""b"."two words" VALUES (1)',
    'UPDATE "x".item SET a = 1',
    'update/* "other" */item set x = 1',
    'SELECT "update" FROM x; UPDATE "item" SET x = 1',
    "SELECT 'copy' FROM x; UPDATE item SET y = 'z'",
    'DELETE FROM"house"',
    'TRUNCATE "tenant-1"."item", other',
    'TRUNCATE TABLE other, "we""ird" CASCADE',
    "truncate street",
    'MERGE INTO "tenant-1".item AS i USING x ON true WHEN MATCHED THEN DELETE',
    'COPY "tenant-1".item FROM STDIN',
]
LEAVES = [
    'UPDATE "item".other SET x = 1',
    'UPDATE "tenant-1.item" SET x = 1',
    'UPDATE "an item" SET x = 1',
    "UPDATE items SET item = 1",
    "SELECT * FROM item FOR UPDATE",
    'SELECT * FROM "item" FOR UPDATE OF "item"',
    'UPDATE other SET x = (SELECT 1 FROM "tenant-1".item)',
    "UPDATE house SET x = 1",
    'DELETE FROM street USING "item"',
]


@pytest.mark.parametrize("statement", CHANGES)
def test_a_change_is_found(statement: str) -> None:
    assert ITEM.changes(statement)


@pytest.mark.parametrize("statement", LEAVES)
def test_another_statement_is_left_alone(statement: str) -> None:
    assert not ITEM.changes(statement)


def test_nothing_is_found_where_nothing_is_looked_for() -> None:
    assert not Statements(changed=[]).changes("TRUNCATE item; DELETE FROM item")


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters=";"), min_size=1)


@given(names, st.none() | names, st.sampled_from([postgresql, sqlite, mysql]))
def test_whatever_sqlalchemy_writes_is_found(name: str, schema: str | None, backend: object) -> None:
    """Tables and schemas of any name, in the quotes of each database."""
    table = Table(name, MetaData(), Column("id", Integer), schema=schema)
    statements = Statements(changed=[name])
    dialect = backend.dialect()  # type: ignore[attr-defined]  # modules of one kind

    for statement in (update(table).values(id=1), delete(table), insert(table).values(id=1)):
        assert statements.changes(str(statement.compile(dialect=dialect))) == {name}
    written = dialect.identifier_preparer.format_table(table)
    assert statements.changes(f"TRUNCATE TABLE x, {written}") == {name}
    assert not statements.changes(str(select(table.c.id).compile(dialect=dialect)))
