"""No Celery: the same semantics on threads of this process, for scripts and tests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.ports import Ask
from cacheworkers.workers.queue import AskQueue, LoaderInfo

log = logging.getLogger("cacheworkers")


class LocalWorkers:
    """A dispatcher whose workers are threads."""

    def __init__(self, config: Config, *, perform: Callable[[str, list[Ask], bool], None]) -> None:
        self._perform = perform
        self._infos: dict[str, LoaderInfo] = {}
        self._size = config.bulkhead
        self._queue = AskQueue(self._send, self._infos.get, config.dispatch_queue)
        self._pool: ThreadPoolExecutor | None = None
        self._room = threading.Semaphore(self._size)

    def register(self, info: LoaderInfo) -> None:
        """Learn of a loader."""
        self._infos[info.name] = info

    def submit(self, ask: Ask) -> bool:
        """Take an ask; False when there is no room."""
        return self._queue.submit(ask)

    def close(self) -> None:
        """Stop after what is queued."""
        self._queue.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def reset_after_fork(self) -> None:
        """Begin anew in a child."""
        self._queue.reset()
        self._pool = None
        self._room = threading.Semaphore(self._size)

    def _send(self, info: LoaderInfo, queue: str, asks: list[Ask]) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._size, "cacheworkers-worker")
        self._room.acquire()  # back-pressure: what waits here is grouped
        self._pool.submit(self._work, info.name, asks)

    def _work(self, name: str, asks: list[Ask]) -> None:
        try:
            self._perform(name, asks, False)
        except CacheworkersError as error:
            log.warning("load of %s did not happen: %s", name, error)
        except Exception:
            log.exception("load of %s failed", name)
        finally:
            self._room.release()
