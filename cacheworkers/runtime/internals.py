"""Internals: what the command line, doctor, metrics and test helpers use of a cache beyond its public methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheworkers.flows.ports import Ports
from cacheworkers.runtime.wiring import Runtime

if TYPE_CHECKING:
    from celery import Celery

    from cacheworkers.sql.triggers.postgres_triggers import Triggers
    from cacheworkers.sql.watch.service import WatchService


@dataclass(frozen=True, slots=True)
class Internals:
    """What `ops/` and `testing/` may use of a cache beyond its public methods.

    Attributes:
        triggers: those that `Cache.triggers` has declared.
    """

    runtime: Runtime
    ports: Ports
    triggers: list[Triggers]

    @property
    def watching(self) -> WatchService:
        """The watched sessions and their outbox."""
        return self.runtime.watching

    @property
    def app(self) -> Celery | None:
        """The Celery app that the cache is bound to, if any."""
        return getattr(self.runtime.workers, "app", None)
