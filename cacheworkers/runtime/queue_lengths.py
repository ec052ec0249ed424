"""QueueLengths: the step by which warming asks how many messages wait for workers."""

from __future__ import annotations

import asyncio
from typing import Any

from cacheworkers.errors import BrokerUnavailable
from cacheworkers.flows.keep_warm import Queued


class QueueLengths:
    """A step: how many messages wait for workers; none where the broker does not say."""

    def __init__(self, workers: Any) -> None:
        self._workers = workers

    def run(self) -> Queued:
        """Ask, blocking this thread."""
        try:
            queues = self._workers.queue_states()
        except BrokerUnavailable:  # then nothing is queued that could be waited for
            return Queued(0, 0)
        if not queues:
            return Queued(0, 0)
        miss, _, warm, _ = queues
        return Queued(miss.length, warm.length, miss.oldest_age, warm.oldest_age)

    async def arun(self) -> Queued:
        """Ask from another thread."""
        return await asyncio.to_thread(self.run)
