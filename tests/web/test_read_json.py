"""What answers are made of: reads whose value is the payload, and errors that say when to come back."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable

import pytest

from cacheworkers import Cache, Load, LoadError, Read
from cacheworkers.core.envelope import digest_of
from cacheworkers.testing.servers import wait_until


def test_read_json_carries_the_payload_from_every_tier(cache: Cache) -> None:
    """A miss, the store and memory give the same bytes, their digest with them; by position and by name."""

    @cache.loader(early=0)
    def product(load: Load, product_id: int) -> dict[str, int]:
        return {"id": product_id}

    reads = [product.read_json(42), product.read_json(product_id=42), asyncio.run(product.aread_json(42))]
    wait_until(lambda: cache._ports.listener.is_up)
    assert cache._ports.listener.barrier(60.0).run()  # no push comes late
    wait_until(lambda: product.read_json(42).tier == "l1")
    reads += [product.read_json(42), product.read_json(product_id=42), asyncio.run(product.aread_json(42))]

    assert {read.value for read in reads} == {b'{"id":42}'} == {product.get_json(42)}
    assert {read.entry.digest for read in reads if read.entry} == {digest_of(b'{"id":42}')}
    assert {read.tier for read in reads[-3:]} == {"l1"}
    assert product.get(42) == {"id": 42}


def test_read_json_of_a_batch_loader_and_of_a_view(cache: Cache) -> None:
    """One key's bytes; `since` takes nothing older."""
    loads: list[int] = []

    @cache.batch_loader(early=0)
    def products(load: Load, keys: list[int]) -> dict[int, int]:
        loads.extend(keys)
        return {key: len(loads) for key in keys}

    first = products.read_json(42)
    wait_until(lambda: products.read_json(42).tier == "l1")
    done = products.invalidate(42)

    assert first.value == b"1"
    assert products.since(done).read_json(42).value == b"2"
    assert asyncio.run(products.since(done).aread_json(42)).value == b"2"


def test_a_failed_load_says_what_is_left_of_its_backoff(make_cache: Callable[..., Cache]) -> None:
    """A reader that is refused for a backoff knows for how long; the error keeps it on its way between processes."""
    cache = make_cache(backoff_for=50.0)

    @cache.loader()
    def broken(load: Load) -> int:
        raise ValueError("no")

    def refused() -> LoadError:
        with pytest.raises(LoadError) as caught:
            broken.read_json()
        return caught.value

    refused()
    error = refused()

    assert 0 < error.backoff_for <= 60
    assert pickle.loads(pickle.dumps(error)).backoff_for == error.backoff_for


def test_unhashable_arguments_are_read_as_well(cache: Cache) -> None:
    """They have no place in the index of raw arguments, and go the long way."""

    @cache.loader()
    def total(load: Load, numbers: list[int]) -> int:
        return sum(numbers)

    reads: list[Read] = [total.read_json([1, 2]), total.read_json([1, 2])]

    assert [read.value for read in reads] == [b"3", b"3"]
