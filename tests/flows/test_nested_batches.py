"""Batch loaders that read other loaders: which entry gets the tags of what was read; and dropping all of a loader."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from cacheworkers import (
    Cache,
    CallError,
    InvalidationIncomplete,
    KeyMissing,
    Load,
    LoadError,
    LoadErrors,
    StoreUnavailable,
)
from cacheworkers.testing.servers import wait_until

Read = Callable[[Any, Load, list[int]], dict[int, int]]


def by_the_list(product: Any, load: Load, keys: list[int]) -> dict[int, int]:
    found: dict[int, int] = product.get_many(keys)
    return found


def by_for_key(product: Any, load: Load, keys: list[int]) -> dict[int, int]:
    found = {}
    for key in keys:
        with load.for_key(key):
            found[key] = product.get(key)
    return found


def by_a_copy(product: Any, load: Load, keys: list[int]) -> dict[int, int]:
    found: dict[int, int] = product.get_many(list(keys))
    return found


class Shop:
    def __init__(self, cache: Cache, read: Read) -> None:
        self.cache = cache
        self.loaded: list[int] = []

        @cache.batch_loader(fresh_for=300, jitter=0, early=0, tags=("product:{key}",))
        def product(load: Load, keys: list[int]) -> dict[int, int]:
            for key in keys:
                load.tag(f"category:{key}", key=key)
            return {key: key * 10 for key in keys}

        @cache.batch_loader(fresh_for=300, jitter=0, early=0, tags=("page:{key}",))
        def page(load: Load, keys: list[int]) -> dict[int, str]:
            self.loaded += keys
            return {key: f"costs {cents}" for key, cents in read(product, load, keys).items()}

        self.product, self.page = product, page


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("read", [by_the_list, by_for_key, by_a_copy])
def test_one_change_drops_the_entries_that_were_made_of_it(
    make_cache: Callable[..., Cache], read: Read, is_stored: bool
) -> None:
    """A copy of the list may be of anything: there all of the batch are made of all."""
    shop = Shop(make_cache(l1_entries=0), read)
    keys = list(range(10))
    if is_stored:
        shop.product.get_many(keys)
    shop.page.get_many(keys)

    shop.cache.invalidate("category:7")
    shop.loaded.clear()
    shop.page.get_many(keys)

    assert shop.loaded == (keys if read is by_a_copy else [7])


@pytest.mark.parametrize("read", [by_the_list, by_for_key])
def test_a_full_batch_is_stored(make_cache: Callable[..., Cache], read: Read) -> None:
    """Each entry has the tags of its own parts, however many others there are."""
    shop = Shop(make_cache(l1_entries=0), read)
    keys = list(range(100))

    shop.page.get_many(keys)
    shop.loaded.clear()

    assert len(shop.page.get_many(keys)) == 100 and shop.loaded == []


@pytest.mark.parametrize("way", ["batch", "single"])
def test_what_is_made_of_an_absence_is_dropped_when_it_ends(make_cache: Callable[..., Cache], way: str) -> None:
    """A page that shows a missing product as sold out is of that product's tags, those of its data included."""
    cache = make_cache(l1_entries=0)
    rows: dict[int, int] = {1: 10}

    @cache.batch_loader(fresh_for=300, tags=("product:{key}",))
    def product(load: Load, keys: list[int]) -> dict[int, int]:
        for key in keys:
            load.tag(f"category:{key}", key=key)
        return {key: rows[key] for key in keys if key in rows}

    @cache.batch_loader(fresh_for=300, jitter=0, early=0)
    def page(load: Load, keys: list[int]) -> dict[int, int]:
        if way == "batch":
            try:
                return product.get_many(keys)
            except LoadErrors as error:
                return {**error.values, **dict.fromkeys(error.errors, 0)}
        found = {}
        for key in keys:
            with load.for_key(key):
                try:
                    found[key] = product.get(key)
                except KeyMissing:
                    found[key] = 0
        return found

    assert page.get_many([1, 2, 3]) == {1: 10, 2: 0, 3: 0}
    rows.update({2: 20, 3: 30})
    cache.invalidate("product:2")
    assert page.get_many([1, 2, 3]) == {1: 10, 2: 20, 3: 0}

    cache.invalidate("category:3")

    assert page.get_many([1, 2, 3]) == {1: 10, 2: 20, 3: 30}


def test_a_key_of_another_batch_is_refused(make_cache: Callable[..., Cache]) -> None:
    found: list[Exception] = []

    @make_cache().batch_loader()
    def page(load: Load, keys: list[int]) -> dict[int, int]:
        try:
            with load.for_key(99):
                pass
        except CallError as error:
            found.append(error)
        return {key: key for key in keys}

    page.get(1)

    assert "one of this batch of page, got 99" in str(found[0])


