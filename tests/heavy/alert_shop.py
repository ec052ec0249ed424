"""A shop for alerts: run as a script it reads, and writes, as the words of its command line say."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from cacheworkers import Cache, CacheworkersError, Config, Load
from cacheworkers.ops.metrics import Metrics


class Base(DeclarativeBase):
    pass


class Lamp(Base):
    __tablename__ = "lamp"

    id: Mapped[int] = mapped_column(primary_key=True)
    cents: Mapped[int]


engine = create_engine(os.environ["DATABASE_URL"])
Session = sessionmaker(engine)
app = Celery("alert_shop", broker=os.environ["BROKER_URL"])
config = Config.from_env(store_timeout=1.0, poison_after=2, gc_interval=3.0, drain_interval=2.0, warm_interval=2.0)
cache = Cache(config, celery=app, sessions=Session, hook=Metrics())
cache.outbox.create(engine)
cache.watch(Session, {Lamp: ["lamp:{id}"]})
Base.metadata.create_all(engine)


@cache.loader(fresh_for=300, stale_for=60, load_for=5, wait_for=1, tags=("lamp:{number}",))
def good(load: Load, number: int) -> int:
    return number


@cache.loader(fresh_for=0.5, stale_for=60, load_for=5, wait_for=1)
def brief(load: Load, number: int) -> int:
    """Is revalidated at nearly each read."""
    return number


@cache.loader(fresh_for=300, load_for=5, wait_for=1)
def bad(load: Load, number: int) -> int:
    raise ValueError(number)


@cache.loader(fresh_for=300, load_for=1, wait_for=60, on_timeout="raise")
def deadly(load: Load) -> int:
    """Kills every worker that runs it; readers must not."""
    os.kill(os.getpid(), 9)
    return 1


def main(words: list[str]) -> None:
    """Do what the words name, again and again, twenty times a second."""
    print("reading", flush=True)
    number = 0
    while True:
        number += 1
        with contextlib.suppress(CacheworkersError):
            good.get(number % 5)
        for word in words:
            with contextlib.suppress(CacheworkersError):
                match word:
                    case "misses":
                        good.get(1000 + number)
                    case "stale":
                        brief.get(number % 5)
                    case "bad":
                        bad.get(number)
                    case "deadly":
                        deadly.get()
                    case "write":
                        with Session.begin() as session:
                            session.merge(Lamp(id=number % 5, cents=number))
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
