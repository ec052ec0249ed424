"""Keys: their names, their slots, and what is read back from them."""

from __future__ import annotations

import fnmatch

import pytest

from cacheworkers.core.keys import Keyspace

KEYS = Keyspace("shop", {"product": 4, "products": 8})


def test_keys_of_a_call() -> None:
    made = [make("product[42]") for make in (KEYS.entry, KEYS.lease, KEYS.failures, KEYS.attempts)]

    assert made == [f"shop:{kind}:{{product[42]}}" for kind in "elfa"]


def test_keys_of_a_tag() -> None:
    assert KEYS.tag_set("category:7") == "shop:t:{category:7}"
    assert KEYS.last_invalidation("products", 3) == "shop:v:{products#3}"
    assert KEYS.detached_index("products", 0) == "shop:d:{products}"
    assert KEYS.detaching("products", 3, 17, "ab12")[3] == "shop:d:{products#3}:17:ab12"
    assert KEYS.seq == "shop:seq"


@pytest.mark.parametrize("call", ["product[42]", 'find["a}b{",1]', 'find["é"]', "f[]"])
def test_the_call_of_an_entry_and_of_a_failure_is_read_back(call: str) -> None:
    assert KEYS.call_of(KEYS.entry(call).encode()) == call
    assert KEYS.call_of(KEYS.failures(call).encode()) == call


@pytest.mark.parametrize(
    "key",
    [
        b"shop:l:{product[42]}",
        b"shop:a:{product[42]}",
        b"shop:t:{product:42}",
        b"shop2:e:{product[42]}",
        b"shop:e:product[42]",
        b"shop:e:{product[42]",
        b"shop:e:{\xff}",
        b"shop:seq",
        b"",
    ],
)
def test_other_keys_have_no_call(key: bytes) -> None:
    assert KEYS.call_of(key) is None


@pytest.mark.parametrize("tag", ["product:42", "a{b}c", "100%", "%7B", "products#3", "#", "é\u2028", "a:1:b", "[x]*?"])
@pytest.mark.parametrize("shard", [0, 3, 12])
def test_the_tag_and_shard_are_read_back(tag: str, shard: int) -> None:
    for make in (KEYS.tag_set, KEYS.last_invalidation, KEYS.detached_index):
        assert KEYS.tag_of(make(tag, shard)) == (tag, shard)


def test_a_tag_that_looks_like_a_shard_has_keys_of_its_own() -> None:
    assert KEYS.tag_set("products#3") != KEYS.tag_set("products", 3)
    assert KEYS.tag_set("a%7Bb") != KEYS.tag_set("a{b")


@pytest.mark.parametrize(
    "key",
    [
        KEYS.detaching("products", 0, 17, "ab12")[3],
        KEYS.detaching("products", 3, 17, "ab12")[3],
        KEYS.detaching("a}:1:b{", 0, 17, "ab12")[3],
        KEYS.entry("product[42]"),
        Keyspace("shop2").tag_set("products"),
        "x:shop:t:{products}",
        "shop:t:{}",
        "shop:t:{products#0}",
        "shop:seq",
    ],
)
def test_other_keys_have_no_tag(key: str) -> None:
    assert KEYS.tag_of(key) is None


def test_patterns_find_all_shards_and_no_detached_sets() -> None:
    """Redis globs and `fnmatch` agree on `*`, the only wildcard in the patterns."""
    found = (
        (KEYS.tag_sets_pattern, KEYS.tag_set),
        (KEYS.last_invalidations_pattern, KEYS.last_invalidation),
        (KEYS.detached_indexes_pattern, KEYS.detached_index),
    )

    for pattern, make in found:
        for tag, shard in (("products", 0), ("products", 3), ("a{b}:1:", 0)):
            assert fnmatch.fnmatchcase(make(tag, shard), pattern)
            assert not fnmatch.fnmatchcase(KEYS.detaching(tag, shard, 17, "ab12")[3], pattern)
            assert not fnmatch.fnmatchcase(Keyspace("shop2").tag_set(tag, shard), pattern)


def test_prefixes_are_those_of_the_keys() -> None:
    assert KEYS.entry("f[]").startswith(KEYS.entries_prefix)
    assert KEYS.failures("f[]").startswith(KEYS.failures_prefix)
    assert KEYS.tag_set("a").startswith(KEYS.tag_sets_prefix)


def test_shards_of_a_tag_are_its_own_or_those_of_its_prefix() -> None:
    assert [KEYS.shards(tag) for tag in ("products", "product:42", "product", "category:7")] == [8, 4, 4, 1]
    assert Keyspace("shop").shards("products") == 1


def test_calls_are_spread_over_the_shards_alike_in_every_process() -> None:
    shards = [KEYS.shard_of("products", f"product[{n}]") for n in range(400)]

    assert set(shards) == set(range(8))
    assert shards[42] == 6  # crc32("product[42]") % 8
    assert {KEYS.shard_of("category:7", f"product[{n}]") for n in range(40)} == {0}
