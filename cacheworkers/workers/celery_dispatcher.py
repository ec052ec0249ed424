"""CeleryDispatcher: makes the Celery task of each loader, sends load requests to workers, and runs them there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from celery import Celery

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError, KeyMissing, StoreError, UnknownLoader
from cacheworkers.events import Event, MalformedTask, TaskDropped, UnknownTask
from cacheworkers.flows.ports import Enqueue, LoadRequest
from cacheworkers.workers.broker_queues import QueueState, queue_states
from cacheworkers.workers.celery_internals import forget_task
from cacheworkers.workers.celery_settings import HARD_MARGIN, PREFIX, SOFT_MARGIN, keep_options
from cacheworkers.workers.inline_dispatcher import InlineDispatcher
from cacheworkers.workers.publish_queue import LoaderInfo, PublishQueue
from cacheworkers.workers.publisher import Publisher
from cacheworkers.workers.task_messages import (
    MODULE,
    AroundTask,
    NotLoadedLog,
    around_requests,
    parse_requests,
    with_headers,
)
from cacheworkers.workers.version_mismatch import MAX_REQUEUES, mismatch, wait_before

log = logging.getLogger("cacheworkers")

#: While this process waits for no more calls than this, each has a message of its own.
FEW = 4
#: How often it is logged that a loader is not known here, seconds.
UNKNOWN_LOGGED_EVERY = 600.0
#: Runs loads of one loader, and returns why some of them failed.
RunLoads = Callable[[str, list[LoadRequest], bool], list[CacheworkersError] | None]


class CeleryDispatcher:
    """The dispatcher whose workers are Celery's.

    Attributes:
        app: the app that is bound.
        queue_names: of the four queues, in the order in which workers are to take from them.
        infos: the loaders by name.
        on_taken: called in workers with the kind of queue that a message came from.
    """

    def __init__(
        self,
        app: Celery,
        config: Config,
        *,
        run_loads: RunLoads,
        undelivered: Callable[[list[LoadRequest]], None],
        refuse: Callable[[Sequence[LoadRequest], str], None],
        emit: Callable[[Event], None],
        waited_for: Callable[[], int],
        on_taken: Callable[[str], None],
        around_task: AroundTask,
    ) -> None:
        self.app = app
        queues = config.queues
        self.queue_names = (queues.miss, queues.revalidate, queues.warm, queues.upkeep)
        self.infos: dict[str, LoaderInfo] = {}
        self._run_loads = run_loads
        self._refuse = refuse
        self._around_task = around_task
        self._not_loaded = NotLoadedLog()
        self._unknown_until: dict[str, float] = {}
        self._emit = emit
        self._waited_for = waited_for
        self.on_taken = on_taken
        self._eager = InlineDispatcher(run_loads, around_task)
        self._publisher = Publisher(app, config, undelivered, emit)
        self._queue = PublishQueue(
            self._publisher.publish,
            self.infos.get,
            unsent=undelivered,
            waited_for=waited_for,
            prepare=lambda: self._publisher.prepare(self.infos.values()),
        )
        app.on_after_finalize.connect(self._make_tasks)

    def register(self, info: LoaderInfo) -> None:
        """Make the task of a loader; before workers start: they look for tasks only then."""
        self.infos[info.name] = info
        if self.app.finalized:
            self._make_task(info)

    def start(self) -> None:
        """Prepare for sending, on the publisher's thread, before a reader waits for it."""
        if not self.app.conf.task_always_eager:
            self._queue.start()

    def message(self, request: LoadRequest) -> Enqueue | None:
        """Return a message to enqueue with the claim; None where it is published.

        That is so where it cannot be done, and where other calls are waited for, whose requests may share a message.
        """
        info = self.infos.get(request.loader)
        if info is None or self._waited_for() > (1 if info.is_batch else FEW) or self.app.conf.task_always_eager:
            return None
        return self._publisher.message(info, request)

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Take load requests together; how many, from the first on, there was room for."""
        if self.app.conf.task_always_eager:  # says that there are no workers
            return self._eager.submit_all(requests)
        return self._queue.submit_all(requests)

    def wait_until_sent(self, within: float) -> bool:
        """Return whether what was submitted has left this process before `within` seconds are over."""
        return self._queue.wait_until_sent(within)

    def queue_states(self) -> list[QueueState]:
        """Ask the broker for the four queues.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        return queue_states(self.app, self.queue_names)

    def close(self) -> None:
        """Publish what is queued, for at most a second, then stop; the leases of what is left are given back.

        The app's tasks for loaders are removed.
        """
        if self._queue.close():
            self._publisher.disconnect()
        self.app.on_after_finalize.disconnect(self._make_tasks)
        if self.app.finalized:
            for name in self.infos:
                forget_task(self.app, PREFIX + name)

    def reset_after_fork(self) -> None:
        """Start over in a child: connections and threads are the parent's."""
        self._queue.reset()
        self._publisher.reset()

    def on_unknown_task(self, name: str, message: Any) -> None:
        """Give back the leases of a message for a loader that this worker does not know; readers need not wait."""
        requests: list[LoadRequest] = []
        with contextlib.suppress(Exception):  # not ours, whatever its name says
            requests, _ = parse_requests(name.removeprefix(PREFIX), message.payload[1].get("asks"))
        if monotonic() >= self._unknown_until.get(name, 0.0):
            self._unknown_until[name] = monotonic() + UNKNOWN_LOGGED_EVERY
            module = (getattr(message, "headers", None) or {}).get(MODULE)
            log.error(
                "this worker does not know the loader %s: restart it, if that is newer than it; or have its app import "
                "%s (said once in %.0f minutes, however many messages come)",
                name.removeprefix(PREFIX),
                f"{module}, as in app.conf.include = [{module!r}]" if module else "the module that declares it",
                UNKNOWN_LOGGED_EVERY / 60,
            )
        self._emit(UnknownTask(name, len(requests)))
        if requests:
            modules = ", ".join(sorted({info.module for info in self.infos.values()}))
            known = f"it has those of {modules} alone" if modules else "it has none at all"
            self._refuse(requests, f"a worker does not know the loader {name.removeprefix(PREFIX)}: {known}")

    def _make_tasks(self, **_: Any) -> None:
        for info in self.infos.values():
            self._make_task(info)

    def _make_task(self, info: LoaderInfo) -> None:
        """Make the Celery task of a loader, again if there is one.

        Time limits end a load that ignores its deadline, in prefork pools only: on threads, the statement timeout and
        `load.deadline` are all there is.  These are for the largest message; each message has its own.
        """

        def load(task: Any, /, *_: Any, asks: Any = None, requeues: Any = 0, **__: Any) -> None:
            self._run_task(task, info, asks, requeues)

        forget_task(self.app, PREFIX + info.name)
        task = self.app.task(
            name=PREFIX + info.name,
            bind=True,
            lazy=False,
            autoretry_for=(),  # a base class of the app's may have some; failures have a backoff of their own
            loader_version=info.version,  # what a worker says of its tasks: see diagnostics.py
            loader_schema=info.schema or None,
            shared=False,
        )(load)
        keep_options(
            task,
            acks_late=True,
            reject_on_worker_lost=True,
            # A load past its hard limit is given up, not given to the next worker to hang.
            acks_on_failure_or_timeout=True,
            ignore_result=True,
            serializer="json",
            soft_time_limit=info.message_for() + SOFT_MARGIN,
            time_limit=info.message_for() + HARD_MARGIN,
            rate_limit=info.rate_limit or 0,
        )

    def _run_task(self, task: Any, info: LoaderInfo, raw: Any, requeues: Any) -> None:
        """Run a task message; one that cannot be read is dropped, never retried."""
        loader = info.name
        requests, reason = parse_requests(loader, raw)
        if reason:
            self._emit(MalformedTask(PREFIX + loader, reason))
            if requests:
                self._refuse(requests, reason)
            return
        self.on_taken(requests[0].queue)
        requests = self._of_known_version(task, info, with_headers(task.request, requests), requeues)
        if not requests:
            return
        delivery = task.request.delivery_info or {}
        try:
            with around_requests(self._around_task, loader, requests):
                failures = self._run_loads(loader, requests, bool(delivery.get("redelivered")))
        except UnknownLoader:
            return
        except StoreError as error:
            # Without the store there is no lease and nowhere to write: readers load themselves, this message ends.
            self._not_loaded.log(requests, error)
            self._emit(TaskDropped(PREFIX + loader, len(requests), f"{type(error).__name__}: {error}"))
            return
        failed = [error for error in failures or () if not isinstance(error, KeyMissing)]
        if failed:
            # All of them have been logged.  One makes the task a failure, for Flower and for what listens to
            # `task_failure`; the message is acknowledged all the same, and not run again.
            raise failed[0]

    def _of_known_version(
        self, task: Any, info: LoaderInfo, requests: list[LoadRequest], requeues: Any
    ) -> list[LoadRequest]:
        """Return the requests that this worker is to run; those of another version go back to the queue.

        What has gone back too often is run: it is malformed here.
        """
        others = [request for request in requests if mismatch(info.name, info.version, request.call)]
        if not others or not isinstance(requeues, int):
            return requests
        reason = mismatch(info.name, info.version, others[0].call)
        if requeues >= MAX_REQUEUES[others[0].queue]:
            log.warning("%s, and no worker of that version has taken it after %d requeues", reason, requeues)
            return requests
        after, expires = wait_before(requeues), task.request.expires
        if not self._publisher.requeue(info, others, requeues + 1, after, expires, reason):
            return requests
        return [request for request in requests if request not in others]