@pytest.mark.parametrize("way", ["cache", "command"])
def test_all_entries_of_a_loader_are_dropped(
    make_cache: Callable[..., Cache], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other loaders stay, also where their names begin alike; so do other namespaces'."""
    cache = make_cache(l1_entries=0)

    def declared(name: str, version: int = 1) -> Any:
        @cache.loader(name=name, fresh_for=300, version=version, tags=("t:{n}",))
        def value(load: Load, n: int) -> int:
            return n

        return value

    product, more, other = declared("product", 2), declared("product.more"), declared("products")
    for each in (product, more, other):
        assert each.get_many(range(5)) == {n: n for n in range(5)}

    if way == "cache":
        assert cache.invalidate_loader("product").entries == 5
    else:
        from cacheworkers.ops.tag_commands import invalidate

        shown: list[Any] = []
        assert (
            CliRunner().invoke(invalidate, ["--loader", "product", "--yes"], obj=(cache, shown.append)).exit_code == 0
        )
        assert shown[0].entries == 5

    assert [product.peek(n) for n in range(5)] == [None] * 5
    assert all(each.peek(n) is not None for each in (more, other) for n in range(5))


def test_failures_and_absences_of_a_loader_end_when_it_is_dropped(make_cache: Callable[..., Cache]) -> None:
    """The mistake in its code may have been what failed."""
    cache = make_cache(backoff_for=600.0, max_backoff_for=600.0)
    rows: dict[int, int | None] = {1: None}

    @cache.batch_loader(fresh_for=300, wait_for=20)
    def product(load: Load, keys: list[int]) -> dict[int, int]:
        found = {key: rows[key] for key in keys if key in rows}
        if None in found.values():
            raise ValueError("a mistake")
        return found  # type: ignore[return-value]

    for key, error in ((1, LoadError), (2, KeyMissing)):
        with pytest.raises(error):
            product.get(key)
    rows.update({1: 10, 2: 20})

    assert cache.invalidate_loader("product").entries == 0

    assert product.get_many([1, 2]) == {1: 10, 2: 20}


def test_what_is_being_loaded_when_a_loader_is_dropped_is_not_stored(make_cache: Callable[..., Cache]) -> None:
    cache = make_cache(l1_entries=0)
    has_begun, goes_on = threading.Event(), threading.Event()
    values = iter(["wrong", "right", "right"])

    @cache.loader(fresh_for=300, wait_for=20)
    def product(load: Load, n: int) -> str:
        value = next(values)
        has_begun.set()
        assert goes_on.wait(20)
        return value

    reader = threading.Thread(target=product.get, args=(1,))
    reader.start()
    assert has_begun.wait(20)

    cache.invalidate_loader("product")
    goes_on.set()
    reader.join(20)

    assert product.get(1) == "right"


def test_a_drop_that_fails_on_the_way_leaves_nothing_in_this_process_s_memory(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store has taken of it is not known; what memory has is known to be old."""
    cache = make_cache()
    values = iter(["old", "new"])

    @cache.loader(fresh_for=300)
    def product(load: Load, n: int) -> str:
        return next(values)

    product.get(1)
    wait_until(lambda: product.read(1).tier == "l1")

    def fails(*_: object) -> None:
        raise StoreUnavailable("cut in the middle")

    with monkeypatch.context() as cut, pytest.raises(InvalidationIncomplete, match="dropping all of product"):
        cut.setattr(cache._ports.store, "scan", fails)
        cache.invalidate_loader("product")

    assert cache._ports.l1.get("product[1]") is None


def test_a_name_that_is_none_is_refused(make_cache: Callable[..., Cache]) -> None:
    with pytest.raises(CallError, match=r"must match \[a-z_\]"):
        make_cache().invalidate_loader("product*")


def test_a_page_of_what_no_tag_can_name_is_not_stored(make_cache: Callable[..., Cache]) -> None:
    """A number under Any has several texts, so nothing could ever invalidate the page."""
    cache, loaded = make_cache(), []

    @cache.loader(fresh_for=300, tags=("size:{size}",))
    def size(load: Load, size: Any) -> str:
        return f"size {size}"

    @cache.loader(fresh_for=300)
    def page(load: Load, wanted: Any) -> str:
        loaded.append(wanted)
        return size.get(wanted)

    def loads_of_the_second_read(wanted: Any) -> int:
        first, before = page.get(wanted), len(loaded)
        assert page.get(wanted) == first == f"size {wanted}"
        return len(loaded) - before

    assert (loads_of_the_second_read("small"), loads_of_the_second_read(1.5)) == (0, 1)
