"""Celery: gets asks to workers, and runs them there."""

from cacheworkers.workers.binding import CeleryWorkers, bind
from cacheworkers.workers.queue import LoaderInfo
from cacheworkers.workers.queues import QueueState

__all__ = ["CeleryWorkers", "LoaderInfo", "QueueState", "bind"]
