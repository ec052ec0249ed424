"""Many tags invalidated together: as many round trips as for one, wherever they are cut, and nothing old after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers import Cache, InvalidationIncomplete, Load
from cacheworkers.flows.invalidate import Mode, invalidate_tags
from cacheworkers.testing import FaultProxy, Stepper, Valkey
from cacheworkers.testing.servers import wait_until

PRODUCTS = 30


class Shop:
    """Products with a tag each and one of two shelves, all loaded; the value is the version."""

    def __init__(self, cache: Cache) -> None:
        self.version = 1
        self.ports = cache._ports

        @cache.loader(tags=("product:{number}",), fresh_for=300, jitter=0, early=0)
        def product(load: Load, number: int) -> int:
            load.tag(f"shelf:{number % 2}")
            return self.version

        self.product = product
        self.tags = [f"product:{number}" for number in range(PRODUCTS)]
        assert {product.get(number) for number in range(PRODUCTS)} == {1}

    def stored(self) -> list[int]:
        raws = self.ports.store.get_many([f"product[{number}]" for number in range(PRODUCTS)]).run()
        return [number for number, raw in enumerate(raws) if raw is not None]


def exchanges(shop: Shop, tags: list[str], mode: Mode = "hard") -> int:
    going = Stepper(invalidate_tags(shop.ports, tags, mode), by_exchange=True)
    count = 0
    while going.at:
        going.step()
        count += 1
    assert going.error is None
    return count


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_many_tags_take_as_many_round_trips_as_one(cache: Cache, mode: Mode) -> None:
    shop = Shop(cache)
    one = exchanges(shop, shop.tags[:1], mode)

    assert exchanges(shop, shop.tags[1:], mode) == one


@pytest.mark.usefixtures("joined")
def test_entries_with_several_of_the_tags_are_counted_once(cache: Cache) -> None:
    shop = Shop(cache)

    assert cache.invalidate(*shop.tags, "shelf:0", "shelf:1").entries == PRODUCTS
    assert shop.stored() == []


def test_a_soft_one_makes_all_of_them_stale(cache: Cache) -> None:
    shop = Shop(cache)

    assert cache.invalidate(*shop.tags, mode="soft").entries == PRODUCTS
    assert len(shop.stored()) == PRODUCTS


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("finish", ["garbage collection", "invalidate"])
def test_wherever_a_pipeline_is_cut_the_next_one_finishes(cache: Cache, finish: str) -> None:
    """Half of the tags of an exchange are done, the others not, and the process is gone."""
    shop = Shop(cache)
    tags = ["shelf:1", *shop.tags, "shelf:0"]
    cut = 0
    while True:
        going = Stepper(invalidate_tags(shop.ports, tags, "hard"))
        for _ in range(cut):
            if going.at:
                going.send()
                if going._reply is not None:
                    going.step()
        if not going.at:
            break
        going.crash()
        if finish != "invalidate":
            cache.collect_garbage()
        shop.version += 1
        cache.invalidate(*tags)
        assert shop.stored() == [], f"cut after {cut} requests"
        assert shop.ports.store.detached_sets(tags).run() == []
        assert {shop.product.get(number) for number in range(PRODUCTS)} == {shop.version}
        cut += 7
    assert cut > len(tags)


@pytest.mark.usefixtures("joined")
def test_a_set_of_another_type_keeps_no_other_tag_from_being_invalidated(cache: Cache) -> None:
    shop = Shop(cache)
    keys = shop.ports.store.keys
    client: Any = shop.ports.store.link.client()
    client.unlink(keys.tag_set("product:3"))
    client.set(keys.tag_set("product:3"), "foreign")

    with pytest.raises(InvalidationIncomplete, match="holds what something else has written: WRONGTYPE") as caught:
        cache.invalidate(*shop.tags)

    assert "call it again" not in str(caught.value)  # which would not help
    assert f"the key {keys.detached_index('product:3')}:" in str(caught.value)  # it has been renamed with the set

    assert shop.stored() == [3]


def test_an_error_names_some_of_many_tags(make_cache: Callable[..., Cache], valkey: Valkey) -> None:
    with FaultProxy(valkey.url) as proxy:
        cache = make_cache(redis_url=proxy.url, store_timeout=0.3)
        Shop(cache)
        proxy.hold_replies()

        with pytest.raises(InvalidationIncomplete, match="invalidation of a0, a1, a2 and 997 more is not") as caught:
            cache.invalidate(*(f"a{number}" for number in range(1000)))

        assert "what was committed before it stays" in str(caught.value) and "call it again" in str(caught.value)


@pytest.mark.parametrize("how", ["tag", "call", "many"])
def test_after_a_failed_invalidation_this_process_forgets_what_it_had(
    make_cache: Callable[..., Cache], valkey: Valkey, how: str
) -> None:
    """It knows better than anybody that what it has in memory is old."""
    with FaultProxy(valkey.url) as proxy:
        cache = make_cache(redis_url=proxy.url, store_timeout=0.3)
        shop = Shop(cache)
        wait_until(lambda: shop.product.read(1).tier == "l1")
        shop.version = 2
        proxy.hold_replies()

        with pytest.raises(InvalidationIncomplete):
            if how == "call":
                shop.product.invalidate(1)
            else:
                cache.invalidate(*(shop.tags if how == "many" else ["product:1"]))

        assert shop.product.get(1) == 2
        proxy.release()
