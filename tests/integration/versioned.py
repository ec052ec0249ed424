"""Loaders of the release that the environment says; workers of test_rollout.py import it."""

from __future__ import annotations

import json
import os

import msgspec
from celery import Celery

from cacheworkers import Cache, Config, Load
from cacheworkers.events import Event, Loaded, MalformedTask, TaskRequeued
from cacheworkers.workers import version_mismatch

VERSION = int(os.environ["VERSION"])
# How long the other version's worker takes to start is the machine's business.
version_mismatch.MAX_REQUEUES["warm"] = int(os.environ.get("WARM_REQUEUES", "100000"))
version_mismatch.LONGEST_WAIT = 0.2


def note(event: Event) -> None:
    """Write one line of what becomes of messages of the other version, and of each load of what has another shape."""
    if isinstance(event, Loaded) and event.loader == "shaped":
        with open(os.environ["NOTES"], "ab", buffering=0) as notes:
            notes.write(json.dumps(["Loaded", event.outcome, 0]).encode() + b"\n")
    if isinstance(event, TaskRequeued | MalformedTask):
        reason, requeues = event.reason, getattr(event, "requeues", 0)
        with open(os.environ["NOTES"], "ab", buffering=0) as notes:
            notes.write(json.dumps([type(event).__name__, reason, requeues]).encode() + b"\n")


app = Celery("versioned", broker=os.environ["REDIS_URL"])
cache = Cache(Config.from_env(store_timeout=5.0), celery=app, hook=note)


@cache.loader(
    fresh_for=3000, jitter=0, load_for=600, wait_for=float(os.environ.get("WAIT_FOR", "300")), version=VERSION
)
def product(load: Load, n: int) -> list[int]:
    return [VERSION, n, os.getpid()]


class OldShape(msgspec.Struct):
    """What the first release returns."""

    cost: int
    pid: int


class NewShape(msgspec.Struct):
    """What the second one returns."""

    price: int
    pid: int


#: How often this process has run the loader whose shape has changed.
shaped_loads: list[int] = []


def shaped(load: Load, n: int) -> OldShape | NewShape:
    shaped_loads.append(n)
    return OldShape(n, os.getpid()) if VERSION == 1 else NewShape(n, os.getpid())


shaped.__annotations__["return"] = OldShape if VERSION == 1 else NewShape
shape = cache.loader(fresh_for=3000, jitter=0, load_for=600, wait_for=300)(shaped)
