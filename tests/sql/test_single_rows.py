"""Statements of SQLAlchemy's Core that change one row by its key are tagged; all others are still refused."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.orm import Session

from cacheworkers import UnwatchedWrite

from .conftest import Product, Shop, labels

table: Any = Product.__table__


@pytest.fixture
def stocked(shop: Shop) -> Shop:
    shop.add(1, 2)
    return shop


@pytest.mark.parametrize(
    ("statement", "tags"),
    [
        (insert(Product).values(id=7, category_id=3, price=1), {"product:7", "category:3"}),
        (insert(table).values({"id": 7, "category_id": func.abs(-3), "price": 1}), {"product:7", "category:3"}),
        (insert(table).values(category_id=3, price=1), {"product:1", "category:3"}),
        (update(Product).where(Product.id == 1).values(price=5), {"product:1", "category:1"}),
        (
            update(table).where(table.c.id == 1, table.c.price > 0).values(category_id=4),
            {"product:1", "category:1", "category:4"},
        ),
        (update(Product).where(1 == Product.id).values(price=Product.price + 1), {"product:1", "category:1"}),
        (update(Product).where(Product.id == 1).values(price=6).returning(Product.price), {"product:1", "category:1"}),
        (delete(Product).where(Product.id == 1), {"product:1", "category:1"}),
        (delete(table).where(table.c.id == 1), {"product:1", "category:1"}),
    ],
)
def test_one_row_by_its_key(shop: Shop, statement: Any, tags: set[str]) -> None:
    if not statement.is_insert:
        shop.add(1, 2)
    with shop.sessions.begin() as session:
        session.execute(statement)
        assert shop.invalidated() == []

    assert shop.invalidated() == [tags]


def test_a_link_by_its_key(shop: Shop) -> None:
    shop.add(1)
    with Session(shop.engine) as session, session.begin():
        session.execute(insert(labels.metadata.tables["label"]).values(id=5, name="x"))
    with shop.sessions.begin() as session:
        session.execute(insert(labels).values(product_id=1, label_id=5))
    with shop.sessions.begin() as session:
        session.execute(delete(labels).where(labels.c.product_id == 1, labels.c.label_id == 5))

    assert shop.invalidated() == [{"label:5"}, {"label:5"}]


def test_a_row_that_is_not_there_has_no_tags(stocked: Shop) -> None:
    with stocked.sessions.begin() as session:
        session.execute(update(Product).where(Product.id == 9).values(price=5))
        session.execute(delete(Product).where(Product.id == 9))

    assert stocked.invalidated() == []


def test_the_same_statement_with_another_key(stocked: Shop) -> None:
    """SQLAlchemy compiles it once, with the first key."""
    for key in (1, 2):
        with stocked.sessions.begin() as session:
            session.execute(update(Product).where(Product.id == key).values(price=5))

    assert stocked.invalidated() == [{"product:1", "category:1"}, {"product:2", "category:1"}]


def test_a_rollback_leaves_nothing(stocked: Shop) -> None:
    with stocked.sessions() as session:
        session.execute(delete(Product).where(Product.id == 1))
        session.rollback()

    assert stocked.invalidated() == [] and stocked.waiting() == 0


@pytest.mark.parametrize(
    "statement",
    [
        insert(table).values([{"id": 7, "category_id": 3, "price": 1}, {"id": 8, "category_id": 3, "price": 1}]),
        insert(table).from_select(["id", "category_id", "price"], select(table.c.id + 9, table.c.id, table.c.id)),
        postgres_insert(table)
        .values(id=1, category_id=3, price=1)
        .on_conflict_do_update(index_elements=["id"], set_={"price": 4}),
        update(Product).where(Product.category_id == 1).values(price=5),
        update(Product).where((Product.id == 1) | (Product.id == 2)).values(price=5),
        update(Product).where(Product.id == Product.category_id).values(price=5),
        update(Product).where(Product.id == 1).values(id=9),
        update(Product).where(Product.id == 1).values(price=5).add_cte(delete(table).where(table.c.id == 2).cte()),
        delete(Product).where(Product.id > 1),
        delete(Product).where(~(Product.id == 1)),
        delete(Product),
    ],
)
def test_others_are_refused(stocked: Shop, statement: Any) -> None:
    with stocked.sessions() as session, pytest.raises(UnwatchedWrite, match="product"):
        session.execute(statement)


@pytest.mark.anyio
async def test_in_an_async_session(stocked: Shop) -> None:
    async with stocked.async_sessions.begin() as session:
        await session.execute(update(Product).where(Product.id == 1).values(price=5))

    assert stocked.invalidated() == [{"product:1", "category:1"}]
