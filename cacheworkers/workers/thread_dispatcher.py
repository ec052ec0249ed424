"""No Celery: load requests run on threads of this process, for scripts and tests."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers.publish_queue import LoaderInfo, PublishQueue
from cacheworkers.workers.task_messages import AroundTask, NotLoadedLog, around_requests, no_scope, shown

log = logging.getLogger("cacheworkers")


class ThreadDispatcher:
    """A dispatcher whose workers are `Config.bulkhead` daemon threads; they start when requests come."""

    def __init__(
        self,
        config: Config,
        *,
        run_loads: Callable[[str, list[LoadRequest], bool], object],
        around_task: AroundTask = no_scope,
    ) -> None:
        self._run_loads = run_loads
        self._around_task = around_task
        self._not_loaded = NotLoadedLog()
        self._is_said = False
        self._infos: dict[str, LoaderInfo] = {}
        self._queue = PublishQueue(self._work, self._infos.get, threads=config.bulkhead, name="cacheworkers-worker")

    def register(self, info: LoaderInfo) -> None:
        """Know a loader."""
        self._infos[info.name] = info

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Take load requests together; how many, from the first on, there was room for."""
        return self._queue.submit_all(requests)

    def queue_states(self) -> list[object]:
        """Return no queue: there is no broker."""
        return []

    def close(self) -> None:
        """Load what is queued, for at most a second, then stop; a load under way ends by itself."""
        self._queue.close()

    def reset_after_fork(self) -> None:
        """Start over in a child."""
        self._queue.reset()

    def _work(self, info: LoaderInfo, queue: str, requests: list[LoadRequest]) -> None:
        if not self._is_said:
            self._is_said = True
            self._say_where(requests)
        try:
            with around_requests(self._around_task, info.name, requests):
                self._run_loads(info.name, requests, False)
        except CacheworkersError as error:
            self._not_loaded.log(requests, error)

    @staticmethod
    def _say_where(requests: list[LoadRequest]) -> None:
        """Log that no worker is involved: as a warning, where the cache could have been given a Celery app."""
        names: list[str] = []
        if "celery" in sys.modules:
            from cacheworkers.workers.binding import unbound_apps

            names = unbound_apps()
        log.log(
            logging.WARNING if names else logging.INFO,
            "%s loads on a thread of this process, as all of this cache's loads: it has no Celery app%s",
            shown(requests),
            f", and this process has {', '.join(names)}: `Cache(celery=app)` has workers load" if names else "",
        )
