"""What a load that fails leaves behind: one log record with its traceback, the error on the event, a failed task."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.exc import UnboundExecutionError

from cacheworkers import AsyncLoad, Cache, KeyMissing, Load, LoadError
from cacheworkers.events import Event, Loaded, NotStored
from cacheworkers.flows.load_failure import UNBOUND, as_load_error
from cacheworkers.runtime.failure_log import MAX_LOGGED, UNSTORED_PERIOD, FailureLog
from cacheworkers.testing import FaultProxy, Valkey
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


def failures(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name == "cacheworkers" and r.getMessage().startswith("load of ")]


def inverse(cache: Cache, **policy: Any) -> Any:
    @cache.loader(**policy)
    def inverse(load: Load, n: int) -> float:
        return 1 / n

    return inverse


def test_sessions_without_an_engine_are_explained_once(make_cache: MakeCache) -> None:
    """In each call's error, and once under the traceback, though one error fails all calls of a batch."""
    cache = make_cache()
    inverse(cache)
    error = UnboundExecutionError("Could not locate a bind\nmore")

    made = [as_load_error(cache._loaders["inverse"], f"inverse[{n}]", error) for n in range(2)]

    assert [each.text.count(UNBOUND[:100]) for each in made] == [1, 1]
    assert error.__notes__ == [UNBOUND]


def test_it_is_logged_once_with_its_traceback(make_cache: MakeCache, caplog: pytest.LogCaptureFixture) -> None:
    """Of ten reads within its backoff the first loads, and the others get what it came to."""
    loader = inverse(make_cache(backoff_for=60.0))

    for _ in range(10):
        with pytest.raises(LoadError):
            loader.get(0)

    wait_until(lambda: failures(caplog))  # a load's record comes after its readers are woken
    [record] = failures(caplog)
    assert record.levelno == logging.ERROR and record.exc_info and record.exc_info[0] is ZeroDivisionError
    assert record.getMessage().startswith("load of inverse[0] failed")


@pytest.mark.parametrize("how", ["thread", "loop", "without the store"])
def test_a_loader_that_exits_fails_immediately(make_cache: MakeCache, valkey: Valkey, how: str) -> None:
    """Its readers get an error, and neither wait for a worker that has ended nor end with it."""
    with FaultProxy(valkey.url) as proxy:
        cache = make_cache(redis_url=proxy.url)

        @cache.loader(wait_for=600, load_for=600)
        def gone(load: Load) -> None:
            sys.exit("no licence")

        @cache.loader(wait_for=600, load_for=600)
        async def agone(load: AsyncLoad) -> None:
            sys.exit("no licence")

        if how == "without the store":
            proxy.close()

        with pytest.raises(LoadError, match=r"RuntimeError: the loader called sys.exit\('no licence'\)"):
            (agone if how == "loop" else gone).get()


@pytest.mark.parametrize("error", [SystemExit(15 - 256), type("WorkerShutdown", (SystemExit,), {})(0)])
def test_what_ends_a_worker_s_process_is_no_loader_s(make_cache: MakeCache, error: SystemExit) -> None:
    """A signal's, or Celery's own."""
    cache = make_cache(testing=True)

    @cache.loader()
    def interrupted(load: Load) -> None:
        raise error

    with pytest.raises(SystemExit):
        interrupted.get()


class Panic(BaseException):
    """No Exception, as a panic of an extension written in Rust."""


