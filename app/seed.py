"""Fill the shop, the same for every run: `python -m app.seed --products 10000`."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

from rich.progress import track
from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from app.models import Base, Category, Price, Product, Stock

CATEGORIES = 100
CHUNK = 2000
_WORDS = ("Oak", "Steel", "Linen", "Blue", "Tall", "Round"), ("Chair", "Table", "Lamp", "Shelf", "Sofa", "Rug")


def rows(products: int, seed: int = 1) -> list[dict[str, Any]]:
    """Return the products, each with its price and stock; equal for equal arguments."""
    chance = random.Random(seed)
    found = []
    for number in range(1, products + 1):
        amount = chance.randrange(500, 200_000)
        found.append(
            {
                "id": number,
                "name": f"{chance.choice(_WORDS[0])} {chance.choice(_WORDS[1])} {number}",
                "category_id": chance.randrange(1, CATEGORIES + 1),
                "amount": amount / 100,
                "sale_amount": round(amount * 0.7) / 100 if chance.random() < 0.005 else None,
                "quantity": chance.randrange(0, 500),
            }
        )
    return found


def seed(session: Session, products: int) -> int:
    """Add what is missing up to `products`; return how many were added."""
    there = session.scalar(select(func.count()).select_from(Product)) or 0
    if there >= products:
        return 0
    if not there:
        names = [{"id": number, "name": f"Category {number}"} for number in range(1, CATEGORIES + 1)]
        session.execute(insert(Category), names)
    missing = rows(products)[there:]
    for start in track(range(0, len(missing), CHUNK), "seeding products", transient=True):
        chunk = missing[start : start + CHUNK]
        session.execute(insert(Product), [{k: row[k] for k in ("id", "name", "category_id")} for row in chunk])
        session.execute(
            insert(Price),
            [{"product_id": r["id"], "amount": r["amount"], "sale_amount": r["sale_amount"]} for r in chunk],
        )
        session.execute(insert(Stock), [{"product_id": r["id"], "quantity": r["quantity"]} for r in chunk])
    session.commit()
    return len(missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the tables and fill them."""
    parser = argparse.ArgumentParser(prog="python -m app.seed", description=__doc__)
    parser.add_argument("--products", type=int, default=10_000)
    options = parser.parse_args(arguments)
    from app.database import engine
    from app.shop import cache

    Base.metadata.create_all(engine)
    cache.outbox.create(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))
    with Session(engine) as session:
        print(f"{seed(session, options.products):,} products added")
    return 0


if __name__ == "__main__":
    sys.exit(main())
