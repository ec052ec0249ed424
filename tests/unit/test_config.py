"""Config: validated when made, and read from the environment."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from cacheworkers.config import Config
from cacheworkers.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"redis_url": "localhost"}, "redis_url must be a URL such as redis://host:6379/0"),
        ({"redis_url": None}, "redis_url must be a URL such as redis://host:6379/0"),
        ({"namespace": "a:b"}, "namespace must match [a-z0-9_-]{1,32}, got 'a:b'"),
        ({"namespace": ""}, "namespace must match [a-z0-9_-]{1,32}, got ''"),
        ({"namespace": "x" * 33}, f"namespace must match [a-z0-9_-]{{1,32}}, got '{'x' * 33}'"),
        ({"namespace": "shop\n"}, "namespace must match [a-z0-9_-]{1,32}, got 'shop\\n'"),
        ({"store_timeout": 0}, "store_timeout must be > 0 seconds, got 0"),
        ({"breaker_for": -1}, "breaker_for must be >= 0 seconds, got -1"),
        ({"l1_for": 86401}, "l1_for must be <= 86400 seconds, got 86401"),
        ({"bulkhead": 0}, "bulkhead must be a whole number >= 1, got 0"),
        ({"l1_entries": 1.5}, "l1_entries must be a whole number >= 0, got 1.5"),
        ({"batch_size": True}, "batch_size must be a whole number >= 1, got True"),
        ({"tag_shards": {"a": 3}}, "tag_shards['a'] must be a power of two from 1 to 1024, got 3"),
        ({"tag_shards": {"a": 0}}, "tag_shards['a'] must be a power of two from 1 to 1024, got 0"),
        ({"tag_shards": {"a": 2048}}, "tag_shards['a'] must be a power of two from 1 to 1024, got 2048"),
        ({"tag_shards": {"a": "4"}}, "tag_shards['a'] must be a power of two from 1 to 1024, got '4'"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_rule(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Config(**wrong)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Config) if f.type in ("int", "float")])
def test_every_number_is_checked(field: str) -> None:
    for wrong in (-1, "1", float("nan"), True):
        with pytest.raises(ConfigError, match=f"^{field} must be"):
            Config(**{field: wrong})


def test_the_environment_sets_every_kind_of_field() -> None:
    env = {
        "CACHEWORKERS_NAMESPACE": "shop",
        "CACHEWORKERS_L1_ENTRIES": "5",
        "CACHEWORKERS_L1_FOR": "1.5",
        "CACHEWORKERS_ALLOW_EVICTING_STORE": "Yes",
        "CACHEWORKERS_TAG_SHARDS": "products=4,category=2",
        "PATH": "/bin",
    }

    config = Config.from_env(env)

    assert config == Config(
        namespace="shop",
        l1_entries=5,
        l1_for=1.5,
        allow_evicting_store=True,
        tag_shards={"products": 4, "category": 2},
    )


def test_the_url_falls_back_to_the_common_variable() -> None:
    common = {"REDIS_URL": "redis://common:1/0"}

    assert Config.from_env(common).redis_url == "redis://common:1/0"
    own = Config.from_env({**common, "CACHEWORKERS_REDIS_URL": "redis://own:1/0"})
    assert own.redis_url == "redis://own:1/0"


def test_arguments_win_over_the_environment() -> None:
    assert Config.from_env({"CACHEWORKERS_BULKHEAD": "3"}, bulkhead=4).bulkhead == 4


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("NONSENSE", "1", "CACHEWORKERS_NONSENSE names no setting"),
        ("BULKHEAD", "many", "CACHEWORKERS_BULKHEAD must be a int, got 'many'"),
        ("L1_FOR", "soon", "CACHEWORKERS_L1_FOR must be a float, got 'soon'"),
        ("ALLOW_EVICTING_STORE", "maybe", "CACHEWORKERS_ALLOW_EVICTING_STORE must be a bool, got 'maybe'"),
        ("TAG_SHARDS", "products", "CACHEWORKERS_TAG_SHARDS must be"),
        ("BULKHEAD", "0", "bulkhead must be a whole number >= 1, got 0"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config.from_env({f"CACHEWORKERS_{variable}": text})


def test_queues_are_named_after_the_namespace_unless_configured_otherwise() -> None:
    assert dataclasses.astuple(Config(namespace="shop").queues) == (
        "shop.miss",
        "shop.revalidate",
        "shop.warm",
        "shop.upkeep",
    )
    assert Config(queue_prefix="q").queues.miss == "q.miss"