class Nameless(Exception):
    def __str__(self) -> str:
        raise AttributeError("name")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Panic("index out of bounds"), "RuntimeError: the loader raised Panic: index out of bounds"),
        (FileNotFoundError("caf\udce9.txt"), r"FileNotFoundError: caf\udce9.txt"),  # a name that is no UTF-8
        (Nameless(), "Nameless: its text cannot be made"),
    ],
    ids=["no Exception", "a surrogate in its text", "no text"],
)
@pytest.mark.parametrize("how", ["thread", "loop", "without the store"])
def test_whatever_a_loader_raises_is_a_failed_load(
    make_cache: MakeCache,
    valkey: Valkey,
    error: BaseException,
    says: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its readers get it immediately, and other calls go on being loaded by the same threads."""
    # pytest-xdist cannot send what pytest would keep of the traceback's line.
    monkeypatch.setattr(logging.getLogger("cacheworkers"), "propagate", False)
    with FaultProxy(valkey.url) as proxy:
        cache = make_cache(redis_url=proxy.url, bulkhead=1)

        @cache.loader(wait_for=600, load_for=600)
        def odd(load: Load, n: int) -> int:
            if n:
                return n
            raise error

        @cache.loader(wait_for=600, load_for=600)
        async def aodd(load: AsyncLoad, n: int) -> int:
            if n:
                return n
            raise error

        if how == "without the store":
            proxy.close()
        loader = aodd if how == "loop" else odd

        with pytest.raises(LoadError) as raised:
            loader.get(0)

        assert f"{raised.value.kind}: {raised.value.text}" == says
        assert loader.get(1) == 1


@pytest.mark.parametrize("kind", ["GreenletExit", "Timeout"])
def test_what_ends_a_green_thread_is_no_loader_s(make_cache: MakeCache, kind: str) -> None:
    """gevent's and eventlet's exceptions are no Exceptions, so that code which they interrupt does not go on."""
    cache = make_cache(testing=True)
    ended = type(kind, (BaseException,), {"__module__": "gevent.timeout"})

    @cache.loader()
    def interrupted(load: Load) -> None:
        raise ended

    with pytest.raises(ended):
        interrupted.get()


def test_each_call_that_fails_is_logged(make_cache: MakeCache, caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache()

    @cache.loader()
    def broken(load: Load, n: int) -> int:
        raise ValueError(n)

    for n in range(3):
        with pytest.raises(LoadError):
            broken.get(n)

    wait_until(lambda: len(failures(caplog)) == 3)
    assert sorted(str(record.exc_info[1]) for record in failures(caplog) if record.exc_info) == ["0", "1", "2"]


def test_what_fails_without_the_store_is_logged_once_too(caplog: pytest.LogCaptureFixture, make_cache: Any) -> None:
    """There is no backoff to heed, and every read loads."""
    loader = inverse(make_cache(redis_url="redis://127.0.0.1:1/0", store_timeout=0.1, backoff_for=600.0))

    for _ in range(5):
        with pytest.raises(LoadError):
            loader.get(0)

    assert len(failures(caplog)) == 1


def test_the_error_is_on_the_event(make_cache: MakeCache, events: list[Event]) -> None:
    with pytest.raises(LoadError):
        inverse(make_cache()).get(0)

    wait_until(lambda: any(isinstance(event, Loaded) for event in events))
    [event] = [event for event in events if isinstance(event, Loaded)]
    assert isinstance(event.error, LoadError) and isinstance(event.error.__cause__, ZeroDivisionError)


def test_a_value_that_cannot_be_stored_is_a_warning_once_for_its_loader(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    """It is served, and no failure; but each read of it is a load."""
    cache = make_cache(max_entry_bytes=256, backoff_for=0.001, max_backoff_for=0.001)

    @cache.loader()
    def page(load: Load, n: int) -> str:
        return "x" * 1000

    for n in range(3):
        assert page.get(n) == "x" * 1000

    assert failures(caplog) == []
    [record] = [r for r in caplog.records if r.name == "cacheworkers" and "cannot be stored" in r.getMessage()]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("page[0] cannot be stored, and is loaded at each read: ")
    assert "an entry may have at most 256 bytes" in record.getMessage()


def test_what_is_still_not_stored_is_logged_again_later(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    log = FailureLog(1.0, lambda: now[0])

    for loader in ("x", "y", "x"):
        log.log_unstored(NotStored(loader, f"{loader}[1]", "too large"))
    assert [record.args and record.args[0] for record in caplog.records] == ["x[1]", "y[1]"]  # type: ignore[index]

    now[0] += UNSTORED_PERIOD
    log.log_unstored(NotStored("x", "x[2]", "too large"))
    assert caplog.records[-1].getMessage() == "x[2] cannot be stored, and is loaded at each read: too large"


def test_a_batch_that_fails_is_logged_once_and_a_key_left_out_is_no_failure(
    make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache()

    @cache.batch_loader()
    def prices(load: Load, keys: list[int]) -> dict[int, int]:
        if 0 in keys:
            raise ValueError("no prices")
        return {}

    with pytest.raises(KeyMissing):
        prices.get(7)
    assert failures(caplog) == []

    with pytest.raises(Exception, match="have no value"):
        prices.get_many(range(20))
    wait_until(lambda: failures(caplog))
    assert len(failures(caplog)) == 1


def test_the_task_of_a_failed_load_fails_and_others_do_not(make_cache: MakeCache) -> None:
    """With the load's error and its cause: Flower shows it, and what listens to `task_failure` gets it."""
    app = Celery("shop", broker="memory://")
    cache = make_cache(celery=app)
    inverse(cache)
    rows = [[f"inverse[{n}]", "ab" * 8, "", "miss"] for n in (1, 0)]

    task = app.tasks["cacheworkers.load.inverse"]
    good, bad = task.apply(kwargs={"asks": rows[:1]}), task.apply(kwargs={"asks": rows[1:]})

    assert good.successful()
    assert bad.state == "FAILURE" and isinstance(bad.result, LoadError)
    assert isinstance(bad.result.__cause__, ZeroDivisionError)


def test_a_flood_of_failures_ends_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """A database that is away fails every load; and a new period logs again."""
    now = [100.0]
    log = FailureLog(1.0, lambda: now[0])

    def fail(n: int) -> None:
        log.log(Loaded("x", f"x[{n}]", "failed", 0.1, 1, "worker", LoadError("x", f"x[{n}]", "ValueError", "")))

    for n in range(3 * MAX_LOGGED):
        fail(n)
    assert len(failures(caplog)) == MAX_LOGGED
    assert caplog.records[-1].getMessage() == "further failed loads are not logged for 10 s"

    now[0] += 60
    fail(0)
    assert len(failures(caplog)) == MAX_LOGGED + 1


@pytest.mark.parametrize("way", ["get_json", "aget_json"])
def test_the_json_of_a_lapsed_value_is_served_as_the_value_is(cache: Cache, way: str) -> None:
    values = iter(["old"])

    @cache.loader(fresh_for=0, stale_for=0, error_for=300, jitter=0)
    def page(load: Load, n: int) -> str:
        for value in values:
            return value
        raise OSError("the database is away")

    assert page.get(1) == "old"
    read = getattr(page, way)
    found = asyncio.run(read(1)) if way.startswith("a") else read(1)
    assert found == b'"old"'
