"""Triggers, whoever changes a table of whatever name: the same outbox, and the tags that a session would make."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import CHAR, JSON, Date, Enum, LargeBinary, Numeric, delete, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cacheworkers import ConfigError

from .conftest import Product, Shop

TAGS = {"product": ["product:{id}"]}
ADDED = "INSERT INTO public.product (id, category_id, price) VALUES (1, 7, 1)"


class Odd(DeclarativeBase):
    pass


class Order(Odd):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)


class Capital(Odd):
    __tablename__ = "Capital"
    id: Mapped[int] = mapped_column("Id", primary_key=True)


class Dashed(Odd):
    __tablename__ = "da-shed"
    __table_args__ = ({"schema": "tenant-1"},)
    id: Mapped[int] = mapped_column(primary_key=True)


class Kinds(Odd):
    __tablename__ = "kinds"
    id: Mapped[int] = mapped_column(primary_key=True)
    active: Mapped[bool | None]
    name: Mapped[str]
    number: Mapped[uuid.UUID]
    day: Mapped[datetime.date] = mapped_column(Date)
    price: Mapped[Any] = mapped_column(Numeric(8, 2))
    weight: Mapped[float]
    made_at: Mapped[datetime.datetime]
    colour: Mapped[str] = mapped_column(Enum("red", "green", name="colour"))
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    about: Mapped[Any] = mapped_column(JSON)
    code: Mapped[str] = mapped_column(CHAR(4))


@pytest.fixture
def odd(unwatched: Shop) -> Shop:
    run_sql(unwatched, 'CREATE SCHEMA "tenant-1"')
    Odd.metadata.create_all(unwatched.engine)
    return unwatched


@pytest.fixture
def clerk(shop: Shop) -> Iterator[str]:
    """A role that may change products, and has no other right."""
    name = f"clerk_{uuid.uuid4().hex}"
    run_sql(shop, f"CREATE ROLE {name}", f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON product TO {name}")
    yield name
    run_sql(shop, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def run_sql(shop: Shop, *statements: str) -> None:
    """Run statements in one transaction."""
    with shop.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def install(shop: Shop, templates: dict[str, list[str]]) -> None:
    with shop.engine.begin() as connection:
        shop.cache.triggers(templates).install(connection)


def triggered_tags(shop: Shop, outbox: str = "public.cacheworkers_outbox") -> list[set[str]]:
    """The tags of each row that a trigger has written."""
    with shop.engine.connect() as connection:
        found = connection.execute(text(f"SELECT tags FROM {outbox} WHERE source = 'trigger' ORDER BY id"))
        return [set(row.tags.split("\n")) for row in found]


# -- whoever changes the table


@pytest.mark.parametrize(
    "change",
    [
        ADDED,
        "UPDATE public.product SET price = 2",
        "DELETE FROM public.product WHERE id = 2",
        "TRUNCATE public.product CASCADE",
    ],
)
def test_a_role_without_rights_on_the_outbox_may_change_the_table(shop: Shop, clerk: str, change: str) -> None:
    """Its statement succeeds, and what it changed is in the outbox."""
    run_sql(shop, f"GRANT TRUNCATE ON product_label TO {clerk}")
    shop.add(2)
    install(shop, TAGS)

    run_sql(shop, f"SET LOCAL ROLE {clerk}", change)

    assert triggered_tags(shop) == [{"product:1" if change is ADDED else "product:2"}]


@pytest.mark.parametrize("path", ["''", "tenant", "tenant, public"])
def test_another_search_path_writes_the_same_outbox(shop: Shop, path: str) -> None:
    """Neither none nor a foreign one that is found first."""
    run_sql(
        shop,
        "CREATE SCHEMA tenant",
        "CREATE TABLE tenant.cacheworkers_outbox (LIKE cacheworkers_outbox INCLUDING ALL)",
        "CREATE TABLE tenant.product (id int)",
        "INSERT INTO tenant.product VALUES (8)",
    )
    install(shop, TAGS)
    shop.add(2)

    run_sql(shop, f"SET LOCAL search_path = {path}", ADDED, "TRUNCATE public.product CASCADE")

    assert triggered_tags(shop) == [{"product:2"}, {"product:1"}, {"product:1", "product:2"}]
    assert triggered_tags(shop, "tenant.cacheworkers_outbox") == []


def test_nobody_else_may_make_triggers_of_the_function(shop: Shop, clerk: str) -> None:
    """By a trigger on a table of their own they would run casts of their own with its owner's rights."""
    install(shop, TAGS)
    name = f"cacheworkers_{shop.cache.config.namespace}_product"
    mine = (
        f"GRANT CREATE, USAGE ON SCHEMA public TO {clerk}",
        f"SET LOCAL ROLE {clerk}",
        "CREATE TABLE mine (id int)",
        f"CREATE TRIGGER mine AFTER INSERT ON mine REFERENCING NEW TABLE AS new_rows EXECUTE FUNCTION {name}()",
    )

    with pytest.raises(ProgrammingError, match=f"permission denied for function {name}"):
        run_sql(shop, *mine)


@pytest.mark.parametrize("comment", ["cacheworkers {} v2 {} public.cacheworkers_outbox", "cacheworkers {} v2 {}"])
def test_triggers_of_an_older_version_are_outdated(shop: Shop, comment: str) -> None:
    """They are missing, and sessions write the outbox themselves."""
    triggers = shop.cache.triggers(TAGS)
    with shop.engine.begin() as connection:
        triggers.install(connection)
    namespace = shop.cache.config.namespace
    says = comment.format(namespace, triggers.digest("product"))
    run_sql(shop, f"COMMENT ON FUNCTION cacheworkers_{namespace}_product() IS '{says}'")

    with shop.engine.connect() as connection:
        assert triggers.missing(connection) == ["product"]
    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))
    assert shop.invalidated() == [{"product:1", "category:7"}]


