"""The shop's workers: `celery -A app.worker worker`."""

from __future__ import annotations

from app.shop import celery as app

__all__ = ["app"]
