"""Forks: a child's cache begins again, whatever its parent's threads were in the middle of."""

from __future__ import annotations

import asyncio
import collections
import gc
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from forked import exit_code, fork, in_child
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from cacheworkers import Cache, Load
from cacheworkers.local import fork_check

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_FOLLOWED = (dict, list, tuple, set, collections.deque, types.CellType, types.MethodType)


def locks_of(cache: Cache) -> list[Any]:
    """Every lock of the library's objects that a cache leads to."""
    found: list[Any] = []
    seen: set[int] = set()
    left: list[Any] = [cache]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, _LOCKS):
            found.append(each)
        elif isinstance(each, threading.Condition):
            left.append(each._lock)  # type: ignore[attr-defined]  # not those of who waits: they are held meanwhile
        elif isinstance(each, threading.Thread):
            continue  # it holds a lock of its own for as long as it runs
        elif isinstance(each, types.FunctionType):
            left.extend(each.__closure__ or ())
        elif isinstance(each, _FOLLOWED) or type(each).__module__.startswith("cacheworkers."):
            left.extend(gc.get_referents(each))
    return found


def hold_all(locks: list[Any]) -> None:
    """Take all of them together; others may take some and want more meanwhile."""
    while True:
        held = []
        for lock in locks:
            if not lock.acquire(blocking=False):
                break
            held.append(lock)
        else:
            return
        for lock in held:
            lock.release()


def forked_while_all_are_held(cache: Cache, work: Callable[[], None]) -> int:
    """Do something in a child, made while another thread holds every lock of a cache; its exit code."""
    is_held, may_go_on = threading.Event(), threading.Event()
    locks = locks_of(cache)

    def hold() -> None:
        hold_all(locks)
        is_held.set()
        may_go_on.wait(60)
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(60)
    child = fork(work)
    may_go_on.set()
    thread.join(60)
    return exit_code(child)


@pytest.mark.parametrize("workers", ["local", "celery"])
def test_no_lock_of_the_parent_s_is_held_in_a_child(make_cache: Callable[..., Cache], workers: str) -> None:
    celery = {"celery": Celery(broker="memory://")} if workers == "celery" else {}
    cache = make_cache(sessions=sessionmaker(create_engine("sqlite://", poolclass=StaticPool)), **celery)
    limited = cache.loader(name="limited", rate_limit="10/s", wait_for=0.1)(lambda load: 1)
    assert limited.get() == 1

    def all_are_free() -> None:
        locks = locks_of(cache)
        assert len(locks) > 10
        assert [lock for lock in locks if not lock.acquire(blocking=False)] == []

    assert forked_while_all_are_held(cache, all_are_free) == 0


def test_a_child_reads_stale_missing_and_many(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache()

    @cache.loader(tags=("n:{n}",), fresh_for=600, early=0)
    def number(load: Load, n: int) -> int:
        return n * 10

    @cache.loader(tags=("s:{n}",), fresh_for=0, stale_for=600, early=0)
    def stale(load: Load, n: int) -> int:
        return n * 10

    def read() -> None:
        assert stale.read(1).freshness.value == "stale"
        assert number.get(1) == 10
        assert number.get(2) == 20
        assert number.get_many([1, 2, 3]) == {1: 10, 2: 20, 3: 30}
        assert asyncio.run(number.aget(4)) == 40
        cache.invalidate("n:1")
        assert number.get(1) == 10
        cache.close()

    assert (number.get(1), stale.get(1)) == (10, 10)
    assert forked_while_all_are_held(cache, read) == 0


@pytest.mark.parametrize("make", [fork_check.process_mark, fork_check._ProcessId])
def test_a_mark_of_a_process_is_false_in_its_forks(make: Callable[[], Any]) -> None:
    """By no hook of Python's: servers that fork in C run none."""
    mark = make()

    def check() -> None:
        assert not mark[0]

    assert in_child(check) == 0
    assert mark[0]


@pytest.mark.parametrize("how", ["get", "get_many"])
def test_a_fork_without_hooks_uses_nothing_of_its_parent(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Servers that fork in C run none of Python's hooks: at the first use a child has other connections and threads.

    Not tried with a real one: it may leave the interpreter locked, if another thread wants it at that instant.
    """
    marks: list[list[int]] = []

    def mark() -> list[int]:
        marks.append([1])
        return marks[-1]

    for user in ("local.fork_check", "store.tracking.listener"):
        monkeypatch.setattr(f"cacheworkers.{user}.process_mark", mark)
    cache = make_cache()

    @cache.loader(fresh_for=300, l1_for=0.0)
    def number(load: Load, n: int) -> int:
        return n * 10

    def read(n: int) -> int:
        value: int = number.get(n) if how == "get" else number.get_many([n])[n]
        return value

    assert read(1) == 10
    pool: Any = cache._ports.store.link._masters.pool  # type: ignore[attr-defined]
    parents, listens = list(pool._idle), cache._ports.listener._thread
    reports = cache._runtime._access_reporter._stop

    for each in marks:
        each[0] = 0
    assert read(1) == 10
    reports.set()  # the parent's thread, which this process still has
    cache.invalidate("nothing")

    assert parents
    assert not set(parents) & set(pool._idle)
    assert cache._ports.listener._thread is not listens
