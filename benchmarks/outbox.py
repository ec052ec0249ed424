"""What a watched transaction costs: `python -m benchmarks.outbox [--transactions 2000]`.

The same one-row update, committed: with a plain session, with a watched one, and with a plain one followed by
`cache.invalidate`, which is what a crash in between would lose.  Taken in turns, in one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cacheworkers import Cache, Config
from cacheworkers.testing import Postgres, Valkey


class Base(DeclarativeBase):
    """The benchmark's tables."""


class Price(Base):
    """One row to change."""

    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


def main() -> None:
    """Measure in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, default=2000)
    options = parser.parse_args()
    with Valkey() as valkey, Postgres() as postgres:
        engine = create_engine(postgres.create_database("outbox"))
        cache = Cache(Config(redis_url=valkey.url, store_timeout=5.0))
        Base.metadata.create_all(engine)
        cache.outbox.create(engine)
        plain, watched = sessionmaker(engine), sessionmaker(engine)
        cache.watch(watched, {Price: lambda row: (f"price:{row.id}",)})
        with plain.begin() as session:
            session.add(Price(id=1, amount=0))

        def change(sessions: sessionmaker[Session], number: int, after: Callable[[], object]) -> float:
            began = time.perf_counter()
            with sessions.begin() as session:
                session.get_one(Price, 1).amount = number
            after()
            return 1000 * (time.perf_counter() - began)

        took: dict[str, list[float]] = {"plain": [], "watched": [], "plain, then invalidate": []}
        for number in range(1, options.transactions + 1):
            took["plain"].append(change(plain, 3 * number, lambda: None))
            took["watched"].append(change(watched, 3 * number + 1, lambda: None))
            took["plain, then invalidate"].append(change(plain, 3 * number + 2, lambda: cache.invalidate("price:1")))
        base = statistics.median(took["plain"])
        for name, times in took.items():
            print(
                f"{name:<24} median {statistics.median(times):.2f} ms, {statistics.median(times) / base:.2f}x of plain"
            )
        cache.close()
        engine.dispose()


if __name__ == "__main__":
    main()
