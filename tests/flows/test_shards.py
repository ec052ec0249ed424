"""Processes that keep a tag in different numbers of shards, as in a rolling deploy of `Config.tag_shards`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers import Cache, Load
from cacheworkers.testing.servers import wait_until

SETTINGS: list[dict[str, int]] = [{}, {"all": 2}, {"all": 8}, {"other": 4}]


def declare(cache: Cache, database: dict[int, int]) -> Any:
    @cache.loader(fresh_for=300, stale_for=0, jitter=0, early=0, tags=("all",))
    def price(load: Load, number: int) -> int:
        return database[number]

    return price


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("loads", SETTINGS, ids=str)
@pytest.mark.parametrize("invalidates", SETTINGS, ids=str)
def test_an_invalidation_covers_the_shards_of_all_processes(
    make_cache: Callable[..., Cache], loads: dict[str, int], invalidates: dict[str, int], mode: Any
) -> None:
    database = dict.fromkeys(range(20), 1)
    price = declare(make_cache(l1_entries=0, tag_shards=loads), database)
    writer = make_cache(l1_entries=0, tag_shards=invalidates)
    assert price.get_many(range(20)) == database
    assert make_cache(tag_shards=invalidates).invalidate("all", dry_run=True).entries == 20
    assert len(writer.calls_of("all")) == 20
    database.update(dict.fromkeys(range(20), 2))

    writer.invalidate("all", mode=mode)

    if mode == "soft":  # a clock that is a little behind the store's finds it stale, not lapsed: served once more
        wait_until(lambda: price.get_many(range(20)) == database)
    assert price.get_many(range(20)) == database


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_load_under_way_is_overtaken_by_a_process_with_fewer_shards(
    make_cache: Callable[..., Cache], mode: Any
) -> None:
    """It compares with the mark of its own shard, which the invalidation has to set."""
    database = dict.fromkeys(range(20), 1)
    writer = make_cache(l1_entries=0)

    @make_cache(l1_entries=0, tag_shards={"all": 4}).loader(fresh_for=300, stale_for=0, early=0, tags=("all",))
    def price(load: Load, number: int) -> int:
        found = database[number]
        if found == 1:
            database[number] = 2
            writer.invalidate("all", mode=mode)
        return found

    for number in range(20):
        price.get(number)

    def all_prices() -> dict[int, int]:
        return {number: price.get(number) for number in range(20)}

    if mode == "soft":
        wait_until(lambda: all_prices() == dict.fromkeys(range(20), 2))
    assert all_prices() == dict.fromkeys(range(20), 2)


def test_the_most_that_any_process_has_is_kept(make_cache: Callable[..., Cache]) -> None:
    for shards in (4, 8, 2):
        declare(make_cache(tag_shards={"all": shards}), {1: 1}).revalidate(1)
    caches = [make_cache(tag_shards={"all": shards}) for shards in (4, 8, 2)]
    for cache in caches:
        cache._ports.store.snapshot().run()
    last = make_cache()

    last.invalidate("all")

    assert last._ports.store.keys.shards("all") == 8
