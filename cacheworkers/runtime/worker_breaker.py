"""WorkerBreaker: a circuit breaker before the dispatcher: while no worker takes misses, readers load immediately."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from cacheworkers.config import Config
from cacheworkers.errors import BrokerUnavailable, StoreError
from cacheworkers.flows.ports import Enqueue, LoadRequest
from cacheworkers.store.commands.store import Store

log = logging.getLogger("cacheworkers")

#: After this many take-overs in a row readers stop waiting for workers.
OPENS_AFTER = 3
#: How often the store is asked meanwhile whether workers take messages again, seconds.
LOOK_EVERY = 1.0
#: How often a message is sent meanwhile for workers to take, seconds: twice as seldom each time.
PROBE_EVERY = 2.0
MAX_PROBE_EVERY = 30.0
#: How often the same is logged, seconds.
LOG_EVERY = 60.0
#: How often it is logged of one loader that a worker cannot load it, or has another release of it, seconds.
RELEASE_LOGGED_EVERY = 3600.0
#: How long a message may take to leave a process before that is what is logged, seconds: a first one takes the longest.
SENT_WITHIN = 5.0
CONNECTING = "one that runs may be connecting to the broker again, which Celery tries every few seconds"


class WorkerBreaker:
    """A dispatcher in front of Celery's: a breaker for publishing, and one for workers.

    A reader that has waited all of `wait_for` takes the lease over: no worker had begun.  After `OPENS_AFTER` of these
    in a row readers load immediately.  No reader pays for finding out whether workers are back: a worker that starts,
    or takes a message, leaves a mark in the store.
    """

    def __init__(self, dispatcher: Any, store: Store, config: Config, clock: Callable[[], float] = monotonic) -> None:
        """
        Args:
            dispatcher: what sends requests; also `queue_states`, `worker_command`, `wait_until_sent` and
                `may_wait_for_itself`.
        """
        self._dispatcher: Any = dispatcher
        self._store = store
        self._config = config
        self._clock = clock
        self._began_at = clock()
        self._undeliverable_until = 0.0
        #: Loaders whose readers wait whatever happens.
        self.never_loaded_by_readers: set[str] = set()
        self._logged_at: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Start over in a child."""
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._is_outage_noted = self._is_outage_logged = False
        self._opened_at = 0.0
        self._look_at = self._probe_at = 0.0
        self._probe_every = PROBE_EVERY

    @property
    def is_open(self) -> bool:
        """Whether readers do not wait for workers."""
        return self._in_a_row >= OPENS_AFTER

    # -- the dispatcher

    def message(self, request: LoadRequest) -> Enqueue | None:
        """Return a message to enqueue with the claim; None where the request may be one that its reader loads."""
        if self._clock() < self._undeliverable_until:
            return None
        may_load_here = request.loader not in self.never_loaded_by_readers
        if may_load_here and (self.is_open or self._dispatcher.may_wait_for_itself()):
            return None
        found: Enqueue | None = self._dispatcher.message(request)
        return found

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        """Take load requests together; how many, from the first on, were taken."""
        now = self._clock()
        if now < self._undeliverable_until:
            return 0
        first = requests[0] if requests else None
        if first and first.queue == "miss" and first.loader not in self.never_loaded_by_readers:
            if self._dispatcher.may_wait_for_itself():
                return 0
            if self.is_open:
                self._probe(first, now)
                return 0
        taken: int = self._dispatcher.submit_all(requests)
        return taken

    # -- what happened

    def note_undelivered(self) -> None:
        """A message did not go out: readers load their misses for a while."""
        self._undeliverable_until = self._clock() + self._config.breaker_for

    def note_served(self) -> None:
        """A worker has loaded what a reader of this process waited for."""
        self._in_a_row = 0
        if self._is_outage_logged:
            self._log_end()

    def note_taken_over(self, request: LoadRequest) -> None:
        """A reader has waited all of `wait_for`, and no worker had begun its load."""
        with self._lock:
            self._in_a_row += 1
            opens = self._in_a_row == OPENS_AFTER
            if opens:
                self._opened_at = self._look_at = self._clock()
                self._probe_at, self._probe_every = self._opened_at, PROBE_EVERY
        if self._is_due("workers") or (opens and not self._is_outage_noted):
            self._is_outage_noted = True
            # Not a daemon: a script that ends with this read says why it was slow.  Its name is known while it runs.
            command = self._dispatcher.worker_command()

            def say() -> None:
                self._log_why(request, command)
                self._is_outage_logged = True

            self._in_background(say, is_daemon=False)

    def note_refused(self, loader: str, reason: str) -> None:
        """Log once for each loader that a worker cannot load it, and readers of this process do."""
        if self._is_due(f"refused {loader}", RELEASE_LOGGED_EVERY):

            def say() -> None:
                module = self._dispatcher.module_of(loader)
                named = "" if " " in module else f", as by app.conf.include = [{module!r}]"  # a notebook's has no name
                log.warning(
                    "%s; this process loads the misses of %s itself.  All workers that take queue %s have to "
                    "import %s, of this release%s; restart those that are older: %s",
                    reason,
                    loader,
                    self._config.queues.miss,
                    module,
                    named,
                    self._dispatcher.worker_command(),
                )

            self._in_background(say, is_daemon=False)

    def note_other_release(self, loader: str, age: float) -> None:
        """Log once for each loader that another release still loads entries which this one cannot read.

        Those of before this process began are what a deployment leaves behind.
        """
        if age < self._clock() - self._began_at and self._is_due(f"release {loader}", RELEASE_LOGGED_EVERY):

            def say() -> None:
                log.warning(
                    "%s: entries and workers are of a release with another return type, parameters or tags; this "
                    "process loads for itself what they have loaded, and keeps it in its memory alone.  If this is no "
                    "deployment under way, restart what runs the older release: this process, or the workers: %s",
                    loader,
                    self._dispatcher.worker_command(),
                    extra={"loader": loader},
                )

            self._in_background(say, is_daemon=False)

    def note_failed_publish(self, queue: str, error: str) -> None:
        """Log that a message could not be sent."""
        if self._is_due("publish"):
            log.warning(
                "messages to %s cannot be sent; until they can, this process loads its own misses: %s", queue, error
            )

    # -- inside

    def _probe(self, request: LoadRequest, now: float) -> None:
        """Send a request whose reader loads it all the same, now and then, and look whether any has been taken."""
        with self._lock:
            sends, looks = now >= self._probe_at, now >= self._look_at
            if sends:
                self._probe_at = now + self._probe_every
                self._probe_every = min(2 * self._probe_every, MAX_PROBE_EVERY)
            if looks:
                self._look_at = now + LOOK_EVERY
        if sends:
            self._dispatcher.submit_all([request])
        if looks:
            self._in_background(self._look)

    def _look(self) -> None:
        """Have readers wait for workers again, if one has taken a message since they stopped."""
        with contextlib.suppress(StoreError):
            age = self._store.taken_age("miss").run()
            if age is not None and self._clock() - age > self._opened_at and self.is_open:
                self._in_a_row = 0
                self._logged_at.pop("workers", None)  # the next outage is another
                self._log_end()

    def _log_end(self) -> None:
        self._is_outage_noted = self._is_outage_logged = False
        log.warning("workers take messages from %s again", self._config.queues.miss)

    def _log_why(self, request: LoadRequest, command: str) -> None:
        """Log why nobody had begun a load, as far as broker and store know."""
        queue = self._config.queues.miss
        if not self._dispatcher.wait_until_sent(SENT_WITHIN):  # a queue says nothing of what has not reached it
            log.warning(
                "no worker began %s within its wait_for: its message has not left this process for %g s: the broker is "
                "slow, or this process is busy",
                request.call,
                SENT_WITHIN,
            )
            return
        try:
            age = self._store.taken_age("miss").run()
            length = next((state.length for state in self._dispatcher.queue_states() if state.name == queue), 0)
        except (StoreError, BrokerUnavailable) as error:
            log.warning("no worker began %s within its wait_for: %s", request.call, error)
            return
        store = f"{self._store.link.where}, namespace {self._config.namespace}"
        waiting = f"{length} message{' waits' if length == 1 else 's wait'}"
        if length and age is None:
            reason = f"no worker takes queue {queue}, where {waiting}; start one: {command}; {CONNECTING}"
        elif length and age is not None:
            reason = (
                f"no worker has taken a message from queue {queue} for {age:.0f} s, and {waiting}: none runs, or they "
                f"are behind; start one, or more: {command}; {CONNECTING}"
            )
        elif age is None:
            reason = (
                f"messages have gone from queue {queue}, but to no worker of this store ({store}): give workers the "
                f"same redis_url and namespace, and have their app import {self._dispatcher.module_of(request.loader)}"
                f"; or the broker was restarted, and has lost this message"
            )
        else:
            reason = (
                f"a worker has taken its message from queue {queue} and not begun: it was killed, it is busy (give it "
                f"--prefetch-multiplier 1, or start more: {command}), its log has an error (its app does not import "
                f"{self._dispatcher.module_of(request.loader)}, refuses JSON, or has a task class that raises), or it "
                f"loads into another store or namespace than this process ({store}), as `cacheworkers doctor` says "
                f"under worker-store"
            )
        log.warning("no worker began %s within its wait_for, a reader loads it: %s", request.call, reason)

    def _is_due(self, what: str, every: float = LOG_EVERY) -> bool:
        now = self._clock()
        with self._lock:
            if now < self._logged_at.get(what, float("-inf")) + every:
                return False
            self._logged_at[what] = now
            return True

    def _in_background(self, work: Callable[[], None], *, is_daemon: bool = True) -> None:
        with contextlib.suppress(RuntimeError):  # no thread can be started
            threading.Thread(target=work, name="cacheworkers-worker-breaker", daemon=is_daemon).start()
