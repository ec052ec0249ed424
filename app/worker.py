"""The shop's workers and its beat: `celery -A app.worker worker`, `celery -A app.worker beat`."""

from __future__ import annotations

import os

from celery import signals

from app.probe import heartbeat_file
from app.shop import cache
from app.shop import celery as app
from cacheworkers.ops.doctor import log_when_workers_start
from cacheworkers.ops.metrics import serve_when_workers_start

log_when_workers_start(cache)
if "OWN_METRICS_PORT" in os.environ:  # where no exporter sees this process's files: in a container of its own
    serve_when_workers_start(cache, int(os.environ["OWN_METRICS_PORT"]), os.environ.get("HOST", "127.0.0.1"))

if "HEARTBEAT_DIR" in os.environ:  # in a container: `app.probe` looks how old the file is

    def _touch(**_: object) -> None:
        heartbeat_file(os.environ["PROCESS"]).touch()

    for each in (signals.worker_ready, signals.heartbeat_sent, signals.beat_init, signals.after_task_publish):
        each.connect(_touch, weak=False)

__all__ = ["app"]
