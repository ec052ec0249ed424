"""Loads that run inside the call that asks for them: for eager Celery apps, and for tests."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence

from cacheworkers.errors import CacheworkersError
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.workers.task_messages import AroundTask, NotLoadedLog, around_requests, no_scope


class InlineDispatcher:
    """A dispatcher without workers: each request is loaded, in the thread that submits it, before `submit` returns."""

    def __init__(
        self, run_loads: Callable[[str, list[LoadRequest], bool], object], around_task: AroundTask = no_scope
    ) -> None:
        self._run_loads = run_loads
        self._around_task = around_task
        self._not_loaded = NotLoadedLog()

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Load what requests ask for, those of one loader together."""
        groups: dict[str, list[LoadRequest]] = {}
        for request in requests:
            groups.setdefault(request.loader, []).append(request)
        for loader, group in groups.items():
            # In a context of its own, as in a worker: the caller may be inside a load or a transaction.
            contextvars.Context().run(self._load, loader, group)
        return len(requests)

    def _load(self, loader: str, requests: list[LoadRequest]) -> None:
        try:
            with around_requests(self._around_task, loader, requests):
                self._run_loads(loader, requests, False)
        except CacheworkersError as error:
            self._not_loaded.log(requests, error)
