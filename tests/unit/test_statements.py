"""A statement that changes a watched table is found by its text, however its name is written; others are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite

from cacheworkers.sql.watch.sql_writes import writes_of
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
    "COPY item (id, price) FROM '/tmp/items.csv'",
    'UPDATE U&"\\0069tem" SET x = 1',
    "WITH gone AS (DELETE FROM item RETURNING id) INSERT INTO log SELECT id FROM gone",
    "WITH x AS (SELECT 1) UPDATE item SET x = 1",
    "PREPARE change AS UPDATE item SET x = $1",
    "EXPLAIN (ANALYZE, VERBOSE) UPDATE item SET x = 1",
    "DO $$ BEGIN IF true THEN UPDATE item SET x = 1; END IF; END $$",
    "INSERT OR REPLACE INTO item VALUES (1)",
    "UPDATE OR IGNORE item SET x = 1",
    "UPDATE a, item SET item.x = a.x WHERE a.id = item.id",
    "UPDATE a JOIN item AS i ON a.id = i.id SET i.x = 1",
    "UPDATE LOW_PRIORITY IGNORE item SET x = 1",
    "DELETE i FROM a JOIN item AS i ON a.id = i.id",
    "DELETE QUICK FROM i USING item AS i JOIN a",
    "DELETE i.*, a.* FROM item i, a",
    "INSERT DELAYED item VALUES (1)",
    "REPLACE item VALUES (1)",
    "LOAD DATA LOCAL INFILE 'x.csv' REPLACE INTO TABLE item",
    "RENAME TABLE item TO old, fresh TO item",
    "/*!50000 UPDATE */ item SET x = 1",
    "SELECT 'it''s /* '; UPDATE item SET x = 1",
    "SELECT 1 -- '\n; UPDATE item SET x = 1",
    "SELECT $a$ ' $a$; UPDATE item SET x = 1",
    "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END; UPDATE item SET x = 1",
    "SELECT a[1:2], b::int FROM x; UPDATE item SET x = :x",
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
    "SELECT price FROM item /* controller='update item' */",
    "/* job: delete from item */ SELECT 1",
    "SELECT 1 -- then update item",
    "INSERT INTO log VALUES ('delete from item where id = 1')",
    "INSERT INTO log VALUES ($a$delete from item$a$)",
    'SELECT 1 AS "update item"',
    "SELECT replace(item, 'a', 'b'), insert(item, 1, 2, 'x'), truncate(item, 2) FROM x",
    "EXPLAIN UPDATE item SET x = 1",
    "LOCK TABLE item IN SHARE ROW EXCLUSIVE MODE",
    "COPY item TO STDOUT",
    "COPY item (id, price) TO STDOUT",
    "COPY (SELECT * FROM item) TO STDOUT",
    "GRANT UPDATE, DELETE ON item TO x",
    "INSERT INTO x VALUES (1) ON CONFLICT (id) DO UPDATE SET item = 1",
    "INSERT INTO x VALUES (1) ON DUPLICATE KEY UPDATE item = 2",
    "MERGE INTO x USING item ON true WHEN MATCHED THEN UPDATE SET a = 1 WHEN NOT MATCHED THEN INSERT (item) VALUES (1)",
    "CREATE TRIGGER t AFTER UPDATE ON item FOR EACH ROW BEGIN DELETE FROM item; END",
    "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ UPDATE item SET x = 1 $$",
    "CREATE TABLE x (a int REFERENCES item ON DELETE CASCADE ON UPDATE SET NULL)",
    "UPDATE x SET a = 1 FROM item",
]


def changes(statements: Statements, statement: str, dialect: str = "") -> frozenset[str]:
    return statements.changed_by(statements.writes(statement, dialect))


@pytest.mark.parametrize("statement", CHANGES)
def test_a_change_is_found(statement: str) -> None:
    assert changes(ITEM, statement)


@pytest.mark.parametrize("statement", LEAVES)
def test_another_statement_is_left_alone(statement: str) -> None:
    assert not changes(ITEM, statement)


def test_nothing_is_found_where_nothing_is_looked_for() -> None:
    assert not changes(Statements(changed=[]), "TRUNCATE item; DELETE FROM item")


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters=";"), min_size=1)


@given(names, st.none() | names, st.sampled_from([postgresql, sqlite, mysql]))
def test_whatever_sqlalchemy_writes_is_found(name: str, schema: str | None, backend: object) -> None:
    """Tables and schemas of any name, in the quotes of each database."""
    table = Table(name, MetaData(), Column("id", Integer), schema=schema)
    statements = Statements(changed=[name])
    dialect = backend.dialect()  # type: ignore[attr-defined]  # modules of one kind

    for statement in (update(table).values(id=1), delete(table), insert(table).values(id=1)):
        assert changes(statements, str(statement.compile(dialect=dialect))) == {name}
    written = dialect.identifier_preparer.format_table(table)
    assert changes(statements, f"TRUNCATE TABLE x, {written}") == {name}
    assert not changes(statements, str(select(table.c.id).compile(dialect=dialect)))


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CALL reprice(7)", "the procedure reprice"),
        ("DO $$ BEGIN EXECUTE 'UPD' || 'ATE item SET x = 1'; END $$", "a DO block that runs SQL from strings"),
        ("DO LANGUAGE plpython3u $$ plpy.execute('x') $$", "a DO block"),
    ],
)
def test_what_the_text_does_not_say_may_change_everything(statement: str, named: str) -> None:
    assert writes_of(statement, "postgresql").opaque.startswith(named)
    assert changes(ITEM, statement, "postgresql") == {"item", "order", 'we"ird', "two words"}


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_a_backslash_is_no_escape_in_standard_literals(dialect: str) -> None:
    assert changes(ITEM, "SELECT 'c:\\'; UPDATE item SET x = 1", dialect)
    assert not changes(ITEM, "SELECT 'c:\\', 'update item set x = 1'", dialect)


def test_a_backslash_is_an_escape_in_mysql() -> None:
    assert changes(ITEM, "SELECT 'it\\'s'; UPDATE item SET x = 1", "mysql")
    assert not changes(ITEM, "SELECT 'it\\'; UPDATE item SET x = 1'", "mysql")
    assert not changes(ITEM, "SELECT 1 # update item", "mysql")


def test_comments_nest_in_postgres_alone() -> None:
    text = "SELECT 1 /* a /* b */ ; UPDATE item SET x = 1 /* */ */"

    assert not changes(ITEM, text, "postgresql")
    assert changes(ITEM, text, "sqlite")


PIECES = [
    "update ",
    "delete from ",
    "'",
    '"',
    "`",
    "[",
    "/*",
    "*/",
    "--",
    "$$",
    "$a$",
    "(",
    ")",
    ",",
    ".",
    "a",
    "\\",
    "E'",
]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
def test_any_text_is_read_in_linear_time(pieces: list[str]) -> None:
    """By the number of tokens looked at: each is passed once."""
    from cacheworkers.sql.watch import sql_writes

    seen = 0

    class Counting(sql_writes._Parser):
        def _word(self, at: int) -> str:
            nonlocal seen
            seen += 1
            return super()._word(at)

    text = "".join(pieces) * 200
    for grammar in ("ansi", "sqlite", "mysql"):
        tokens = list(sql_writes.tokens_of(text, grammar))  # type: ignore[arg-type]  # a literal
        seen = 0
        Counting(tokens).parse()
        assert seen <= 20 * (len(tokens) + 1)
