"""Entries in memory that cannot be decoded: a read of JSON keeps what it never decodes; no other read fails of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cacheworkers import Cache, Load
from cacheworkers.core import envelope
from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]
JSON = b'{"number":1}'


class Old(msgspec.Struct, frozen=True):
    number: int


class New(msgspec.Struct, frozen=True):
    number: int
    price: int


class Mutable(msgspec.Struct):
    number: int
    price: int


@pytest.fixture(params=[New, Mutable], ids=["shareable", "mutable"])
def product(request: pytest.FixtureRequest, make_cache: MakeCache) -> Any:
    """A loader in whose memory is what nobody can decode."""
    kind = request.param

    @make_cache().loader(name="product", fresh_for=300, early=0)
    def old(load: Load, number: int) -> Old:
        return Old(number)

    cache = make_cache()

    @cache.loader(name="product", fresh_for=300, early=0, l1_for=600.0)
    def product(load: Load, number: int) -> kind:  # type: ignore[valid-type]  # what the loader returns is the case
        return kind(number, 10)

    ports = cache._ports
    ports.listener.start()
    wait_until(lambda: ports.listener.is_up)
    old.get(1)
    # By whatever means: an entry of another release would not be read at all.
    key = ports.store.keys.entry("product[1]")
    client = ports.store.link.client()
    entry = msgspec.structs.replace(envelope.unpack(client.get(key)), fingerprint=NO_FINGERPRINT)
    client.set(key, envelope.pack(entry), px=300_000)
    assert ports.listener.barrier(60.0).run()  # no push comes late
    assert product.get_json(1) == JSON
    assert ports.l1.get("product[1]").payload == JSON
    product.expected = kind(1, 10)
    return product


READS: dict[str, Callable[[Any], Any]] = {
    "get": lambda product: product.get(1),
    "get by name": lambda product: product.get(number=1),
    "aget": lambda product: asyncio.run(product.aget(1)),
    "aget by name": lambda product: asyncio.run(product.aget(number=1)),
    "read": lambda product: product.read(1).value,
    "aread": lambda product: asyncio.run(product.aread(1)).value,
    "get_many": lambda product: product.get_many([1])[1],
    "aget_many": lambda product: asyncio.run(product.aget_many([1]))[1],
}


@pytest.mark.parametrize("how", READS)
def test_what_memory_keeps_and_cannot_decode_is_a_miss(product: Any, events: list[Any], how: str) -> None:
    """It is reported, and counts as no hit; the next read finds what has been loaded instead."""
    found = READS[how](product)

    assert found == product.expected
    assert any(type(event).__name__ == "UnreadableEntry" and event.call == "product[1]" for event in events)
    assert product._ports.access_counter.hits() == {}
    assert product.read(1).value == product.expected


def test_what_memory_kept_and_cannot_decode_is_loaded_while_the_store_is_away(
    product: Any, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = product._ports.store.link

    def cut(*_: Any) -> Any:
        raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(link._masters.pool, "exchange", cut)
        patch.setattr(link._masters.pool, "get", cut)
        product._ports.coherence.lost(product._ports.clock.monotonic())
        read = product.read(1)

    assert (read.value, read.tier) == (product.expected, "load")
    assert any(type(event).__name__ == "UnreadableEntry" for event in events)
