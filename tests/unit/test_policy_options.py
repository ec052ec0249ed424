"""The keywords of `Cache.loader`, as editors know them."""

from __future__ import annotations

import dataclasses
import typing

from cacheworkers import Cache, Config, Load, Policy
from cacheworkers.policy import PolicyOptions


def test_the_keywords_are_the_policy_s_fields() -> None:
    fields, hints = typing.get_type_hints(Policy), typing.get_type_hints(PolicyOptions)

    assert hints.pop("policy") == Policy | None
    assert hints == {field.name: fields[field.name] for field in dataclasses.fields(Policy)}


def test_a_loader_is_declared_with_and_without_parentheses() -> None:
    cache = Cache(Config())

    @cache.loader
    def one(load: Load, n: int) -> int:
        return n

    @cache.batch_loader
    def many(load: Load[dict[int, int]], keys: list[int]) -> dict[int, int]:
        return dict.fromkeys(keys, 1)

    assert (one.name, many.name) == ("one", "many")
    assert one.policy == many.policy == Policy()
    cache.close()
