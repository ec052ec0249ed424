"""A Celery app bound to loads that only write down what they were asked; workers of test_pools.py import it."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

from cacheworkers import Config
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers import celery_dispatcher
from cacheworkers.workers.binding import Binding
from cacheworkers.workers.publish_queue import LoaderInfo

app = Celery("bound", broker=os.environ.get("BROKER_URL", os.environ["REDIS_URL"]))
app.conf.update(json.loads(os.environ.get("SETTINGS", "{}")))
# Seconds, instead of a fixed 5 and 10 on top of a load's own time.
celery_dispatcher.SOFT_MARGIN, celery_dispatcher.HARD_MARGIN = 0.1, 0.3


def note(what: str, *more: Any) -> None:
    """Write one line, whole, whatever happens to this process next."""
    line = json.dumps([what, os.getpid(), *more]) + "\n"
    with open(os.environ["NOTES"], "ab", buffering=0) as notes:
        notes.write(line.encode())


def run_loads(loader: str, asks: list[LoadRequest], is_redelivered: bool) -> None:
    for ask in asks:
        note("run_loads", ask.call, is_redelivered)
        if ask.call == "deadly[1]" and not is_redelivered:
            os.kill(os.getpid(), signal.SIGKILL)
        if ask.call == "hangs[1]":
            while True:  # heeds no deadline, and no soft limit either
                try:
                    signal.pause()
                except SoftTimeLimitExceeded:
                    note("soft limit", ask.call)


def collect_garbage() -> None:
    note("collect_garbage")


@app.task(name="late", acks_late=True)
def late(n: int) -> None:
    """The user's: acknowledged when it has run."""
    note("late", n)


@app.task(name="early")
def early(n: int) -> None:
    """The user's."""
    note("early", n)


workers = Binding(
    app,
    Config.from_env(),
    run_loads=run_loads,
    undelivered=lambda asks: note("undelivered", [ask.call for ask in asks]),
    refuse=lambda asks, reason: note("refused", [ask.call for ask in asks]),
    upkeep={"collect_garbage": (collect_garbage, 0.2)},
    emit=lambda event: note(type(event).__name__),
    reset_after_fork=lambda: note("reset"),
)
if not os.environ.get("NO_LOADERS"):
    for name in ("product", "deadly"):
        workers.register(LoaderInfo(name, 10.0, False, 100))
    workers.register(LoaderInfo("hangs", 0.1, True, 100))
