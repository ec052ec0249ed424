"""CeleryWorkers: a cache's side of its Celery app: has workers load, and notes in the store that they live and load."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from cacheworkers.errors import CacheworkersError, StoreError
from cacheworkers.events import UpkeepMissed
from cacheworkers.flows.ports import LoadRequest, Ports
from cacheworkers.runtime.namespace_marks import NamespaceMarks
from cacheworkers.runtime.worker_breaker import WorkerBreaker
from cacheworkers.workers.binding import Binding, UpkeepTasks
from cacheworkers.workers.worker_command import worker_options_in

if TYPE_CHECKING:
    from celery import Celery

#: An upkeep task is late when it last ended this many periods, plus this many seconds, ago.
LATE = 2.0
LATE_MARGIN = 5.0


class CeleryWorkers:
    """The binding of one cache to its Celery app.

    Attributes:
        binding: registers loaders and sends load requests.
        breaker: the dispatcher in front of it; readers do not wait for workers that do not come.
    """

    def __init__(
        self,
        app: Celery,
        ports: Ports,
        marks: NamespaceMarks,
        *,
        run_loads: Callable[..., Any],
        undelivered: Callable[[Sequence[LoadRequest]], None],
        refuse: Callable[[Sequence[LoadRequest], str], None],
        upkeep: UpkeepTasks,
        reset_after_fork: Callable[[], None],
        around_task: dict[str, Any],
    ) -> None:
        """
        Args:
            undelivered, refuse: see `Binding`.
            around_task: `Binding`'s argument of this name, if there is any.
        """
        self._ports = ports
        self._marks = marks
        self._taken_noted_at: dict[str, float] = {}
        self.binding: Any = Binding(
            app,
            ports.config,
            run_loads=run_loads,
            undelivered=undelivered,
            refuse=refuse,
            upkeep={name: (self._guarded(name, work, every), every) for name, (work, every) in upkeep.items()},
            emit=ports.emit,
            reset_after_fork=reset_after_fork,
            waited_for=lambda: ports.waiters.calls,
            on_taken=self._note_taken,
            on_alive=self._note_worker,
            admit=marks.admit,
            is_unbound=lambda: marks.is_unbound,
            command=marks.worker_command,
            **around_task,
        )
        self.breaker = WorkerBreaker(self.binding, ports.store, ports.config)
        ports.dispatcher = self.breaker
        ports.note_taken_over, ports.note_served = self.breaker.note_taken_over, self.breaker.note_served
        ports.note_refused, ports.note_other_release = self.breaker.note_refused, self.breaker.note_other_release
        ports.message_of = self.breaker.message

    def _guarded(self, task: str, work: Callable[[], object], every: float) -> Callable[[], None]:
        """Return what runs an upkeep task, once in a period: two beats send each twice."""
        store = self._ports.store

        def run() -> None:
            with contextlib.suppress(CacheworkersError):  # each has its own event; the next tick tries again
                is_ours, since = store.begin_tick(task, every).run()
                if is_ours:
                    if since is not None and since > LATE * every + LATE_MARGIN:
                        self._ports.emit(UpkeepMissed(task, since, every))
                    work()
                    store.note_beat(task).run()

        return run

    def _note_worker(self, name: str) -> None:
        """Note in the store that this worker runs, how it is started, and which database and loaders it has."""
        self._ports.store.note_worker(name).run()
        self._marks.note_as_worker(worker_options_in(sys.argv))

    def _note_taken(self, queue: str) -> None:
        """Note in the store that a worker takes messages from a queue, at most once a second."""
        now = monotonic()
        if now < self._taken_noted_at.get(queue, 0.0) + 1.0:
            return
        self._taken_noted_at[queue] = now
        with contextlib.suppress(StoreError):
            self._ports.store.note_taken(queue).run()
