"""Loads that run inside the call that asks for them: for eager Celery apps, and for tests."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Sequence

from cacheworkers.core.driver import Flow, arun
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
        self.log_not_loaded = NotLoadedLog().log

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Load what requests ask for, those of one loader together."""
        for loader, group in _by_loader(requests):
            # In a context of its own, as in a worker: the caller may be inside a load or a transaction.
            contextvars.Context().run(self._load, loader, group)
        return len(requests)

    def _load(self, loader: str, requests: list[LoadRequest]) -> None:
        try:
            with around_requests(self._around_task, loader, requests):
                self._run_loads(loader, requests, False)
        except CacheworkersError as error:
            self.log_not_loaded(requests, error)


class InlineLoads:
    """A step: load what requests ask for, in this thread or on the running loop; how many were taken: all."""

    def __init__(
        self,
        dispatcher: InlineDispatcher,
        loads: Callable[[str, list[LoadRequest], bool], Flow[object]],
        requests: Sequence[LoadRequest],
    ) -> None:
        self._dispatcher = dispatcher
        self._loads = loads
        self._requests = requests

    def __repr__(self) -> str:
        return f"load {len(self._requests)} calls"

    def run(self) -> int:
        """Load them, blocking this thread."""
        return self._dispatcher.submit_all(self._requests)

    async def arun(self) -> int:
        """Load them on the running loop, where the connections of its tests are."""
        for loader, group in _by_loader(self._requests):
            task = asyncio.get_running_loop().create_task(self._load(loader, group), context=contextvars.Context())
            await task
        return len(self._requests)

    async def _load(self, loader: str, requests: list[LoadRequest]) -> None:
        try:
            await arun(self._loads(loader, requests, False))
        except CacheworkersError as error:
            self._dispatcher.log_not_loaded(requests, error)


def _by_loader(requests: Iterable[LoadRequest]) -> list[tuple[str, list[LoadRequest]]]:
    groups: dict[str, list[LoadRequest]] = {}
    for request in requests:
        groups.setdefault(request.loader, []).append(request)
    return list(groups.items())
