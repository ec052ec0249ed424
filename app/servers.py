"""The servers of `make up`: those that the environment names, and else Valkey and Postgres from wheels."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.supervisor import Console
from cacheworkers.testing.servers import Postgres, Valkey


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are, and the store if it was started here."""

    urls: Mapping[str, str]
    store: Valkey | None


@contextlib.contextmanager
def servers(data_dir: Path, console: Console) -> Iterator[Servers]:
    """Start the servers that the environment does not name; yield where they are."""
    with contextlib.ExitStack() as stack:
        redis_url, store = os.environ.get("REDIS_URL"), None
        if redis_url is None:
            store = stack.enter_context(
                Valkey(data_dir / "valkey", persist=True, maxmemory="1gb", maxmemory_policy="volatile-lru")
            )
            redis_url = store.url
        database_url = os.environ.get("DATABASE_URL")
        if database_url is None:
            postgres = stack.enter_context(Postgres(_reachable(data_dir, console) / "postgres"))
            database_url = _database(postgres)
        broker_url = os.environ.get("BROKER_URL", redis_url)
        urls = {"redis_url": redis_url, "database_url": database_url, "broker_url": broker_url}
        yield Servers(urls, store)


def _database(postgres: Postgres) -> str:
    """Return the URL of the shop's database, made at the first start."""
    import psycopg

    try:
        return postgres.create_database("shop")
    except psycopg.errors.DuplicateDatabase:
        return postgres.url("shop")


def _reachable(data_dir: Path, console: Console) -> Path:
    """Return a data directory that Postgres can enter: for root it runs as another user."""
    if os.getuid() != 0 or all(each.stat().st_mode & 0o001 for each in data_dir.parents):
        data_dir.chmod(data_dir.stat().st_mode | 0o711)
        return data_dir
    name = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
    place = Path(tempfile.gettempdir()) / f"cacheworkers-{name}"
    place.mkdir(exist_ok=True, mode=0o711)
    place.chmod(0o711)
    console.say("up", f"Postgres cannot enter {data_dir} as another user than root: its data is in {place}")
    return place
