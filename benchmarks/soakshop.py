"""What the soak reads and writes: prices that only rise; loads that outlive their lease, fail, or wait in turn."""

from __future__ import annotations

import logging
import os
import random
import time
from typing import Any

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from benchmarks.soakdeaths import Deaths
from cacheworkers import Cache, Config, Load
from cacheworkers.events import Event, InvalidationUndelivered

GROUPS = 4
LOAD_FOR, WAIT_FOR = 1.0, 3.0
#: Numbers above this have no price: a batch with one of them raises.
PRICES = 40


class Base(DeclarativeBase):
    """The soak's tables."""


class Price(Base):
    """A price that only rises."""

    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


undelivered: list[Event] = []


def hook(event: Event) -> None:
    """Remember commits whose invalidation is left to the drain: they are not acknowledged."""
    if isinstance(event, InvalidationUndelivered):
        undelivered.append(event)


# What fails is meant to, and what is lost is killed: thousands of lines.
logging.getLogger("cacheworkers").setLevel(logging.CRITICAL)
app = Celery("soak", broker=os.environ["BROKER_URL"])
app.conf.worker_hijack_root_logger = False
engine = create_engine(os.environ["DATABASE_URL"])
sessions = sessionmaker(engine)
cache = Cache(
    Config.from_env(store_timeout=0.5, breaker_for=0.2, backoff_for=0.05, max_backoff_for=0.2, gc_interval=1.0),
    celery=app,
    sessions=sessions,
    hook=hook,
)
deaths = Deaths.of_environment()
deaths.before_steps_of(cache._ports.store)
cache.watch(sessions, {Price: lambda row: (f"price:{row.id}", f"group:{row.id % GROUPS}")})


def find(load: Load, number: int) -> int:
    """Read one price; now and then for longer than the lease lasts, or in vain."""
    row = load.session.get_one(Price, number)
    amount = row.amount
    chance = random.random()
    if chance < 0.02:
        time.sleep(LOAD_FOR * 1.2)
    elif chance < 0.2:
        time.sleep(0.02)
    elif chance < 0.22:
        raise OSError("out of luck")
    return amount


options: Any = {"fresh_for": 5.0, "stale_for": 0.0, "error_for": 5.0, "load_for": LOAD_FOR, "wait_for": WAIT_FOR}
of_one: Any = {"tags": ("price:{number}",), **options}
near = cache.loader(name="near", **of_one)(find)
strict = cache.loader(name="strict", l1_for=0.0, **of_one)(find)
limited = cache.loader(name="limited", l1_for=0.0, rate_limit="50/s", **of_one)(find)


@cache.batch_loader(tags=("price:{key}",), l1_for=0.0, **options)
def several(load: Load, keys: list[int]) -> dict[int, int]:
    """Many prices with one query, which one bad number spoils."""
    if any(each > PRICES for each in keys):
        raise ValueError("there is no such price")
    return {row.id: row.amount for row in load.session.query(Price).where(Price.id.in_(keys))}


@cache.loader(tags=("group:{group}",), l1_for=0.0, **options)
def total(load: Load, group: int) -> dict[str, int]:
    """All prices of a group: many rows in one entry."""
    rows = load.session.query(Price).where(Price.id % GROUPS == group)
    return {str(row.id): row.amount for row in rows}
