"""What the benchmarks load: one slow product, one quick one; from Postgres, in Celery workers."""

from __future__ import annotations

import os

from celery import Celery
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from cacheworkers import Cache, Config, Load


class Base(DeclarativeBase):
    """What is changed by sessions."""


class Price(Base):
    """A price."""

    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


app = Celery("bench", broker=os.environ["REDIS_URL"])
engine = create_engine(os.environ["DATABASE_URL"])
sessions = sessionmaker(engine)
cache = Cache(Config.from_env(store_timeout=5.0), celery=app, sessions=sessions)


def watch_prices() -> None:
    """Let sessions invalidate what they change; the outbox must be there."""
    cache.watch(sessions, {Price: ["price:{id}"]})


@cache.loader(fresh_for=300, load_for=20, wait_for=20)
def slow(load: Load, n: int) -> int:
    load.session.execute(text("SELECT pg_sleep(0.4)"))
    return n


@cache.loader(fresh_for=300, wait_for=10, tags=("price:{product_id}",))
def price(load: Load, product_id: int) -> int:
    statement = text("SELECT amount FROM price WHERE id = :id")
    return int(load.session.execute(statement, {"id": product_id}).scalar_one())


@cache.loader(fresh_for=300, wait_for=10, l1_for=60, tags=("price:{product_id}",))
def near(load: Load, product_id: int) -> int:
    """The same, kept in memory too."""
    statement = text("SELECT amount FROM price WHERE id = :id")
    return int(load.session.execute(statement, {"id": product_id}).scalar_one())


@cache.batch_loader(fresh_for=3600, wait_for=10, load_for=20, tags=("price:{key}",))
def prices(load: Load, ids: list[int]) -> dict[int, int]:
    statement = text("SELECT id, amount FROM price WHERE id = ANY(:ids)")
    return {row.id: row.amount for row in load.session.execute(statement, {"ids": ids})}
