"""What the soak reads and writes: prices that only rise, loads that sometimes outlive their lease."""

from __future__ import annotations

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
LOAD_FOR = 1.0


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


app = Celery("soak", broker=os.environ["REDIS_URL"])
app.conf.worker_hijack_root_logger = False
engine = create_engine(os.environ["DATABASE_URL"])
sessions = sessionmaker(engine)
cache = Cache(
    Config.from_env(store_timeout=0.5, breaker_for=0.2, gc_interval=1.0), celery=app, sessions=sessions, hook=hook
)
deaths = Deaths.of_environment()
deaths.before_steps_of(cache._ports.store)
cache.watch(sessions, {Price: lambda row: (f"price:{row.id}", f"group:{row.id % GROUPS}")}, check=False)


def find(load: Load, number: int) -> int:
    """Read one price; now and then longer than the lease lasts."""
    row = load.session.get_one(Price, number)
    amount = row.amount
    chance = random.random()
    if chance < 0.02:
        time.sleep(LOAD_FOR * 1.2)
    elif chance < 0.2:
        time.sleep(0.02)
    return amount


options: Any = {"tags": ("price:{number}",), "fresh_for": 5.0, "stale_for": 0.0, "load_for": LOAD_FOR, "wait_for": 3.0}
near = cache.loader(name="near", **options)(find)
strict = cache.loader(name="strict", l1_for=0.0, **options)(find)


@cache.loader(tags=("group:{group}",), fresh_for=5.0, stale_for=0.0, load_for=LOAD_FOR, wait_for=3.0, l1_for=0.0)
def total(load: Load, group: int) -> dict[str, int]:
    """All prices of a group: many rows in one entry."""
    rows = load.session.query(Price).where(Price.id % GROUPS == group)
    return {str(row.id): row.amount for row in rows}
