"""The shop's engine and sessions, from DATABASE_URL."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import sessionmaker

if "DATABASE_URL" not in os.environ:
    raise SystemExit(
        "Error: DATABASE_URL must name the shop's database, postgresql+psycopg://user@host/name; it is not set"
    )
url = make_url(os.environ["DATABASE_URL"])
if "DATABASE_PASSWORD_FILE" in os.environ:  # a secret that a container is given as a file
    url = url.set(password=Path(os.environ["DATABASE_PASSWORD_FILE"]).read_text().strip())
engine = create_engine(url, pool_size=10)
sessions = sessionmaker(engine)
