"""Health: whether the store may be asked (the breaker), what its failures are called, and the probes of a lost store.

    closed      everybody asks
    suspected   everybody asks, and a thread asks again: one late reply, or one connection that was cut, proves nothing
    open        nobody asks but that thread, which probes until the store answers: no reader waits for a dead store

A failure to connect, and an answer such as LOADING, open it immediately.  Where no thread asks (`breaker_for` is 0,
after `close`, or no thread can be started) one caller a period asks instead.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from redis.exceptions import AskError, MaxConnectionsError, ReadOnlyError, RedisError, TryAgainError

from cacheworkers.errors import CacheworkersError, StoreError, StoreRefused, StoreUnavailable
from cacheworkers.local.breaker import Breaker
from cacheworkers.local.process_thread import ProcessThread
from cacheworkers.store.connections.connection import ConnectionCut, LateReply
from cacheworkers.store.connections.request import UNAVAILABLE
from cacheworkers.store.connections.topology import MasterUnavailable

log = logging.getLogger("cacheworkers")

#: The first probe of an open breaker comes after this share of its period; each next one after twice as long.
_FIRST_PROBE = 1 / 16
#: Failures that may concern one connection only: the store is asked again before the breaker opens.
_ONE_CONNECTION = (LateReply, ConnectionCut, ReadOnlyError)
#: The packages whose classes an exchange may raise.
_EXCHANGES_RAISE = sys.stdlib_module_names | {"redis", "hiredis", "msgspec", "gevent", "eventlet", "greenlet"}


class Health:
    """The breaker of one process, and the thread that probes the store.

    Attributes:
        breaker: open since the store failed, until it answers.
    """

    def __init__(
        self,
        where: str,
        open_for: float,
        *,
        memory_for: float,
        confirm: Callable[[], None],
        probe: Callable[[], bool],
        probe_unavailable: Callable[[], bool],
        on_failure: Callable[[], None],
        on_lost: Callable[[str], None],
        on_back: Callable[[], None],
        has_parts: bool,
    ) -> None:
        """
        Args:
            where: the store's address, without a password.
            open_for: longest time between probes, seconds; 0 lets every call ask.
            confirm: asks what failed again; raises if it does not answer, or with an error.
            probe: does the same with what did not fail, and returns whether other parts are unavailable.
            probe_unavailable: asks those parts, and returns whether all answer.
            on_failure: called when the store is unavailable; drops connections.
            on_lost: called with an error when the breaker opens.
            on_back: called, on the thread, when the whole store answers again.
            has_parts: one part may fail alone: a probe follows immediately after each failure.
        """
        self._where = where
        self._open_for = open_for
        self._memory_for = memory_for
        self.breaker = Breaker(open_for)
        self._confirm = confirm
        self._probe = probe
        self._probe_unavailable = probe_unavailable
        self._on_failure = on_failure
        self._on_lost = on_lost
        self._on_back = on_back
        self._has_parts = has_parts
        self._is_closed = False
        self._asking = Asking(self, is_probe=False)
        self.reset()

    def reset(self) -> None:
        """Close the breaker, as a child does after a fork: connections and thread are the parent's."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_suspected = False
        self._has_unavailable = False
        self._is_lost = False
        self._why = ""
        self.breaker.reset()

    def close(self, timeout: float) -> None:
        """Stop probing; wait `timeout` seconds at most for a probe under way: its connection is then closed too."""
        self._is_closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # it has not begun, and ends as soon as it does
                thread.join(timeout)

    # -- exchanges

    @property
    def is_well(self) -> bool:
        """Whether everybody may ask."""
        return not self.breaker.is_open

    @property
    def is_probing(self) -> bool:
        """Whether a thread asks; nobody else should, while the breaker is open."""
        return self._thread is not None

    def asking(self) -> Asking:
        """Return a context manager around one exchange.

        Raises:
            StoreUnavailable: no answer, no connection, an answer that is an error, or the breaker is open.
        """
        if not self.breaker.is_open:
            return self._asking
        if self._thread is not None or not self.breaker.allows():
            raise StoreUnavailable(f"{self._why or f'the store at {self._where} is lost'}; its breaker is open")
        return Asking(self, is_probe=True)

    def translated(self, error: Exception) -> Exception:
        """Return what to raise for a failed exchange, and note what it says about the store.

        What no exchange raises is a signal handler's, Celery's soft time limit say, and the caller's.
        """
        where = self._where
        if isinstance(error, CacheworkersError):
            return error
        if isinstance(error, MasterUnavailable):
            return StoreUnavailable(f"of the store at {where} {error}")
        if isinstance(error, MaxConnectionsError):
            return StoreUnavailable(f"no free connection to the store at {where}")
        if isinstance(error, AskError | TryAgainError):  # one slot moves; its masters have answered
            return StoreUnavailable(f"a slot of the store at {where} is moving: {error_text(error)}")
        if isinstance(error, UNAVAILABLE):
            text = f"the store at {where} is unavailable: {error_text(error)}"
            if isinstance(error, _ONE_CONNECTION) and self._open_for and self._suspect(error):
                return StoreUnavailable(text)
            self._open(text)
            return StoreUnavailable(text)
        if isinstance(error, RedisError):
            return StoreRefused(f"the store at {where} answered {error_text(error)}")
        if type(error).__module__.partition(".")[0] not in _EXCHANGES_RAISE:
            return error
        return StoreError(f"the store at {where} sent an answer that cannot be used: {error_text(error)}")

    def answered(self) -> None:
        """Note that a probe was answered: the whole store is back."""
        self.breaker.succeeded()
        was_lost, self._is_lost = self._is_lost, False
        if was_lost:
            log.warning("the store at %s answers again", self._where)
            self._on_back()

    # -- inside

    def _suspect(self, error: Exception) -> bool:
        """Have the thread ask again what failed; False if the breaker is open, or there can be no thread."""
        if isinstance(error, ReadOnlyError):
            self._on_failure()  # all connections lead to a server that is no longer a master
        with self._lock:
            if self.breaker.is_open:
                return False
            if self._thread is None and not self._start():
                return False
            self._is_suspected = True
        self._wake.set()
        return True

    def _open(self, text: str) -> None:
        self._why = text
        self._on_failure()
        with self._lock:
            if self.breaker.failed():
                if self._thread is None:
                    self._start()
                if self._has_parts:
                    self._wake.set()
            was_lost, self._is_lost = self._is_lost, True
        if not was_lost:
            log.warning(
                "%s; until it answers, reads get what this process's memory has kept, for at most %g s "
                "(l1_on_loss_for), and load the rest for themselves, and invalidations are refused: check that it "
                "runs, and that redis_url has its address, user and password",
                text,
                self._memory_for,
            )
            self._on_lost(text)

    def _start(self) -> bool:
        """Start the thread; False if there can be none.  Under the lock."""
        if not self._open_for or self._is_closed:
            return False
        self._thread = thread = ProcessThread(self._run, "cacheworkers-health")
        try:
            thread.start()
        except RuntimeError:  # no thread can be started, or the interpreter is ending
            self._thread = None
            return False
        return True

    def _run(self) -> None:
        """Confirm what is suspected, and probe what is lost, until neither is left."""
        pause = self._open_for * _FIRST_PROBE
        while True:
            is_early = not self._is_suspected and self._wake.wait(pause) and self._has_parts
            self._wake.clear()
            if self._is_closed:
                return
            if self._is_suspected and not self.breaker.is_open:
                self._is_suspected = False
                is_whole = self._is_confirmed() and not self._has_unavailable
            else:
                self._is_suspected = False
                is_whole = self._is_answered(is_early)
                pause = min(2 * pause, self._open_for)
            if is_whole and self._end():
                return

    def _end(self) -> bool:
        """Close the breaker and let the thread end, unless there is a new suspicion."""
        with self._lock:
            if self._is_suspected:
                return False
            # Together: who fails after this opens the breaker again, and starts a thread of its own.
            self._thread = None
            self.breaker.succeeded()
        self.answered()
        return True

    def _is_confirmed(self) -> bool:
        """Return whether what failed answers after all; opens the breaker if not."""
        try:
            self._confirm()
        except Exception as error:
            self._open(f"the store at {self._where} is unavailable: {error_text(error)}")
            return False
        return True

    def _is_answered(self, is_early: bool) -> bool:
        """Return whether the whole store answers; closes the breaker if the parts that did not fail do."""
        try:
            self._has_unavailable = self._probe()
            if self._has_unavailable:
                self.breaker.succeeded()
                # An early probe comes immediately after a failure: the part would fail again.
                self._has_unavailable = is_early or not self._probe_unavailable()
                return not self._has_unavailable
        except Exception as error:
            # An answer that is an error (BUSY, LOADING, NOPERM, ...) is no recovery.
            self.translated(error)
            return False
        # Early, and no part is known to have failed: who asked again might wait for a timeout again.
        return not is_early


def error_text(error: Exception) -> str:
    """Return an error's class and text, to go on after: without a full stop."""
    return f"{type(error).__name__}: {error}".rstrip(".")


class Asking:
    """A context manager around exchanges; a probe is an exchange that finds out whether the store is back."""

    __slots__ = ("_health", "_is_probe")

    def __init__(self, health: Health, *, is_probe: bool) -> None:
        self._health = health
        self._is_probe = is_probe

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self._is_probe:
                self._health.answered()
        elif isinstance(error, Exception):
            translated = self._health.translated(error)
            if translated is not error:
                raise translated from error
