"""Health: what each exchange tells of the store: errors translated once, and the breaker kept informed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from redis.exceptions import AskError, MaxConnectionsError, TryAgainError

from cacheworkers.errors import CacheworkersError, StoreError, StoreUnavailable
from cacheworkers.store.connections.health_probe import HealthProbe
from cacheworkers.store.connections.request import UNAVAILABLE
from cacheworkers.store.connections.topology import MasterUnavailable

log = logging.getLogger("cacheworkers")


class Breaker(Protocol):
    """Says whether a dead store is worth asking again."""

    is_open: bool
    open_for: float

    def allows(self) -> bool: ...
    def failed(self) -> bool: ...
    def succeeded(self) -> bool: ...
    def reset(self) -> None: ...


class Health:
    """Whether the store may be asked, and what its failures are called.

    Once it is unavailable nobody waits for it but a thread of its own, which asks until it is answered.  Only where
    there is none does one caller a period find out: without a period, after `close`, or when no thread can be had.

    Attributes:
        breaker: open since the last exchange that failed.
        prober: finds out whether the store is back.
    """

    def __init__(
        self,
        breaker: Breaker,
        where: str,
        *,
        probe: Callable[[], bool],
        find_back: Callable[[], bool],
        has_parts: bool,
        on_failure: Callable[[], None],
        on_lost: Callable[[str], None],
        on_back: Callable[[], None],
    ) -> None:
        """
        Args:
            where: the store's address, without a password.
            probe: asks the store something, a period after it failed, and so on; raises what an exchange raises.
                It does not ask those parts that failed, and returns whether there are any.
            find_back: asks those parts, and returns whether all are back; what is not, `probe` does not ask either.
            has_parts: one of them may fail alone; that is found out at once.
            on_failure: called when the store is unavailable.
            on_lost: called with an error when the breaker opens.
            on_back: called when it closes again, and the store is whole; on the prober's thread.
        """
        self.breaker = breaker
        self.prober = HealthProbe(breaker.open_for, self._is_answered, self.probed, looks_early=has_parts)
        self._where = where
        self._probe = probe
        self._find_back = find_back
        self._on_failure = on_failure
        self._on_lost = on_lost
        self._on_back = on_back
        self._asking = Asking(self, is_probe=False)
        self._is_lost = False

    def reset(self) -> None:
        """Close the breaker, as a child does after a fork."""
        self._is_lost = False
        self.prober.reset()
        self.breaker.reset()

    @property
    def is_well(self) -> bool:
        """Whether the store may be asked without finding out anything by it."""
        return not self.breaker.is_open

    def asking(self) -> Asking:
        """Return a context manager around one exchange.

        Raises:
            StoreUnavailable: no answer, no connection, or the breaker is open.
            StoreError: a request was answered with an error.
        """
        if not self.breaker.is_open:
            return self._asking
        if self.prober.is_at_it or not self.breaker.allows():
            raise StoreUnavailable(f"the store at {self._where} did not answer lately; its breaker is open")
        return Asking(self, is_probe=True)

    def probed(self) -> None:
        """Note that a probe was answered; other successes may be answers from before the failure."""
        self.breaker.succeeded()
        was_lost, self._is_lost = self._is_lost, False
        if was_lost:
            log.warning("the store at %s answers again", self._where)
            self._on_back()

    def _is_answered(self, is_early: bool) -> bool:
        try:
            if self._probe():
                self.breaker.succeeded()
                # At once after a failure it would fail again.
                return not is_early and self._find_back()
        except Exception as error:
            # An error that the store answered with is an answer.
            if isinstance(self.translated(error), StoreUnavailable):
                return False
        if is_early:  # and nobody knows who failed: whoever asked again might wait as long again
            return False
        self.breaker.succeeded()
        return True

    def translated(self, error: Exception) -> CacheworkersError:
        """Return what to raise for a failed exchange, and keep the breaker informed."""
        where = self._where
        if isinstance(error, CacheworkersError):
            return error
        if isinstance(error, MasterUnavailable):
            return StoreUnavailable(f"of the store at {where} {error}")
        if isinstance(error, MaxConnectionsError):
            return StoreUnavailable(f"no free connection to the store at {where}")
        if isinstance(error, AskError | TryAgainError):  # for one slot, and no failure of those that answered
            return StoreUnavailable(f"a slot of the store at {where} is on its way: {type(error).__name__}: {error}")
        if isinstance(error, UNAVAILABLE):
            text = f"the store at {where} is unavailable: {type(error).__name__}: {error}"
            self._on_failure()
            if self.breaker.failed():
                self.prober.begin()
                was_lost, self._is_lost = self._is_lost, True
                if not was_lost:
                    log.warning(
                        "%s; until it answers, reads load for themselves and invalidations are refused: "
                        "see that it runs, and that redis_url has its address, user and password",
                        text,
                    )
                    self._on_lost(text)
            return StoreUnavailable(text)
        return StoreError(f"the store at {where} answered {type(error).__name__}: {error}")


class Asking:
    """What comes of exchanges; a probe is one that finds out whether the store is back."""

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
                self._health.probed()
        elif isinstance(error, Exception):
            translated = self._health.translated(error)
            if translated is not error:
                raise translated from error
