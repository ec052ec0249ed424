"""An invalidation of many that is killed half-way is finished by whoever comes next."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.huge_tag import fill
from cacheworkers import Cache
from cacheworkers.core.driver import run
from cacheworkers.flows.invalidate import Mode, invalidate_tags

ROOT = Path(__file__).resolve().parents[2]
#: Dies by kill -9 in the middle of its work: no clean-up, no reply read.
DIES = """
import os, signal, sys
from cacheworkers import Cache, Config
from cacheworkers.core.driver import run
from cacheworkers.flows.invalidate import invalidate_tags

def progress(members):
    if members >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

cache = Cache(Config.from_env(store_timeout=20.0))
run(invalidate_tags(cache._ports, ["all"], sys.argv[2], progress))
"""


def die_after(cache: Cache, members: int, mode: Mode = "hard") -> None:
    """Have a process invalidate the tag, and be killed when it has gone through some members."""
    env = {
        **os.environ,
        "CACHEWORKERS_REDIS_URL": cache.config.redis_url,
        "CACHEWORKERS_NAMESPACE": cache.config.namespace,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-c", DIES, str(members), mode], env=env, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def entries(cache: Cache) -> int:
    client = cache._ports.store.link.client()
    return sum(1 for _ in client.scan_iter(f"{cache.config.namespace}:e:*", count=10_000))


def filled(cache: Cache, members: int) -> Cache:
    fill(cache, cache._ports.store.link.client(), members)
    return cache


def by_sweep(cache: Cache) -> int:
    return cache.collect_garbage().entries


def by_the_next_one(cache: Cache) -> int:
    return cache.invalidate("all").entries


def by_a_soft_one(cache: Cache) -> int:
    return cache.invalidate("all", mode="soft").entries


@pytest.mark.parametrize("finish", [by_sweep, by_the_next_one, by_a_soft_one])
def test_what_a_killed_invalidation_left_is_deleted_by_the_next(cache: Cache, finish: Callable[[Cache], int]) -> None:
    filled(cache, 5000)
    die_after(cache, 2000)
    left = entries(cache)
    assert 0 < left <= 3000

    finished = finish(cache)

    assert (finished, entries(cache)) == (left, 0)
    assert cache._ports.store.detached_sets(["all"]).run() == []


def test_a_soft_one_that_was_killed_is_repeated_from_the_start(cache: Cache) -> None:
    """It takes nothing out of the tag's set: what it had not reached is still fresh, and still found."""
    filled(cache, 5000)
    die_after(cache, 2000, "soft")

    assert cache.collect_garbage().entries == 0
    assert 0 < cache.invalidate("all", mode="soft").entries <= 3000
    assert cache.invalidate("all").entries == 5000


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_progress_counts_members(cache: Cache, mode: Mode) -> None:
    filled(cache, 1234)
    reported: list[int] = []

    run(invalidate_tags(cache._ports, ["all"], mode, reported.append))

    assert reported == sorted(reported) and len(reported) > 1
    assert reported[-1] >= 1234  # a walk in place may meet a member twice


@pytest.mark.heavy
def test_a_million_members_are_finished_too(make_cache: Any) -> None:
    cache = filled(make_cache(store_timeout=20.0), 1_000_000)
    die_after(cache, 400_000)
    left = entries(cache)

    done = cache.collect_garbage()

    assert 0 < left <= 600_000
    assert (done.entries, entries(cache)) == (left, 0)
