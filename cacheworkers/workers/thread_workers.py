"""No Celery: the same semantics on threads of this process, for scripts and tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers.publish_queue import LoaderInfo, PublishQueue

if TYPE_CHECKING:
    from cacheworkers.workers.broker_queues import QueueState

log = logging.getLogger("cacheworkers")


class LocalWorkers:
    """A dispatcher whose workers are `Config.bulkhead` daemon threads; they start when asks come."""

    def __init__(self, config: Config, *, run_loads: Callable[[str, list[LoadRequest], bool], None]) -> None:
        self._run_loads = run_loads
        self._infos: dict[str, LoaderInfo] = {}
        self._queue = PublishQueue(
            self._work, self._infos.get, config.dispatch_queue, threads=config.bulkhead, name="cacheworkers-worker"
        )

    def register(self, info: LoaderInfo) -> None:
        """Learn of a loader."""
        self._infos[info.name] = info

    def submit(self, ask: LoadRequest) -> bool:
        """Take an ask; False when there is no room."""
        return self._queue.submit(ask)

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        """Take asks together; how many, from the first on, there was room for."""
        return self._queue.submit_all(asks)

    def queue_states(self) -> list[QueueState]:
        """Return no queue: there is no broker."""
        return []

    def close(self) -> None:
        """Load what is queued, for at most a second, then stop; a load under way ends by itself."""
        self._queue.close()

    def reset_after_fork(self) -> None:
        """Begin anew in a child."""
        self._queue.reset()

    def _work(self, info: LoaderInfo, queue: str, asks: list[LoadRequest]) -> None:
        try:
            self._run_loads(info.name, asks, False)
        except CacheworkersError as error:
            log.warning("load of %s did not happen: %s", info.name, error)
