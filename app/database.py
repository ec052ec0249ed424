"""The shop's engine and sessions, from DATABASE_URL."""

from __future__ import annotations

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

if "DATABASE_URL" not in os.environ:
    raise SystemExit(
        "Error: DATABASE_URL must name the shop's database, postgresql+psycopg://user@host/name; it is not set"
    )
engine = create_engine(os.environ["DATABASE_URL"], pool_size=10)
sessions = sessionmaker(engine)
