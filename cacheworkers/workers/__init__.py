"""Celery: gets asks to workers, and runs them there."""

from cacheworkers.workers.binding import CeleryWorkers, bind
from cacheworkers.workers.queue import LoaderInfo

__all__ = ["CeleryWorkers", "LoaderInfo", "bind"]
