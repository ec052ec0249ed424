"""The shop's cache: Celery app, cache and loaders."""

from __future__ import annotations

import os
import time
from decimal import Decimal
from typing import Any

import msgspec
from celery import Celery
from sqlalchemy import event, func, literal_column, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database import engine, sessions
from app.models import Category, Price, Product, Stock
from cacheworkers import Cache, CacheworkersError, Config, Load
from cacheworkers.ops.metrics import Metrics

PAGE = 20

celery = Celery("shop", broker=os.environ.get("BROKER_URL", os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")))
celery.conf.worker_soft_shutdown_timeout = 10.0  # what a worker has begun is finished, the rest goes back to the queue
cache = Cache(Config.from_env(), celery=celery, sessions=sessions, hook=Metrics())
# `app.seed` makes the tables, the outbox among them; web and workers start after it.
cache.watch(
    sessions,
    {
        Product: lambda row: (f"product:{row.id}", f"category:{row.category_id}"),
        Price: lambda row: (f"product:{row.product_id}", *(["deals"] if row.sale_amount is not None else [])),
        Stock: lambda row: (f"product:{row.product_id}",),
    },
)


@event.listens_for(sessions, "after_commit", insert=True)  # before the cache's own hook, which invalidates
def _note_commit(session: Session) -> None:
    session.info["committed_at"] = time.time()


class ProductView(msgspec.Struct, frozen=True):
    """A product as the API shows it; amounts in cents."""

    id: int
    name: str
    category_id: int
    amount: int
    sale_amount: int | None
    quantity: int


class CategoryPage(msgspec.Struct, frozen=True):
    """One page of a category."""

    category_id: int
    page: int
    total: int
    products: tuple[ProductView, ...]


def _select() -> Any:
    return (
        select(Product.id, Product.name, Product.category_id, Price.amount, Price.sale_amount, Stock.quantity)
        .join(Price, Price.product_id == Product.id)
        .join(Stock, Stock.product_id == Product.id)
    )


def _view(row: Any) -> ProductView:
    sale = None if row.sale_amount is None else int(row.sale_amount * 100)
    return ProductView(row.id, row.name, row.category_id, int(row.amount * 100), sale, row.quantity)


@cache.loader(fresh_for=300, stale_for=60, tags=("product:{product_id}",))
def product(load: Load, product_id: int) -> ProductView | None:
    """One product; None if there is none."""
    row = load.session.execute(_select().where(Product.id == product_id)).one_or_none()
    if row is None:
        return None
    load.tag(f"category:{row.category_id}")
    return _view(row)


@cache.loader(fresh_for=60, stale_for=60, tags=("category:{category_id}",))
def category_page(load: Load, category_id: int, page: int = 1) -> CategoryPage | None:
    """One page of a category, with the category's count; None past the end."""
    total = load.session.scalar(select(func.count()).where(Product.category_id == category_id)) or 0
    chosen = _select().where(Product.category_id == category_id).order_by(Product.id)
    found = load.session.execute(chosen.offset((page - 1) * PAGE).limit(PAGE)).all()
    if not found:
        return None
    load.tag(*(f"product:{row.id}" for row in found))
    return CategoryPage(category_id, page, total, tuple(map(_view, found)))


@cache.loader(fresh_for=30, stale_for=30, tags=("deals",))
def deals(load: Load) -> tuple[ProductView, ...]:
    """What is in the sale."""
    found = load.session.execute(_select().where(Price.sale_amount.is_not(None)).order_by(Product.id).limit(100)).all()
    load.tag(*(f"product:{row.id}" for row in found))
    return tuple(map(_view, found))


def set_price(product_id: int, amount: int) -> float | None:
    """Set a product's price, in cents; visible everywhere when this returns.

    Returns the instant of its commit, seconds since the epoch; None if there is no such product.
    """
    with sessions.begin() as session:
        price = session.get(Price, product_id)
        if price is None:
            return None
        price.amount = Decimal(amount) / 100
    return float(session.info["committed_at"])


def change(product_id: int, name: str | None, price: Decimal | None, category_id: int | None) -> ProductView | None:
    """Change what is given of a product, and return it as it is now; None if there is no such product.

    The watched session knows the category before and after: both categories' pages are invalidated with the commit.

    Raises:
        LookupError: there is no such category.
    """
    with sessions.begin() as session:
        product, its_price = session.get(Product, product_id), session.get(Price, product_id)
        if product is None or its_price is None:
            return None
        if category_id is not None:
            if session.get(Category, category_id) is None:
                raise LookupError(f"there is no category {category_id}")
            product.category_id = category_id
        product.name = product.name if name is None else name
        its_price.amount = its_price.amount if price is None else price
        session.flush()
        return _view(session.execute(_select().where(Product.id == product_id)).one())


def uncached_product(product_id: int) -> bytes:
    """The same product straight from the database, for comparison; Postgres counts it apart by its extra column."""
    statement = _select().add_columns(literal_column("1").label("uncached"))
    with sessions() as session:
        row = session.execute(statement.where(Product.id == product_id)).one_or_none()
    return b"null" if row is None else msgspec.json.encode(_view(row))


def is_database_up() -> bool:
    """Return whether the database answers."""
    try:
        with engine.connect() as connection:
            return bool(connection.execute(text("SELECT 1")).scalar_one() == 1)
    except SQLAlchemyError:
        return False


def is_store_up() -> bool:
    """Return whether the cache's store answers."""
    try:
        product.peek(1)
    except CacheworkersError:
        return False
    return True
