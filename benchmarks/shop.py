"""What the benchmarks load: one slow product, one quick one; from Postgres, in Celery workers."""

from __future__ import annotations

import os

from celery import Celery
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Config, Load

app = Celery("bench", broker=os.environ["REDIS_URL"])
engine = create_engine(os.environ["DATABASE_URL"])
cache = Cache(Config.from_env(store_timeout=5.0), celery=app, sessions=sessionmaker(engine))


@cache.loader(fresh_for=300, load_for=20, wait_for=20)
def slow(load: Load, n: int) -> int:
    load.session.execute(text("SELECT pg_sleep(0.4)"))
    return n


@cache.loader(fresh_for=300, wait_for=10, tags=("price:{product_id}",))
def price(load: Load, product_id: int) -> int:
    statement = text("SELECT amount FROM price WHERE id = :id")
    return int(load.session.execute(statement, {"id": product_id}).scalar_one())


@cache.batch_loader(fresh_for=3600, wait_for=10, load_for=20, tags=("price:{key}",))
def prices(load: Load, ids: list[int]) -> dict[int, int]:
    statement = text("SELECT id, amount FROM price WHERE id = ANY(:ids)")
    return {row.id: row.amount for row in load.session.execute(statement, {"ids": ids})}
