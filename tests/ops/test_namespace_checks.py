"""Doctor finds two applications in one namespace, and values that have no place in the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Load
from cacheworkers.ops.doctor.namespace_checks import check_namespace, check_unstored
from cacheworkers.testing.servers import wait_until


def application(make_cache: Callable[..., Cache], path: Path, name: str) -> Any:
    cache = make_cache(sessions=sessionmaker(create_engine(f"sqlite:///{path}/{name}.db")))

    @cache.loader(fresh_for=300)
    def product(load: Load, n: int) -> int:
        if n < 0:
            load.tag("")
        return n

    return cache, product


def levels(check: Any, cache: Cache) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in check(cache.internals.runtime)]


def test_two_databases_under_one_namespace_are_found(
    make_cache: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the other application is another process, which has loaded something within a week."""
    production, product = application(make_cache, tmp_path, "production")
    assert product.get(1) == 1
    assert [level for level, _ in levels(check_namespace, production)] == ["ok"]
    staging, _ = application(make_cache, tmp_path, "staging")
    monkeypatch.setattr(type(staging._runtime), "siblings", [])

    [(level, what)] = levels(check_namespace, staging)

    assert level == "warning" and "production.db" in what and "staging.db" in what


def test_two_caches_of_one_process_are_found_before_anything_is_loaded(
    make_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    application(make_cache, tmp_path, "production")
    staging, _ = application(make_cache, tmp_path, "staging")

    assert [level for level, _ in levels(check_namespace, staging)] == ["warning"]


def test_several_processes_of_one_application_are_well(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    caches = [application(make_cache, tmp_path, "production") for _ in range(2)]
    for _, product in caches:
        product.get(1)

    assert [level for cache, _ in caches for level, _ in levels(check_namespace, cache)] == ["ok", "ok"]


def test_values_without_a_place_in_the_store_are_found(make_cache: Callable[..., Cache], tmp_path: Path) -> None:
    cache, product = application(make_cache, tmp_path, "production")
    assert [level for level, _ in levels(check_unstored, cache)] == ["ok"]
    assert product.get(-1) == -1

    wait_until(lambda: levels(check_unstored, cache)[0][0] != "ok")  # it is noted after the value is served
    [(level, what)] = levels(check_unstored, cache)

    assert level == "warning" and "product is served uncached: product[-1]" in what and "not empty" in what
