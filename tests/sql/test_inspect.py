"""The inspector finds what nobody invalidated, and accuses nothing that is only late."""

from __future__ import annotations

import math

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from cacheworkers import Cache, ConfigError
from cacheworkers.core.driver import run
from cacheworkers.flows.inspect import _sampled, inspect

from .conftest import Product, Shop


def change_unseen(shop: Shop, product_id: int, price: int) -> None:
    """Change a row past everything that watches."""
    with Session(shop.engine) as session, session.begin():
        session.execute(update(Product).where(Product.id == product_id).values(price=price))


def test_a_forgotten_invalidation_is_found_with_the_evidence(shop: Shop) -> None:
    shop.add(*range(1, 11))
    for number in range(1, 11):
        shop.price.get(number)
    change_unseen(shop, 3, 99)

    found = shop.cache.inspect(100, grace=0.0, rate=10_000)

    assert found.sampled == 10
    [difference] = found.differences
    assert (difference.call, difference.stored, difference.loaded) == ("price[3]", "30", "99")
    assert "product:3" in difference.tags
    assert found.per_million == 100_000


@pytest.mark.parametrize("is_changed_again", [False, True])
def test_a_difference_that_goes_within_the_grace_is_none(shop: Shop, is_changed_again: bool) -> None:
    """The invalidation was on its way; what differs afterwards is another version, with a grace of its own."""
    shop.add(1)
    shop.price.get(1)
    change_unseen(shop, 1, 99)
    compared = []

    class Hurried:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def run(self) -> None:
            compared.append(self.seconds)
            if self.seconds == 60.0:
                shop.cache.invalidate("product:1")
                if is_changed_again:
                    shop.price.get(1)
                    change_unseen(shop, 1, 100)

        async def arun(self) -> None:
            self.run()

    found = run(inspect(shop.cache._ports, shop.cache._loaders, 10, 60.0, Hurried, 1000.0))

    assert compared == [0.001, 60.0, 0.001]  # the second look is no faster than the first
    assert (found.sampled, found.differences) == (1, ())


def test_any_entry_may_be_chosen_however_many_there_are(shop: Shop) -> None:
    """Not only those that a walk through all keys finds first; and all of them are found, wherever it begins."""
    ports = shop.cache._ports
    calls = [f"price[{number}]" for number in range(20_000)]
    ports.store.link.client().mset(dict.fromkeys(map(ports.store.keys.entry, calls), b"x"))
    _, first = ports.store.scan(0, "*").run()
    found_first = {ports.store.keys.call_of(key.encode()) for key in first}

    chosen = [run(_sampled(ports, 1))[0] for _ in range(100)]

    assert sum(call in found_first for call in chosen) < 50
    assert sorted(run(_sampled(ports, 30_000))) == sorted(calls)


def test_what_cannot_be_compared_is_counted(shop: Shop) -> None:
    """Entries of loaders that are not declared here, and foreign bytes."""
    shop.add(1)
    shop.price.get(1)
    keys, client = shop.cache._ports.store.keys, shop.cache._ports.store.link.client()
    client.set(keys.entry("unknown[1]"), b"x")
    client.set(keys.entry("price[2]"), b"not an envelope")

    found = shop.cache.inspect(10, grace=0.0, rate=10_000)

    assert (found.sampled, found.skipped) == (1, 2)


def test_what_could_not_be_loaded_is_no_comparison(shop: Shop) -> None:
    """Nothing is known of it, which is not the same as nothing being wrong."""
    shop.add(1, 2)
    shop.price.get(1)
    shop.price.get(2)
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE product RENAME COLUMN price TO cost")

    found = shop.cache.inspect(10, grace=0.0, rate=10_000)

    assert (found.sampled, found.skipped, found.failed, found.differences) == (0, 0, 2, ())
    assert found.failure.startswith("price[")


def test_the_calls_of_a_tag_are_listed(shop: Shop) -> None:
    shop.add(1, 2, 3, category_id=7)
    for number in (1, 2, 3):
        shop.price.get(number)
    shop.price.invalidate(3)

    assert sorted(shop.cache.calls_of("category:7")) == ["price[1]", "price[2]"]
    assert len(shop.cache.calls_of("category:7", limit=1)) == 1
    assert shop.cache.calls_of("category:8") == []


def test_bounds_that_cannot_be_kept_are_refused(cache: Cache) -> None:
    for option, value in (("sample", 0), ("grace", -1.0), ("grace", math.nan), ("rate", 0.0), ("rate", math.nan)):
        with pytest.raises(ConfigError, match=f"{option} must be"):
            cache.inspect(**{option: value})
