"""User code as the type checker sees it: never run, checked by `mypy --strict`.

A wrong use carries the error that it must be; an ignore that is not needed is an error itself.
"""

from __future__ import annotations

from typing import NoReturn, assert_type

import msgspec
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import AsyncLoad, Cache, Config, Explanation, Invalidation, Load, Policy, Read, TagMapping, tag

cache = Cache(Config(namespace="shop"), sessions=sessionmaker(create_engine("postgresql://")))


class ProductView(msgspec.Struct, frozen=True):
    """What a loader returns."""

    name: str


@cache.loader(fresh_for=300, stale_for=60, tags=("product:{product_id}", "products"))
def product(load: Load, product_id: int) -> ProductView | None:
    """One product."""
    load.tag("category:7")
    load.fresh_for(10)
    load.session.execute(text("select 1"))
    return ProductView("Chair")


@cache.loader()
async def price(load: AsyncLoad, product_id: int, currency: str = "EUR") -> float:
    """One price."""
    await load.session.execute(text("select 1"))
    return 1.0


@cache.batch_loader(tags=("product:{key}",))
def products(load: Load, keys: list[int]) -> dict[int, ProductView]:
    """Many products."""
    return {key: ProductView("Chair") for key in keys}


watched: TagMapping = {ProductView: lambda row: (f"product:{row.id}",), "label": ["label:{id}"]}


@cache.loader
def bare(load: Load[int], name: str) -> int:
    """Without parentheses; what was there is of the type that it says."""
    assert_type(load.previous, int | None)
    return 1


@cache.batch_loader
def bares(load: Load, keys: list[str]) -> dict[str, int]:
    """Without parentheses."""
    return dict.fromkeys(keys, 1)


def a_call_of_a_loader() -> None:
    """It raises, and a type checker knows: what follows it is never reached."""
    assert_type(product(42), NoReturn)


def a_call_of_a_batch_loader() -> None:
    """As of the other kind."""
    assert_type(products(42), NoReturn)


def reads() -> None:
    """What each sync method returns."""
    assert_type(product.get(42), ProductView | None)
    assert_type(product.get(product_id=42), ProductView | None)
    assert_type(product.get_json(42), bytes)
    assert_type(product.read_json(42), Read[bytes])
    assert_type(product.read(42).value, ProductView | None)
    assert_type(products.read(42), Read[ProductView])
    assert_type(bare.get("a"), int)
    assert_type(bares.get_many(["a"]), dict[str, int])
    assert_type(tag("product", 42), str)
    assert_type(product.revalidate(42), bool)
    assert_type(product.invalidate(42), Invalidation)
    assert_type(product.since(product.invalidate(42)).get(42), ProductView | None)
    assert_type(price.get(42, currency="USD"), float)
    assert_type(products.get(42), ProductView)
    assert_type(products.get_many([1, 2]), dict[int, ProductView])
    assert_type(product.get_many([1, 2]), dict[int, ProductView | None])
    assert_type(price.get_many(range(3)), dict[int, float])
    assert_type(cache.invalidate("product:42", "category:7"), Invalidation)
    assert_type(cache.explain(product, 42), Explanation)
    assert_type(cache.explain(products, 42), Explanation)
    assert_type(cache.explain("product[42]"), Explanation)
    found: Read = product.read(42)
    kept: Read | None = product.peek(42)
    cache.watch(sessionmaker(), watched, mode={ProductView: "soft"})
    print(found.freshness, found.tier, found.age, found.seq, kept)


async def areads() -> None:
    """What each async method returns."""
    assert_type(await product.aget(42), ProductView | None)
    assert_type(await product.aget_json(42), bytes)
    assert_type(await product.arevalidate(42), bool)
    assert_type(await product.ainvalidate(42), Invalidation)
    assert_type(await price.aget(42), float)
    assert_type(await products.aget(42), ProductView)
    assert_type(await products.aget_many([1, 2]), dict[int, ProductView])
    assert_type(await product.aget_many([1, 2]), dict[int, ProductView | None])
    assert_type(await cache.ainvalidate("product:42", mode="soft"), Invalidation)


def mistakes() -> None:
    """What a type checker must find."""
    product.get("forty-two")  # type: ignore[arg-type]  # the loader takes an int
    product.get()  # type: ignore[call-arg]  # the argument is missing
    product.get(42, 43)  # type: ignore[call-arg]  # one too many
    product.get(product=42)  # type: ignore[call-arg]  # no such argument
    products.get("forty-two")  # type: ignore[arg-type]  # keys are ints
    product.get_many(["forty-two"])  # type: ignore[list-item]  # keys are ints
    products.get_many([None])  # type: ignore[list-item]  # keys are ints
    cache.invalidate(42)  # type: ignore[arg-type]  # a tag is text
    cache.invalidate("products", mode="gentle")  # type: ignore[arg-type]  # no such mode
    cache.watch(sessionmaker(), watched, mode="gentle")  # type: ignore[arg-type]  # no such mode
    Policy(300)  # type: ignore[call-arg]  # fields are keywords

    cache.loader(fresh_fro=300)  # type: ignore[call-overload]  # no such option
    cache.loader(fresh_for="300")  # type: ignore[call-overload]  # seconds are a number
    cache.loader(on_timeout="wait")  # type: ignore[call-overload]  # no such choice

    @cache.loader()  # type: ignore[arg-type]  # a loader takes `load: Load` first
    def loadless(product_id: int) -> int:
        return product_id
