"""A cache of one table of numbers, as a web process has it and as workers import it."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Config, Load


def made(url: str, database: str, broker: str = "", hook: Any = None, **options: Any) -> tuple[Cache, Any, Any]:
    """Return a cache, its loader, and the engine of the database; loads are counted in the database."""
    engine = create_engine(f"sqlite:///{database}", connect_args={"timeout": 60})
    app = Celery("topology_shop", broker=broker) if broker else None
    config = Config(redis_url=url, **{"store_timeout": 5.0, "breaker_for": 0.1, **options})
    cache = Cache(config, celery=app, sessions=sessionmaker(engine), hook=hook)

    @cache.loader(tags=("n:{n}",), fresh_for=300, stale_for=300, jitter=0.0, early=0.0, load_for=20.0, wait_for=20.0)
    def number(load: Load, n: int) -> int:
        with open(f"{database}.loads", "a") as loads:
            loads.write(f"{n}\n")
        return int(load.session.execute(text("SELECT value FROM number WHERE n = :n"), {"n": n}).scalar_one())

    return cache, number, engine


if "TOPOLOGY_URL" in os.environ:
    cache, number, _ = made(os.environ["TOPOLOGY_URL"], os.environ["TOPOLOGY_DATABASE"], os.environ["TOPOLOGY_BROKER"])
    app = cache.internals.app
