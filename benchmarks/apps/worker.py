"""The library's loader for the product API, and the Celery app whose workers run it."""

from __future__ import annotations

import os

from celery import Celery
from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker

from app.models import Price, Product, Stock
from benchmarks.apps import FRESH_FOR
from cacheworkers import Cache, Config, Load

app = Celery("apps", broker=os.environ["REDIS_URL"])
cache = Cache(
    Config(redis_url=os.environ["REDIS_URL"]),
    celery=app,
    sessions=sessionmaker(create_engine(os.environ["DATABASE_URL"])),
)


@cache.loader(fresh_for=FRESH_FOR, stale_for=60, tags=("product:{product_id}",))
def product(load: Load, product_id: int) -> dict[str, int | str | None] | None:
    """One product, as the API shows it."""
    statement = (
        select(Product.id, Product.name, Product.category_id, Price.amount, Price.sale_amount, Stock.quantity)
        .join(Price, Price.product_id == Product.id)
        .join(Stock, Stock.product_id == Product.id)
    )
    row = load.session.execute(statement.where(Product.id == product_id)).one_or_none()
    if row is None:
        return None
    return {
        "id": row.id,
        "name": row.name,
        "category_id": row.category_id,
        "quantity": row.quantity,
        "amount": int(row.amount * 100),
        "sale_amount": None if row.sale_amount is None else int(row.sale_amount * 100),
    }
