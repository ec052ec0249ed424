"""Celery: gets asks to workers, and runs them there."""

from cacheworkers.workers.binding import CeleryWorkers, bind
from cacheworkers.workers.broker_queues import QueueState
from cacheworkers.workers.publish_queue import LoaderInfo

__all__ = ["CeleryWorkers", "LoaderInfo", "QueueState", "bind"]
