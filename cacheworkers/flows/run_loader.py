"""Run a loader's own code for some calls: in turn under its rate limit, and in halves where a batch raises."""

from __future__ import annotations

import socket
from typing import Any

from cacheworkers.core.driver import Flow, Pause
from cacheworkers.core.signature import Call
from cacheworkers.errors import LoadTimeout, RateLimited, StoreError
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports, Runner

#: Runs of a batch loader that its first failure may cost, besides one a key.
SPARE_RUNS = 16
#: What ends a load from outside, or says that the database is away: it says nothing about a key.
_NOT_OF_A_KEY = (ConnectionError, socket.gaierror, MemoryError, LoadTimeout)
_NAMES_NOT_OF_A_KEY = frozenset(
    {"SoftTimeLimitExceeded", "OperationalError", "InterfaceError", "QueryCanceled", "ConnectionError", "TimeoutError"}
)
#: What a slow key raises as well as a slow database: the builtin, and those of requests and httpx.
_NAMES_OF_SLOW = frozenset({"Timeout", "TimeoutException"})
#: Runs that may be late, one after the other, before all are taken to be.
LATE_RUNS = 3


def run_loader(ports: Ports, loader: LoaderSpec, loading: Loading, runner: Runner) -> Flow[dict[str, Any]]:
    """Run the loader once for all calls; a batch that raises is halved until what raises is alone.

    Returns call text -> value, or the exception that the load of this call raised.

    Raises:
        RateLimited: the rate limit leaves no turn before the deadline.
        LoadTimeout: there is no room or no time for it in this process.
    """
    yield from wait_for_turn(ports, loader, loading.deadline)
    began = ports.clock.monotonic()
    values = yield from _run(loader, loading, runner)
    error = _raised(values)
    if error is None or len(values) == 1 or _is_of_no_key(error):
        return values
    took = ports.clock.monotonic() - began if _is_slow(error) else None
    return (yield from _in_halves(ports, loader, loading, runner, values, took))


def wait_for_turn(ports: Ports, loader: LoaderSpec, deadline: float) -> Flow[None]:
    """Wait until the loader's rate limit allows one more run: over all processes, or here while the store is away.

    Raises:
        RateLimited: not before the deadline, a monotonic instant.
    """
    limiter = loader.limiter
    if limiter is None:
        return
    now = ports.clock.monotonic()
    try:
        pause: float | None = yield ports.store.take_turn(loader.name, limiter.interval, deadline - now)
    except StoreError:
        pause = limiter.take_turn(now, deadline - now)
    if pause is None:
        raise RateLimited(
            f"{loader.name} has a rate limit of {loader.rate_limit}, which admits no load within {deadline - now:.3g} s"
        )
    if pause > 0:
        yield Pause(pause)


def _run(loader: LoaderSpec, loading: Loading, runner: Runner) -> Flow[dict[str, Any]]:
    """Run it; what is raised outside the loader, by opening a session say, is the failure of every call."""
    try:
        values: dict[str, Any] = yield runner.step(loader, loading)
    except LoadTimeout:
        raise
    except Exception as error:
        return {call.text: error for call in loading.calls}
    return values


def _in_halves(
    ports: Ports, loader: LoaderSpec, whole: Loading, runner: Runner, values: dict[str, Any], late_after: float | None
) -> Flow[dict[str, Any]]:
    """Run the halves of what raised until each key that raises is alone; bounded, then the rest fails with it.

    One bad key of a hundred costs fourteen runs.  Where every run fails, the fault is no key's: it ends once a single
    key, and what stands beside it, have failed as well.  After a time-out, which took `late_after` seconds, it also
    ends where one more of them would be past the deadline.
    """
    queue = _halves(whole.calls)
    runs, failures, has_worked = 0, 0, False
    hopeless = 2 * len(whole.calls).bit_length() + 2 if late_after is None else LATE_RUNS
    until = whole.deadline - (late_after or 0.0)
    while (
        queue
        and ports.clock.monotonic() <= until
        and runs < SPARE_RUNS + len(whole.calls)
        and (has_worked or failures < hopeless)
    ):
        part = queue.pop()
        try:
            yield from wait_for_turn(ports, loader, whole.deadline)
            found = yield from _run(loader, _part(whole, part), runner)
        except LoadTimeout:
            break
        runs += 1
        values.update(found)
        error = _raised(found)
        if error is None:
            has_worked = True
            continue
        failures += 1
        if _is_of_no_key(error):
            break
        if len(part) > 1:
            queue += _halves(part)
    return values


def _part(whole: Loading, calls: list[Call]) -> Loading:
    """Return some calls of a load: what the loader says of them is said of the whole."""
    return Loading(calls, whole.previous, whole.deadline, whole.seq, whole.tags, whole.fresh_for, whole.unshared)


def _halves(calls: list[Call]) -> list[list[Call]]:
    middle = len(calls) // 2
    return [calls[middle:], calls[:middle]]


def _raised(values: dict[str, Any]) -> Exception | None:
    """Return what the loader raised, if it returned nothing at all."""
    first = next(iter(values.values()), None)
    if isinstance(first, Exception) and all(value is first for value in values.values()):
        return first
    return None


def _is_of_no_key(error: Exception) -> bool:
    if type(error) is OSError:  # no route, no file descriptors; a key's file that is not there has a class of its own
        return True
    if _is_slow(error):
        return False
    return isinstance(error, _NOT_OF_A_KEY) or not _names(error).isdisjoint(_NAMES_NOT_OF_A_KEY)


def _is_slow(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or not _names(error).isdisjoint(_NAMES_OF_SLOW)


def _names(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