def test_triggers_that_write_another_outbox_are_not_relied_on(shop: Shop) -> None:
    triggers = shop.cache.triggers(TAGS)
    like = "CREATE TABLE tenant.cacheworkers_outbox (LIKE cacheworkers_outbox INCLUDING ALL)"
    run_sql(shop, "CREATE SCHEMA tenant", like)
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = tenant, public")
        triggers.install(connection)

    with shop.engine.connect() as connection:
        assert triggers.missing(connection) == ["product"]
    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))
    assert shop.invalidated() == [{"product:1", "category:7"}]


def test_a_migration_s_statements_install_what_install_does(shop: Shop) -> None:
    triggers = shop.cache.triggers(TAGS)
    with shop.engine.begin() as connection:
        for statement in triggers.up():
            connection.execute(text(statement))  # as Alembic's op.execute does
        assert triggers.missing(connection) == []

    run_sql(shop, ADDED)
    assert triggered_tags(shop) == [{"product:1"}]


# -- whatever its name is


@pytest.mark.parametrize(
    ("table", "column", "mapped"),
    [
        ("order", "id", Order),
        ('"order"', "id", Order),
        ("public.order", "id", Order),
        ("Capital", "Id", Capital),
        ("tenant-1.da-shed", "id", Dashed),
        ('"tenant-1"."da-shed"', "id", Dashed),
    ],
)
def test_a_table_of_any_name_has_triggers(odd: Shop, table: str, column: str, mapped: Any) -> None:
    """They are relied on, bulk statements too, and go again."""
    triggers = odd.cache.triggers({table: [f"$create$ 100%'\\:{{{column}}}"]})
    odd.cache.watch(odd.sessions, {mapped: lambda row: (f"$create$ 100%'\\:{row.id}",)})
    with odd.engine.begin() as connection:
        triggers.install(connection)
        assert triggers.missing(connection) == []

    with odd.sessions.begin() as session:
        session.add(mapped(id=1))
    with odd.sessions.begin() as session:
        session.execute(delete(mapped))
    assert triggered_tags(odd) == [{"$create$ 100%'\\:1"}] * 2
    with odd.engine.connect() as connection:
        assert set(connection.execute(select(odd.cache.outbox.table.c.source)).scalars()) == {"trigger"}

    with odd.engine.begin() as connection:
        triggers.remove(connection)
    run_sql(odd, f"INSERT INTO {odd.engine.dialect.identifier_preparer.format_table(mapped.__table__)} VALUES (2)")
    assert len(triggered_tags(odd)) == 2


def test_names_are_exact(odd: Shop) -> None:
    with odd.engine.connect() as connection, pytest.raises(ConfigError, match=r"no table CAPITAL.*names are exact"):
        odd.cache.triggers({"CAPITAL": ["x:{Id}"]}).install(connection)


# -- the same tags as a session's

ALIKE = ["id:{id}", "active:{active}", "name:{name}", "number:{number}", "day:{day}"]


def of_kinds(number: int, active: bool | None) -> Kinds:
    return Kinds(
        id=number,
        active=active,
        name="true it's 5%",
        number=uuid.UUID(int=number),
        day=datetime.date(987, 1, number),
        price=1,
        weight=1,
        made_at=datetime.datetime(2026, 1, 1),
        colour="red",
        raw=b"",
        about={},
        code="a",
    )


def test_triggers_and_sessions_make_the_same_tags(odd: Shop) -> None:
    """True and not true, None and not nothing, days not in the style that the database's clients have chosen."""
    odd.cache.watch(odd.sessions, {Kinds: ALIKE})
    with odd.sessions.begin() as session:
        session.add_all([of_kinds(1, True), of_kinds(2, False), of_kinds(3, None)])
    install(odd, {"kinds": ALIKE})

    run_sql(odd, "SET LOCAL datestyle = 'German'", "DELETE FROM kinds")

    [by_session] = odd.invalidated()
    assert {"active:True", "active:False", "active:None", "day:0987-01-03"} < by_session
    assert triggered_tags(odd)[-1] == by_session


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("price", r"numeric\(8,2\)"),
        ("weight", "double precision"),
        ("made_at", "timestamp without time zone"),
        ("colour", "colour"),
        ("raw", "bytea"),
        ("about", "json"),
        ("code", r"character\(4\)"),
        ("is_sold", "sold"),
    ],
)
def test_a_type_whose_text_is_another_is_refused(odd: Shop, column: str, kind: str) -> None:
    run_sql(odd, "CREATE DOMAIN sold AS boolean", "ALTER TABLE kinds ADD is_sold sold")
    rule = f"kinds.{column} is {kind}, and the text.*take columns of smallint, integer"

    with odd.engine.connect() as connection, pytest.raises(ConfigError, match=rule):
        odd.cache.triggers({"kinds": [f"x:{{{column}}}"]}).install(connection)


def test_a_domain_is_what_it_is_made_of(odd: Shop) -> None:
    run_sql(odd, "CREATE DOMAIN slug AS varchar(20)", "CREATE TABLE named (slug slug)")
    install(odd, {"named": ["named:{slug}"]})

    run_sql(odd, "INSERT INTO named VALUES ('a')")

    assert triggered_tags(odd) == [{"named:a"}]
