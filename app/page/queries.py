"""Queries for products, as Postgres itself counts them."""

from __future__ import annotations

import msgspec
from sqlalchemy import text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

#: The uncached twin's statement has a column of this name, by which Postgres counts it apart.
STATEMENTS = text(
    "SELECT coalesce(sum(calls) FILTER (WHERE query NOT LIKE '%AS uncached%'), 0),"
    " coalesce(sum(calls) FILTER (WHERE query LIKE '%AS uncached%'), 0)"
    " FROM pg_stat_statements WHERE query ILIKE 'SELECT product.%FROM product%'"
    " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
TRANSACTIONS = text("SELECT xact_commit, 0 FROM pg_stat_database WHERE datname = current_database()")


class Count(msgspec.Struct, frozen=True):
    """How many there were so far.

    Attributes:
        source: "pg_stat_statements", or "pg_stat_database": transactions of any kind, the two sides in one.
    """

    cached: int
    uncached: int
    source: str


def count(engine: Engine) -> Count | None:
    """Return Postgres's own count; None if it does not answer."""
    for source, statement in (("pg_stat_statements", STATEMENTS), ("pg_stat_database", TRANSACTIONS)):
        try:
            with engine.connect() as connection:
                cached, uncached = connection.execute(statement).one()
        except SQLAlchemyError:
            continue
        return Count(int(cached), int(uncached), source)
    return None
