"""Something else writes into the library's keys: it costs caching, and nobody gets a strange error."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from cacheworkers import Cache, CacheworkersError, InvalidationIncomplete, Load
from cacheworkers.errors import StoreError
from cacheworkers.ops.doctor.namespace_checks import check_foreign
from cacheworkers.ops.explanation_text import lines

FORMS: dict[str, Callable[[Any, str, bytes], object]] = {
    "string": lambda client, key, odd: client.set(key, odd),
    "hash": lambda client, key, odd: client.hset(
        key, mapping=dict.fromkeys(("token", "fence", "run", "kind", "text", "until_ms", "count", "warm"), odd)
    ),
    "sorted set": lambda client, key, odd: client.zadd(key, {odd: 2.0**60, odd + b"2": 1.0}),
    "set": lambda client, key, odd: client.sadd(key, odd),
    "list": lambda client, key, odd: client.rpush(key, odd),
}


class Shop:
    def __init__(self, make_cache: Callable[..., Cache]) -> None:
        self.cache = make_cache(l1_entries=0, breaker_for=0.05, backoff_for=0.05, max_backoff_for=0.05)
        self.loads = 0

        @self.cache.loader(fresh_for=300, wait_for=0.3, load_for=2, tags=("products",))
        def price(load: Load, number: int) -> int:
            self.loads += 1
            return number

        self.price = price
        self.client = self.cache._ports.store.link.client()
        keys = self.cache._ports.store.keys
        self.keys = {
            "entry": keys.entry("price[1]"),
            "lease": keys.lease("price[1]"),
            "failures": keys.failures("price[1]"),
            "attempts": keys.attempts("price[1]"),
            "accesses": keys.accesses("price"),
            "tag set": keys.tag_set("products"),
            "last invalidation": keys.last_invalidation("products"),
            "detached index": keys.detached_index("products"),
            "seq": keys.seq,
            "shards": keys.tag_shards,
        }


@pytest.fixture
def shop(make_cache: Callable[..., Cache]) -> Shop:
    return Shop(make_cache)


@pytest.mark.parametrize("odd", [b"\xff\xfe", b"1e400", b"-5"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["entry", "lease", "failures", "attempts", "tag set", "last invalidation", "seq"])
def test_a_read_returns_its_value_or_an_error_of_the_library(shop: Shop, where: str, form: str, odd: bytes) -> None:
    FORMS[form](shop.client, shop.keys[where], odd)

    for read in (shop.price.get, lambda number: shop.price.get_many([number])[number]):
        try:
            assert read(1) == 1
        except CacheworkersError:
            pass

    assert shop.loads <= 10


@pytest.mark.parametrize("odd", [b"\xff\xfe", b"1e400", b"-5"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["entry", "lease", "failures", "attempts", "accesses"])
def test_an_explanation_says_what_it_found_or_that_a_key_is_not_ours(
    shop: Shop, where: str, form: str, odd: bytes
) -> None:
    FORMS[form](shop.client, shop.keys[where], odd)

    try:
        explanation = shop.cache.explain("price[1]")
    except CacheworkersError:
        return

    assert explanation.call == "price[1]"
    assert dict(lines(explanation))["memory"]


@pytest.mark.parametrize("form", sorted({*FORMS} - {"sorted set"}))
def test_access_scores_of_another_type_are_passed_over(shop: Shop, form: str) -> None:
    """They only say what is hot: of this loader nothing is, and those of the others go on; doctor names the key."""
    other = shop.cache.loader(name="stock", fresh_for=300)(lambda load, number: number)
    ports = shop.cache._ports
    FORMS[form](shop.client, shop.keys["accesses"], b"odd")
    assert (shop.price.get(1), other.get(1)) == (1, 1)

    assert shop.cache.report_accesses() == 2

    assert {each.loader: each.calls for each in shop.cache.loader_stats()} == {"price": 0, "stock": 1}
    assert shop.price.hot() == [] and [call for call, _ in other.hot()] == ["stock[1]"]
    assert shop.cache.explain("price[1]").access_score == 0.0
    shop.cache.keep_warm()
    [finding] = check_foreign(shop.cache._runtime)
    assert finding.level == "warning" and ports.store.keys.accesses("price") in finding.what


@pytest.mark.parametrize("how", ["get_many", "aget_many", "aget"])
def test_a_proxy_that_answers_with_the_errors_of_keys_is_a_store_that_cannot_be_used(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """No server answers an MGET with WRONGTYPE, which other commands take for a key that something else has written."""
    shop.price.get(1)
    pool = shop.cache._ports.store.link._masters.pool  # type: ignore[attr-defined]
    wrong = ResponseError("WRONGTYPE of everything")

    async def answered(commands: Any) -> list[Any]:
        return [wrong] * len(commands)

    monkeypatch.setattr(pool, "exchange", lambda commands: [wrong] * len(commands))
    monkeypatch.setattr(pool, "aexchange", answered)
    monkeypatch.setattr(pool, "submit", lambda words, done: done([wrong]) or True)

    found = getattr(shop.price, how)([1, 2] if "many" in how else 1)
    values = asyncio.run(found) if how.startswith("a") else found

    assert values == ({1: 1, 2: 2} if "many" in how else 1)


def test_calls_of_a_tag_are_those_that_may_be_the_library_s(shop: Shop) -> None:
    shop.price.get(1)
    shop.client.zadd(shop.keys["tag set"], {b"price[\xff]": 2.0**60})

    assert shop.cache.calls_of("products") == ["price[1]"]


def test_an_error_names_the_key_that_something_else_has_written(shop: Shop) -> None:
    FORMS["list"](shop.client, shop.keys["tag set"], b"odd")

    with pytest.raises(StoreError, match=re.escape(f"the key {shop.keys['tag set']} holds what something else")):
        shop.cache.calls_of("products")


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("odd", [b"\xff\xfe", b"1e400", b"-5"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["tag set", "last invalidation", "detached index", "seq", "shards"])
def test_an_invalidation_is_done_or_not_acknowledged(shop: Shop, where: str, form: str, mode: Any, odd: bytes) -> None:
    FORMS[form](shop.client, shop.keys[where], odd)

    try:
        shop.cache.invalidate("products", mode=mode)
    except InvalidationIncomplete:
        pass
    for look in (lambda: shop.cache.calls_of("products"), lambda: shop.cache.collect_garbage(5)):
        try:
            look()
        except CacheworkersError:
            pass


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_an_invalidation_that_cannot_be_marked_is_not_acknowledged(shop: Shop, mode: Any) -> None:
    """A load under way compares with the mark: it would store, as fresh, what it has read before."""
    shop.client.lpush(shop.keys["last invalidation"], "foreign")

    with pytest.raises(InvalidationIncomplete):
        shop.cache.invalidate("products", mode=mode)


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("number", [b"-5", b"18446744073709551616", b"1e300", b"12.5", b"nan", b"x"])
def test_a_stray_sequence_does_not_end_caching(shop: Shop, number: bytes) -> None:
    for _ in range(2):
        shop.client.set(shop.keys["seq"], number)
        shop.price.get(1)
        assert shop.price.read(1).tier == "store"
        assert 0 < shop.cache.invalidate("products").seq < 2**53


@pytest.mark.parametrize(
    "fields", [{"token": "ab", "fence": "cd"}, {"token": "ab", "taken_over": "1"}, {"token": "ab"}]
)
def test_a_lease_without_an_end_is_none(shop: Shop, fields: dict[str, str]) -> None:
    """As a copy of the data without lifetimes, or PERSIST, leaves it."""
    shop.client.hset(shop.keys["lease"], mapping=fields)

    assert shop.price.get(1) == 1
    assert shop.price.read(1).tier == "store"


@pytest.mark.usefixtures("joined")
def test_members_that_are_no_text_are_removed_and_the_others_invalidated(shop: Shop) -> None:
    assert shop.price.get(1) == 1
    shop.client.zadd(shop.keys["tag set"], {b"\xff\xfe": 2.0**60})

    done = shop.cache.invalidate("products")

    assert done.entries == 1 and shop.price.peek(1) is None
    assert not shop.client.exists(shop.keys["detached index"])
