"""The app of `benchmarks.misses`: a loader that does nothing, and a bare Celery task beside it."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery

from cacheworkers import Cache, Config, Load

URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
app = Celery("misses", broker=URL)
cache = Cache(Config(redis_url=URL, store_timeout=5.0), celery=app)
answers = redis.Redis.from_url(URL)


@cache.loader(fresh_for=3600, l1_for=0.0)
def instant(load: Load, number: int) -> float:
    """Return when it ran."""
    return time.monotonic()


@app.task(name="bare", ignore_result=True, acks_late=True)
def bare(number: int) -> None:
    """Answer with when it ran."""
    answers.lpush(f"answer:{number}", repr(time.monotonic()))
