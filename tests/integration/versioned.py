"""A loader of the version that the environment says; workers of test_rollout.py import it."""

from __future__ import annotations

import json
import os

from celery import Celery

from cacheworkers import Cache, Config, Load
from cacheworkers.events import Event, MalformedTask, TaskRequeued
from cacheworkers.workers import version_mismatch

VERSION = int(os.environ["VERSION"])
# How long the other version's worker takes to start is the machine's business.
version_mismatch.HOPS["warm"] = int(os.environ.get("WARM_HOPS", "100000"))
version_mismatch.MOST_AFTER = 0.2


def note(event: Event) -> None:
    """Write one line of what becomes of messages of the other version."""
    if isinstance(event, TaskRequeued | MalformedTask):
        reason, hops = event.reason, getattr(event, "hops", 0)
        with open(os.environ["NOTES"], "ab", buffering=0) as notes:
            notes.write(json.dumps([type(event).__name__, reason, hops]).encode() + b"\n")


app = Celery("versioned", broker=os.environ["REDIS_URL"])
cache = Cache(Config.from_env(store_timeout=5.0), celery=app, hook=note)


@cache.loader(
    fresh_for=3000, jitter=0, load_for=600, wait_for=float(os.environ.get("WAIT_FOR", "300")), version=VERSION
)
def product(load: Load, n: int) -> list[int]:
    return [VERSION, n, os.getpid()]
