"""The shop's workers: `celery -A app.worker worker`."""

from __future__ import annotations

from app.shop import cache
from app.shop import celery as app
from cacheworkers.ops.doctor import log_when_workers_start

log_when_workers_start(cache)

__all__ = ["app"]
